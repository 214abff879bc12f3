"""Paired comparison of finished runs on the same patients and folds."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.cohort import read_table
from wsipipe.mil.metrics.bootstrap import Statistic, holm, paired_bootstrap
from wsipipe.mil.metrics.classification import auroc, confusion, from_confusion
from wsipipe.mil.metrics.delong import delong_test
from wsipipe.mil.metrics.regression import regression_statistics
from wsipipe.mil.metrics.survival import concordance_statistic

__all__ = ["compare_runs"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Finished:
    """Predictions of one run by patient, in a fixed order, mean over slides and repeats."""

    name: str
    task: str
    splits: str
    patients: tuple[str, ...]
    truth: tuple[tuple[str, ...], ...]
    said: Array
    classes: tuple[str, ...] = ()


def _load(path: Path, name: str) -> _Finished:
    try:
        document = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a finished run of wsipipe train ({error}).") from error
    rows = read_table(path / "predictions.csv")
    survival = "risk" in rows[0]
    truth_columns = ("time", "event") if survival else ("y_true",)
    columns = ["risk"] if survival else [c for c in rows[0] if c.startswith("p_")] or ["y_pred"]
    values: dict[str, list[list[float]]] = defaultdict(list)
    truth = {}
    for row in rows:
        known = tuple(row[c] for c in truth_columns)
        if known[0]:
            truth[row["patient_id"]] = known
            values[row["patient_id"]].append([float(row[c]) for c in columns])
    patients = tuple(sorted(truth))
    said = np.array([np.mean(values[p], axis=0) for p in patients])
    labels = tuple(truth[p] for p in patients)
    # The order of the columns is the model's order of classes, numbers by value: 2 before 10.
    classes = tuple(c[2:] for c in columns if c.startswith("p_"))
    return _Finished(
        name, document["task"], document["splits_sha256"], patients, labels, said, classes
    )


def _statistic(run: _Finished) -> tuple[str, Statistic, NDArray[np.int64] | None]:
    """Name, figure as a function of weights, and strata to draw within."""
    if run.task == "survival":
        time, event = (np.array([float(t[i]) for t in run.truth]) for i in (0, 1))
        return "c_index", concordance_statistic(run.said[:, 0], time, event), event.astype(int)
    if run.task == "regression":
        y = np.array([float(t[0]) for t in run.truth])
        return "r2", lambda w: regression_statistics(run.said[:, 0], y, w)["r2"], None
    truth = np.array([run.classes.index(t[0]) for t in run.truth])
    n = run.said.shape[1]
    if n == 2:
        return "auroc", lambda w: auroc(run.said[:, 1], truth == 1, w), truth
    said = run.said.argmax(axis=1)
    return (
        "balanced_accuracy",
        lambda w: from_confusion(confusion(truth, said, n, w))["balanced_accuracy"],
        truth,
    )


def compare_runs(paths: Sequence[str | Path], *, draws: int = 2000) -> list[dict[str, Any]]:
    """Test every pair of runs; p values are adjusted over all pairs.

    Returns:
        One dictionary a pair: difference first - second, its 95 % interval, p, Holm's p.

    Raises:
        ConfigError: Fewer than two runs, or other tasks, patients, labels or folds.
    """
    if len(paths) < 2:
        raise ConfigError("Name two runs or more.")
    names = [Path(p).name for p in paths]
    if len(set(names)) < len(names):  # a/mil and b/mil
        names = [str(p) for p in paths]
    runs = [_load(Path(p), name) for p, name in zip(paths, names, strict=True)]
    for run in runs[1:]:
        for field in ("task", "classes", "patients", "truth", "splits"):
            if getattr(run, field) != getattr(runs[0], field):
                raise ConfigError(
                    f"{runs[0].name} and {run.name} differ in their {field}: no paired test.",
                    "Train both with the same labels and --splits OUT/splits.csv of the first.",
                )
    out: list[dict[str, Any]] = []
    p_values: list[float] = []
    for a, b in itertools.combinations(runs, 2):
        (metric, first, layer), (_, second, _) = _statistic(a), _statistic(b)
        value, low, high, p = paired_bootstrap(
            first, second, len(a.patients), draws=draws, layer=layer
        )
        test = "paired bootstrap"
        if metric == "auroc":
            assert layer is not None
            _, p = delong_test(a.said[:, 1], b.said[:, 1], layer == 1)
            test = "DeLong"
        p_values.append(p)
        out.append(
            {
                "first": a.name, "second": b.name, "metric": metric, "difference": value,
                "ci_low": low, "ci_high": high, "p": p, "test": test,
            }
        )  # fmt: skip
    for row, adjusted in zip(out, holm(p_values), strict=True):
        row["p_holm"] = adjusted
    return out
