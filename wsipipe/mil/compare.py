"""Several training runs in one table, with paired tests on the patients they share."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import ConfigError

__all__ = ["Compared", "compare_runs", "comparison_csv"]

_ERRORS = ("brier", "ece", "mae", "integrated_brier", "expected_calibration_error")


@dataclass(frozen=True)
class Compared:
    """One run of the table.

    Attributes:
        figures: Metric -> {"pooled", "ci_low", "ci_high", "mean"}.
        p_to_best: Two-sided p of the paired DeLong test against the best run, adjusted by Holm
            over all tests of the table; None for the best itself and where the test does not apply
            (other tasks than two classes, or other patients).
    """

    folder: str
    encoder: str
    aggregator: str
    n_patients: int
    figures: dict[str, dict[str, Any]]
    p_to_best: float | None


def compare_runs(folders: Sequence[str | Path], metric: str | None = None) -> list[Compared]:
    """Read finished runs of `wsipipe train`, best first.

    Args:
        folders: Their `--out` folders.
        metric: What to sort and test by; by default the first that all runs have.

    Raises:
        ConfigError: A folder is no finished run, or the metric is not in all of them.
    """
    from wsipipe.mil.metrics.bootstrap import holm

    documents = [_document(Path(folder)) for folder in folders]
    shared = [m for m in documents[0]["metrics"] if all(m in d["metrics"] for d in documents)]
    metric = metric or next(iter(shared), None)
    if metric not in shared:
        raise ConfigError(
            f"Not all of these runs have the metric '{metric}'.",
            f"They share: {', '.join(shared) or 'none'}.",
        )
    sign = 1 if metric in _ERRORS else -1

    def rank(i: int) -> float:
        value = documents[i]["metrics"][metric]["pooled"]
        return float("inf") if value is None else sign * float(value)

    order = sorted(range(len(folders)), key=rank)
    scores = [_binary_scores(Path(folders[i])) for i in order]
    raw = [_delong(scores[0], other) for other in scores[1:]]
    tested = [p for p in raw if p is not None]
    adjusted = iter(holm(tested) if tested else [])
    p_values = [None, *(None if p is None else next(adjusted) for p in raw)]
    return [
        Compared(
            str(folders[i]),
            str(documents[i].get("features", {}).get("encoder", "")),
            str(documents[i]["aggregator"]),
            int(documents[i]["n_patients"]),
            documents[i]["metrics"],
            p,
        )
        for i, p in zip(order, p_values, strict=True)
    ]


def comparison_csv(rows: Sequence[Compared]) -> str:
    """One line a run: who, how many patients, each metric with its interval, p against the best."""
    names = [name for name in rows[0].figures if all(name in row.figures for row in rows)]
    parts = ("pooled", "ci_low", "ci_high", "mean")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = [f"{name}_{part}" for name in names for part in parts]
    writer.writerow(["folder", "encoder", "aggregator", "n_patients", *head, "p_to_best_holm"])
    for row in rows:
        values = [row.figures[name].get(part) for name in names for part in parts]
        texts = ["" if v is None else f"{v:.6g}" for v in [*values, row.p_to_best]]
        writer.writerow([row.folder, row.encoder, row.aggregator, row.n_patients, *texts])
    return buffer.getvalue()


def _document(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no finished training run ({error}).", "Name --out folders of train."
        ) from error
    if not isinstance(document, dict) or not document.get("metrics"):
        raise ConfigError(f"{path} holds no metrics.")
    return document


def _binary_scores(folder: Path) -> dict[str, tuple[str, float]] | None:
    """patient -> (truth, mean score of the second class); None where it is no two-class run."""
    gathered: dict[str, list[float]] = defaultdict(list)
    truth: dict[str, str] = {}
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        classes = [name for name in reader.fieldnames or () if name.startswith("p_")]
        if len(classes) != 2:
            return None
        for line in reader:
            gathered[line["patient_id"]].append(float(line[classes[1]]))
            truth[line["patient_id"]] = line["y_true"]
    positive = classes[1].removeprefix("p_")
    return {
        patient: ("1" if truth[patient] == positive else "0", float(np.mean(values)))
        for patient, values in gathered.items()
    }


def _delong(
    best: dict[str, tuple[str, float]] | None, other: dict[str, tuple[str, float]] | None
) -> float | None:
    from wsipipe.mil.metrics.delong import delong_test

    if not best or not other or best.keys() != other.keys():
        return None
    patients = sorted(best)
    positive = np.array([best[p][0] == "1" for p in patients])
    if any(best[p][0] != other[p][0] for p in patients) or positive.all() or not positive.any():
        return None
    first, second = (np.array([s[p][1] for p in patients]) for s in (best, other))
    return float(delong_test(first, second, positive)[-1])
