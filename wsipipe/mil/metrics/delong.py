"""DeLong's variance of the AUC by midranks (Sun and Xu, IEEE Signal Processing Letters 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["delong_interval", "delong_test"]


def _parts(
    scores: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC of each of K scores (K, P), and their covariance (K, K)."""
    from scipy.stats import rankdata

    pos, neg = scores[:, positive], scores[:, ~positive]
    m, n = pos.shape[1], neg.shape[1]
    joint = rankdata(np.concatenate([pos, neg], axis=1), axis=1)
    v_pos = (joint[:, :m] - rankdata(pos, axis=1)) / n
    v_neg = 1 - (joint[:, m:] - rankdata(neg, axis=1)) / m
    auc = v_pos.mean(axis=1)
    cov = np.atleast_2d(np.cov(v_pos)) / m + np.atleast_2d(np.cov(v_neg)) / n
    return auc, cov


def delong_interval(
    score: NDArray[np.float64], positive: NDArray[np.bool_], level: float = 0.95
) -> tuple[float, float, float]:
    """AUC and its interval, on the logit scale so that it stays within [0, 1].

    Returns:
        (auc, low, high); the bounds are NaN with fewer than two of a class.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm

    if positive.sum() < 2 or (~positive).sum() < 2:
        return np.nan, np.nan, np.nan
    auc, cov = _parts(score[None], positive)
    a, se = float(auc[0]), float(np.sqrt(cov[0, 0]))
    if se == 0 or a in (0.0, 1.0):
        return a, a, a
    half = norm.ppf((1 + level) / 2) * se / (a * (1 - a))
    return a, float(expit(logit(a) - half)), float(expit(logit(a) + half))


def delong_test(
    first: NDArray[np.float64], second: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[float, float]:
    """Difference of two AUCs on the same patients, and its two-sided p."""
    from scipy.stats import norm

    auc, cov = _parts(np.stack([first, second]), positive)
    variance = cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]
    difference = float(auc[0] - auc[1])
    if variance <= 0:
        return difference, 1.0 if difference == 0 else 0.0
    return difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
