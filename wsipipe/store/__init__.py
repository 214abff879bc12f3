"""Files of a run: features, identity, atomic publishing, partial rows, leases, records."""

from __future__ import annotations

from wsipipe.store.check import FileCheck, check_file
from wsipipe.store.features import (
    FeatureFile,
    FeatureMeta,
    Features,
    read_attrs,
    read_features,
    write_features,
)
from wsipipe.store.identity import canonical_json, identity_differences, identity_hash
from wsipipe.store.publish import (
    publish_bytes,
    publish_file,
    publish_text,
    remove_stale_temporaries,
)

__all__ = [
    "FeatureFile",
    "FeatureMeta",
    "Features",
    "FileCheck",
    "canonical_json",
    "check_file",
    "identity_differences",
    "identity_hash",
    "publish_bytes",
    "publish_file",
    "publish_text",
    "read_attrs",
    "read_features",
    "remove_stale_temporaries",
    "write_features",
]
