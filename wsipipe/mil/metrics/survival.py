"""Survival: concordance (weighted, for the bootstrap); lifelines' and scikit-survival's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "breslow_survival",
    "concordance_statistic",
    "discrete_survival",
    "integrated_brier",
    "ipcw_concordance",
    "kaplan_meier",
    "log_rank",
]

Array = NDArray[np.float64]


def concordance_statistic(risk: Array, time: Array, event: Array) -> Any:
    """Harrell's C as a function of weights (R, P) -> (R,).

    A pair counts if the earlier of two times is an event (or times are equal and one is censored);
    equal risks count half. Risks within 1e-8 are equal.
    """
    earlier = (time[:, None] < time[None]) | ((time[:, None] == time[None]) & (event[None] == 0))
    comparable = earlier & (event[:, None] == 1)
    np.fill_diagonal(comparable, False)
    gap = risk[:, None] - risk[None]
    won = np.where(np.abs(gap) <= 1e-8, 0.5, (gap > 0).astype(float)) * comparable
    pairs = comparable.astype(float)

    def statistic(weights: Array) -> Array:
        num = np.einsum("rp,rp->r", weights @ won, weights)
        den = np.einsum("rp,rp->r", weights @ pairs, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(den > 0, num / den, np.nan)

    return statistic


def ipcw_concordance(
    train_time: Array, train_event: Array, time: Array, event: Array, risk: Array
) -> float:
    """Uno's C, censoring weighted by the training part; NaN where it is not defined.

    Deaths beyond the last training time have no censoring weight and count for nothing; who lived
    so long is still compared with those who died before.
    """
    from sksurv.metrics import concordance_index_ipcw
    from sksurv.util import Surv

    train = Surv.from_arrays(train_event.astype(bool), train_time)
    last = float(train_time.max())
    if event[time < last].sum() < 2:
        return float("nan")
    test = Surv.from_arrays(event.astype(bool), time)
    try:
        return float(concordance_index_ipcw(train, test, risk, tau=last)[0])
    except ValueError:
        # The censoring curve reaches zero within the test times: not defined.
        return float("nan")


def breslow_survival(
    train_time: Array, train_event: Array, train_risk: Array, risk: Array, at: Array
) -> Array:
    """S(t | x) = exp(-H0(t) exp(risk)), Breslow's H0 from the training part. (P, len(at))."""
    order = np.argsort(train_time)
    t, e, h = train_time[order], train_event[order], np.exp(train_risk[order])
    at_risk = np.cumsum(h[::-1])[::-1]
    first = np.searchsorted(t, t, side="left")  # ties share the whole risk set
    steps = np.where(e == 1, 1 / at_risk[first], 0.0)
    hazard = np.array([steps[t <= a].sum() for a in at])
    return np.exp(-hazard[None] * np.exp(risk)[:, None])  # type: ignore[no-any-return]


def discrete_survival(hazards: Array, edges: Array, last: float, at: Array) -> Array:
    """S(t | x) of hazards by bin: (P, K), with inner edges (K - 1,) and the end of the last bin.

    Events are taken as even within a bin ("constant density", Kvamme and Borgan 2021). Returns
    (P, len(at)).
    """
    knots = np.concatenate([[0.0], edges, [max(last, edges[-1])]])
    start = np.ones((len(hazards), 1))
    curves = np.hstack([start, np.cumprod(1 - hazards, axis=1)])
    return np.stack([np.interp(at, knots, curve) for curve in curves])


def integrated_brier(
    train_time: Array, train_event: Array, time: Array, event: Array, curves: Array, at: Array
) -> float:
    """Integrated Brier score over the times `at`; NaN where it is not defined."""
    from sksurv.metrics import integrated_brier_score
    from sksurv.util import Surv

    train = Surv.from_arrays(train_event.astype(bool), train_time)
    # Who is followed beyond the last training time is alive at all of `at`: cutting there changes
    # no term, and censoring weights are defined.
    beyond = time > train_time.max()
    test = Surv.from_arrays(event.astype(bool) & ~beyond, np.minimum(time, train_time.max()))
    try:
        return float(integrated_brier_score(train, test, curves, at))
    except ValueError:
        return float("nan")


def kaplan_meier(time: Array, event: Array) -> tuple[Array, Array, Array, Array]:
    """Times, survival, and its 95 % band (lifelines)."""
    from lifelines import KaplanMeierFitter

    fit = KaplanMeierFitter().fit(time, event)
    band = fit.confidence_interval_survival_function_.to_numpy()
    return (
        fit.survival_function_.index.to_numpy(dtype=float),
        fit.survival_function_.to_numpy()[:, 0],
        band[:, 0],
        band[:, 1],
    )


def log_rank(time: Array, event: Array, high: NDArray[np.bool_]) -> float:
    """p of equal survival in two groups (lifelines); NaN if one is empty."""
    from lifelines.statistics import logrank_test

    if high.all() or not high.any():
        return float("nan")
    found = logrank_test(time[high], time[~high], event[high], event[~high])
    return float(found.p_value)
