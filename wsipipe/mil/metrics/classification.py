"""AUROC, AUPRC, accuracies, F1, MCC, kappa, Brier and ECE, for R weightings at once.

Each function takes weights (R, P): how often each of P patients counts in each of R draws. With one
row of ones they equal scikit-learn's; tests hold them to it. 2,000 bootstrap draws of ten metrics
would take scikit-learn half a minute a run, and these a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["auprc", "auroc", "brier", "confusion", "expected_calibration_error", "from_confusion"]

Weights = NDArray[np.float64]
Array = NDArray[np.float64]


def _safe(num: Array, den: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(den > 0, num / den, np.nan)


def auroc(score: Array, positive: NDArray[np.bool_], weights: Weights) -> Array:
    """Area under the ROC curve, ties half. (P,), (P,), (R, P) -> (R,); NaN with one class only."""
    order = np.argsort(score, kind="stable")
    s, pos, w = score[order], positive[order], weights[:, order]
    first = np.r_[True, s[1:] != s[:-1]]
    start = np.flatnonzero(first)
    w_pos = np.add.reduceat(w * pos, start, axis=1)
    w_neg = np.add.reduceat(w * ~pos, start, axis=1)
    below = np.cumsum(w_neg, axis=1) - w_neg
    won = (w_pos * (below + 0.5 * w_neg)).sum(axis=1)
    return _safe(won, w_pos.sum(axis=1) * w_neg.sum(axis=1))


def auprc(score: Array, positive: NDArray[np.bool_], weights: Weights) -> Array:
    """Average precision (no interpolation). (R,); NaN without positives."""
    order = np.argsort(-score, kind="stable")
    s, pos, w = score[order], positive[order], weights[:, order]
    start = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    hit = np.add.reduceat(w * pos, start, axis=1)
    seen = np.cumsum(np.add.reduceat(w, start, axis=1), axis=1)
    precision = np.nan_to_num(_safe(np.cumsum(hit, axis=1), seen))
    return _safe((hit * precision).sum(axis=1), hit.sum(axis=1))


def confusion(
    truth: NDArray[np.int64], said: NDArray[np.int64], n_classes: int, weights: Weights
) -> Array:
    """(R, C, C): rows are the truth."""
    out = np.zeros((len(weights), n_classes, n_classes))
    for i in range(n_classes):
        for j in range(n_classes):
            out[:, i, j] = weights[:, (truth == i) & (said == j)].sum(axis=1)
    return out


def from_confusion(matrix: Array) -> dict[str, Array]:
    """What follows from (R, C, C): a classical figure each, (R,).

    `f1` is that of class 1 for two classes, else the macro mean; `kappa` is unweighted.
    """
    n_classes = matrix.shape[1]
    total = matrix.sum(axis=(1, 2))
    diagonal = np.einsum("rii->ri", matrix)
    rows, cols = matrix.sum(axis=2), matrix.sum(axis=1)
    recall = np.where(rows > 0, _safe(diagonal, rows), np.nan)
    with np.errstate(invalid="ignore"):
        present = (rows > 0).sum(axis=1)
        balanced = _safe(np.nansum(recall, axis=1), present.astype(float))
    f1 = np.nan_to_num(_safe(2 * diagonal, rows + cols))
    expected = _safe((rows * cols).sum(axis=1), total**2)
    observed = _safe(diagonal.sum(axis=1), total)
    s2 = total**2
    cov_tp = diagonal.sum(axis=1) * total - (rows * cols).sum(axis=1)
    spread = np.sqrt((s2 - (cols**2).sum(axis=1)) * (s2 - (rows**2).sum(axis=1)))
    out = {
        "accuracy": observed,
        "balanced_accuracy": balanced,
        "f1": f1[:, 1] if n_classes == 2 else f1.mean(axis=1),
        "mcc": np.nan_to_num(_safe(cov_tp, spread)),
        "kappa": _safe(observed - expected, 1 - expected),
    }
    if n_classes == 2:
        out["sensitivity"], out["specificity"] = recall[:, 1], recall[:, 0]
    return out


def brier(p: Array, truth: NDArray[np.int64], weights: Weights) -> Array:
    """Mean squared distance of the probabilities from the truth. (P, C) -> (R,).

    Two classes: of the second class's probability alone (as scikit-learn); more: summed over
    classes.
    """
    hot = np.eye(p.shape[1])[truth]
    loss = (p[:, 1] - hot[:, 1]) ** 2 if p.shape[1] == 2 else ((p - hot) ** 2).sum(axis=1)
    return _safe(weights @ loss, weights.sum(axis=1))


def expected_calibration_error(
    p: Array, truth: NDArray[np.int64], weights: Weights, bins: int = 10
) -> Array:
    """Mean distance of confidence and accuracy over even bins of confidence. (R,)."""
    confidence, right = p.max(axis=1), (p.argmax(axis=1) == truth).astype(float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    hot = (place[:, None] == np.arange(bins)).astype(float)
    gap = np.abs(weights @ (hot * (confidence - right)[:, None]))
    return _safe(gap.sum(axis=1), weights.sum(axis=1))
