"""Intervals by bootstrap over patients (Efron's BCa), and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "bca_from_draws", "bca_interval", "draw_weights", "holm", "paired_bootstrap"]

#: From weights (R, P) to values (R,).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; NaN where it cannot be had."""

    value: float
    low: float
    high: float
    draws: int
    method: str


def draw_weights(
    n: int, draws: int, seed: int, layer: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """(draws, n) how often each patient is drawn; within strata where `layer` is given."""
    rng = np.random.default_rng(seed)
    out = np.zeros((draws, n))
    groups = (
        [np.arange(n)] if layer is None else [np.flatnonzero(layer == v) for v in np.unique(layer)]
    )
    for group in groups:
        picks = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=draws)
        out[:, group] = picks
    return out


def bca_interval(
    statistic: Statistic,
    n: int,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    layer: NDArray[np.int64] | None = None,
) -> Interval:
    """Bias-corrected and accelerated interval (Efron 1987), patients as units.

    Args:
        statistic: From weights (R, n) to (R,).
        layer: Strata to draw within (classes; events), so that no draw lacks one.
    """
    value = statistic(np.ones((1, n)))[0]
    found = statistic(draw_weights(n, draws, seed, layer))
    return bca_from_draws(float(value), found, statistic(1 - np.eye(n)), level=level)


def bca_from_draws(
    value: float,
    found: NDArray[np.float64],
    left_out: NDArray[np.float64],
    *,
    level: float = 0.95,
) -> Interval:
    """The interval from values that are already there.

    Args:
        found: (R,) by draw.
        left_out: (n,) with each patient left out once: the acceleration.
    """
    from scipy.special import ndtr, ndtri

    draws = len(found)
    found = found[np.isfinite(found)]
    if len(left_out) < 3 or not np.isfinite(value) or len(found) < draws // 2 or not len(found):
        return Interval(value, np.nan, np.nan, len(found), "none")
    if np.ptp(found) == 0:
        # All draws agree (a perfect score): nothing to correct, and nothing to learn.
        return Interval(value, value, value, len(found), "bca")
    below = ((found < value).sum() + 0.5 * (found == value).sum()) / len(found)
    bias = ndtri(np.clip(below, 1 / (2 * len(found)), 1 - 1 / (2 * len(found))))
    left_out = left_out[np.isfinite(left_out)]
    centred = left_out.mean() - left_out
    spread = (centred**2).sum() ** 1.5
    accel = float((centred**3).sum() / (6 * spread)) if spread > 0 else 0.0
    z = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = ndtr(bias + (bias + z) / (1 - accel * (bias + z)))
    low, high = np.quantile(found, np.clip(shifted, 0, 1))
    return Interval(value, float(low), float(high), len(found), "bca")


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    n: int,
    *,
    draws: int = 2000,
    seed: int = 0,
    layer: NDArray[np.int64] | None = None,
) -> tuple[float, float, float, float]:
    """Difference first - second on the same patients: value, interval, two-sided p."""
    weights = draw_weights(n, draws, seed, layer)
    ones = np.ones((1, n))
    value = float((first(ones) - second(ones))[0])
    found = first(weights) - second(weights)
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [0.025, 0.975])
    tail = min((found <= 0).mean(), (found >= 0).mean())
    return value, float(low), float(high), float(min(1.0, 2 * max(tail, 1 / len(found))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    order = np.argsort(p_values)
    out, worst = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = worst
    return out.tolist()
