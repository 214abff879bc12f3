"""MAE, R2, Pearson, Spearman for R weightings at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["regression_statistics"]

Array = NDArray[np.float64]


def _pearson(a: Array, b: Array, weights: Array) -> Array:
    total = weights.sum(axis=1)
    # From one of their own values, not from 0: the difference of two large squares is noise.
    a, b = a - a[0], b - b[0]
    ma, mb = weights @ a / total, weights @ b / total
    cov = weights @ (a * b) / total - ma * mb
    va, vb = weights @ a**2 / total - ma**2, weights @ b**2 / total - mb**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((va > 1e-300) & (vb > 1e-300), cov / np.sqrt(np.abs(va * vb)), np.nan)


def _weighted_ranks(a: Array, weights: Array) -> Array:
    """(R, P) midranks of `a` where patient p counts weights[r, p] times."""
    levels, place = np.unique(a, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(levels)))
    mass = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(mass, axis=1) - 0.5 * mass
    return middle[:, place]


def _spearman(a: Array, b: Array, weights: Array) -> Array:
    ra, rb = _weighted_ranks(a, weights), _weighted_ranks(b, weights)
    total = weights.sum(axis=1, keepdims=True)
    ra, rb = (r - (weights * r).sum(axis=1, keepdims=True) / total for r in (ra, rb))
    va, vb = (weights * ra**2).sum(axis=1), (weights * rb**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (weights * ra * rb).sum(axis=1) / np.sqrt(va * vb)
    return np.where((va > 0) & (vb > 0), rho, np.nan)


def regression_statistics(said: Array, truth: Array, weights: Array) -> dict[str, Array]:
    """(P,), (P,), (R, P) -> figures (R,)."""
    total = weights.sum(axis=1)
    error = said - truth
    truth = truth - truth[0]  # see _pearson
    mean = weights @ truth / total
    spread = weights @ truth**2 / total - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = np.where(spread > 1e-300, 1 - (weights @ error**2 / total) / spread, np.nan)
    return {
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(weights @ error**2 / total),
        "r2": r2,
        "pearson": _pearson(said, truth, weights),
        "spearman": _spearman(said, truth, weights),
    }
