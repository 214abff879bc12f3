"""From out-of-fold predictions to figures with intervals. Everything here is about patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.mil.metrics.bootstrap import bca_from_draws, draw_weights
from wsipipe.mil.metrics.classification import (
    auprc,
    auroc,
    brier,
    confusion,
    expected_calibration_error,
    from_confusion,
)
from wsipipe.mil.metrics.delong import delong_interval
from wsipipe.mil.metrics.regression import regression_statistics
from wsipipe.mil.metrics.survival import concordance_statistic
from wsipipe.mil.targets import Target

__all__ = ["OutOfFold", "evaluate"]

Array = NDArray[np.float64]
Statistics = Callable[[Array], dict[str, Array]]


@dataclass(frozen=True)
class OutOfFold:
    """What was predicted for patients by models that never saw them.

    Attributes:
        patients: (P,) of those with a label.
        y: (P, 2).
        outputs: repeat -> (P, C) probabilities, (P, 1) values or risks; NaN where not tested.
        fold_of: repeat -> (P,) fold that tested, -1 = none.
        thresholds: name -> repeat -> (P,) cut of the fold that tested the patient.
        folds: (repeat, fold) of the plan, in its order, those that failed included; empty = those
            that tested anybody.
    """

    patients: tuple[str, ...]
    y: Array
    outputs: Mapping[int, Array]
    fold_of: Mapping[int, NDArray[np.int64]]
    thresholds: Mapping[str, Mapping[int, Array]] = field(default_factory=dict)
    folds: tuple[tuple[int, int], ...] = ()


def class_statistics(
    target: Target, p: Array, truth: NDArray[np.int64], cuts: Mapping[str, Array]
) -> Statistics:
    """All figures of a classification as one function of weights."""
    said = p.argmax(axis=1)
    n_classes = len(target.classes)

    def statistics(weights: Array) -> dict[str, Array]:
        if n_classes == 2:
            out = {
                "auroc": auroc(p[:, 1], truth == 1, weights),
                "auprc": auprc(p[:, 1], truth == 1, weights),
            }
        else:
            areas = np.array([auroc(p[:, c], truth == c, weights) for c in range(n_classes)])
            precise = np.array([auprc(p[:, c], truth == c, weights) for c in range(n_classes)])
            # Macro mean of one against the rest; undefined if a class is absent.
            out = {"auroc": areas.mean(axis=0), "auprc": precise.mean(axis=0)}
            for c, name in enumerate(target.classes):
                out[f"auroc_{name}"] = areas[c]
        out |= from_confusion(confusion(truth, said, n_classes, weights))
        out["brier"] = brier(p, truth, weights)
        out["ece"] = expected_calibration_error(p, truth, weights)
        for name, cut in cuts.items():
            at = from_confusion(confusion(truth, (p[:, 1] >= cut).astype(int), 2, weights))
            for figure in ("sensitivity", "specificity", "balanced_accuracy"):
                out[f"{figure}_at_{name}"] = at[figure]
        return out

    return statistics


def _statistics(target: Target, data: OutOfFold, repeat: int, rows: Any) -> Statistics:
    outputs, y = data.outputs[repeat][rows], data.y[rows]
    if target.task == "classification":
        cuts = {name: by[repeat][rows] for name, by in data.thresholds.items()}
        return class_statistics(target, outputs, y[:, 0].astype(np.int64), cuts)
    if target.task == "regression":
        return lambda w: regression_statistics(outputs[:, 0], y[:, 0], w)
    concordance = concordance_statistic(outputs[:, 0], y[:, 0], y[:, 1])
    return lambda w: {"c_index": concordance(w)}


def evaluate(
    target: Target, data: OutOfFold, *, draws: int = 2000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Figures by name: mean over folds, per fold, pooled, and the interval of the pooled.

    A patient's predictions of all repeats are drawn together; within one draw the figure of each
    repeat is taken over its pooled predictions, and these are averaged (a repeat whose few tested
    patients lack a class in this draw has no figure).
    """
    repeats = sorted(data.outputs)
    tested = {r: np.flatnonzero(data.fold_of[r] >= 0) for r in repeats}
    pooled = {r: _statistics(target, data, r, tested[r]) for r in repeats}
    n = len(data.patients)

    def figures(weights: Array) -> dict[str, Array]:
        parts = [pooled[r](weights[:, tested[r]]) for r in repeats]
        return {k: _mean_of_known(np.array([p[k] for p in parts])) for k in parts[0]}

    layer = None
    if target.task == "classification":
        layer = data.y[:, 0].astype(np.int64)
    elif target.task == "survival":
        layer = data.y[:, 1].astype(np.int64)
    # The same draws serve all figures: each weight matrix is worked through once.
    values = figures(np.ones((1, n)))
    drawn = figures(draw_weights(n, draws, seed, layer))
    left_out = figures(1 - np.eye(n))
    per_fold = _per_fold(target, data, repeats)
    out: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        by_fold = [f.get(name, math.nan) for f in per_fold]
        finite = [v for v in by_fold if math.isfinite(v)]
        found = bca_from_draws(float(value[0]), drawn[name], left_out[name])
        out[name] = {
            "mean": _number(float(np.mean(finite)) if finite else math.nan),
            "sd": _number(float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan),
            "per_fold": [_number(v) for v in by_fold],
            "pooled": _number(found.value),
            "ci_low": _number(found.low),
            "ci_high": _number(found.high),
            "n_patients": n,
            "method": f"patient bootstrap, {found.method}, {found.draws} draws",
        }
    if target.task == "classification" and len(target.classes) == 2 and len(repeats) == 1:
        rows = tested[repeats[0]]
        _, low, high = delong_interval(data.outputs[repeats[0]][rows, 1], data.y[rows, 0] == 1)
        out["auroc"] |= {"delong_low": _number(low), "delong_high": _number(high)}
    return out


def _mean_of_known(values: Array) -> Array:
    """(K, R) -> (R,) mean of those that are numbers; NaN where none is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean


def _per_fold(target: Target, data: OutOfFold, repeats: Sequence[int]) -> list[dict[str, float]]:
    """Figures of each fold; empty for a fold that failed, so that places stay folds."""
    tested = [(r, f) for r in repeats for f in sorted(set(data.fold_of[r].tolist()) - {-1})]
    out: list[dict[str, float]] = []
    for repeat, fold in data.folds or tested:
        if (repeat, fold) not in tested:
            out.append({})
            continue
        rows = np.flatnonzero(data.fold_of[repeat] == fold)
        found = _statistics(target, data, repeat, rows)(np.ones((1, len(rows))))
        out.append({k: float(v[0]) for k, v in found.items()})
    return out


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None
