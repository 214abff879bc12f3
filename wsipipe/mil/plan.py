"""The plan of a run, its identity, and the folder that it claims."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.bank import file_digest
from wsipipe.mil.cohort import Cohort
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.split_files import splits_csv
from wsipipe.mil.splits import Fold, splits_digest

__all__ = ["Plan", "claim_folder", "run_identity"]

#: Of splits, training and calibration: folds of another one are not gone on with.
ALGORITHM = 4


@dataclass(frozen=True)
class Plan:
    """All that is known before training starts.

    Attributes:
        features: What the feature files agree in.
        notes: What the user should know.
        identity: sha256 of everything that changes the models.
    """

    cohort: Cohort
    folds: tuple[Fold, ...]
    settings: TrainSettings
    features: dict[str, Any]
    notes: tuple[str, ...]
    identity: str
    keep_sites_apart: bool
    slides_together: bool


def run_identity(
    cohort: Cohort,
    folds: Sequence[Fold],
    settings: TrainSettings,
    common: dict[str, Any],
    slides_together: bool,
) -> str:
    """sha256 of everything that changes the models of a run."""
    labels = sorted(
        (s, p, np.nan_to_num(y, nan=-1e9).tolist())
        for s, p, y in zip(cohort.slide_ids, cohort.patients, cohort.y, strict=True)
    )
    # Our files carry their identity; of others the bytes of the features speak for themselves.
    content = {
        s: [f.attrs.get("identity") or file_digest(f), f.rows, f.dim]
        for s, f in sorted(cohort.files.items())
    }
    said = {
        "algorithm": ALGORITHM,
        "labels": labels,
        "features": content,
        "common": common,
        "targets": [t.describe() for t in cohort.targets],
        "splits": splits_digest(folds),
        "settings": settings.describe(),
        "slides_together": slides_together,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def claim_folder(out: Path, plan: Plan, recompute: bool) -> None:
    """Make the folder this run's own: the same run goes on, another is refused."""
    from wsipipe.store.publish import make_folder, publish_text

    if out.is_file():
        raise ConfigError(f"--out {out} is a file, not a folder.")
    make_folder(out)
    record = out / "run.json"
    said = {
        "identity": plan.identity,
        "algorithm": ALGORITHM,
        "settings": plan.settings.describe(),
        "splits_sha256": splits_digest(plan.folds),
        "targets": [t.describe() for t in plan.cohort.targets],
        "features": plan.features,
        "slides": len(plan.cohort.slide_ids),
    }
    if record.is_file() and not recompute:
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorruptFileError(record, f"is damaged ({error}).", "Use --recompute.") from error
        if before.get("identity") != plan.identity:
            differing = [k for k in said if before.get(k) != said[k] and k != "identity"]
            inner = [
                f"settings.{k}"
                for k, v in said["settings"].items()  # type: ignore[attr-defined]
                if before.get("settings", {}).get(k) != v
            ]
            named = [d for d in differing if d != "settings"] + inner or ["labels or features"]
            raise ConfigError(
                f"{out} holds a run of other {', '.join(named)}.",
                "Use another --out, or --recompute to replace it.",
            )
    if recompute and record.is_file():
        _remove_models(out)
    publish_text(record, json.dumps(said, indent=1, sort_keys=True, default=str) + "\n")
    slides_of: dict[str, list[str]] = defaultdict(list)
    for slide, patient in zip(plan.cohort.slide_ids, plan.cohort.patients, strict=True):
        slides_of[patient].append(slide)
    publish_text(out / "splits.csv", splits_csv(plan.folds, slides_of))


def _remove_models(out: Path) -> None:
    """Only files that a run makes, by name."""
    for path in [*out.glob("models/fold-*/model.*"), *out.glob("cache/progress-*.pt")]:
        path.unlink()
