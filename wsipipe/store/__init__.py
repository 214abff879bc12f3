"""Files of a run: features, identity, atomic publishing, partial rows, leases, records."""

from __future__ import annotations

from wsipipe.store.check import FileCheck, check_file, file_stamp
from wsipipe.store.events import EventLog, write_run_yaml
from wsipipe.store.features import (
    FeatureFile,
    FeatureMeta,
    Features,
    read_attrs,
    read_features,
    write_features,
)
from wsipipe.store.identity import canonical_json, identity_differences, identity_hash
from wsipipe.store.lease import Lease, Leases
from wsipipe.store.names import (
    TextFilter,
    check_slide_id,
    redact_tokens,
    safe_name,
    scrub_paths,
)
from wsipipe.store.partial import PartialRows, RowRange, is_whole, remove_stale_partials
from wsipipe.store.pseudonyms import Pseudonymizer
from wsipipe.store.publish import (
    publish_bytes,
    publish_file,
    publish_text,
    remove_stale_temporaries,
)
from wsipipe.store.records import (
    Records,
    SlideRecord,
    SlideResult,
    range_records,
    remove_range_records,
)
from wsipipe.store.tables import SlideRow, count_statuses, fold, result_of_file, write_tables

__all__ = [
    "EventLog",
    "FeatureFile",
    "FeatureMeta",
    "Features",
    "FileCheck",
    "Lease",
    "Leases",
    "PartialRows",
    "Pseudonymizer",
    "Records",
    "RowRange",
    "SlideRecord",
    "SlideResult",
    "SlideRow",
    "TextFilter",
    "canonical_json",
    "check_file",
    "check_slide_id",
    "count_statuses",
    "file_stamp",
    "fold",
    "identity_differences",
    "identity_hash",
    "is_whole",
    "publish_bytes",
    "publish_file",
    "publish_text",
    "range_records",
    "read_attrs",
    "read_features",
    "redact_tokens",
    "remove_range_records",
    "remove_stale_partials",
    "remove_stale_temporaries",
    "result_of_file",
    "safe_name",
    "scrub_paths",
    "write_features",
    "write_run_yaml",
    "write_tables",
]
