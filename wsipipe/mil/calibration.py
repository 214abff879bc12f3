"""What is learned from inner validation and then frozen: temperature, thresholds, risk scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.mil.losses import Criterion

__all__ = ["choose_thresholds", "fit_calibration", "fit_temperature", "softmax", "target_outputs"]

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    """Over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def fit_temperature(logits: Array, truth: NDArray[np.int64]) -> float:
    """T > 0 that minimises the log loss of softmax(logits / T) (Guo et al., ICML 2017).

    Bounded to [0.05, 20]: a handful of separable patients would drive it to the end.
    """
    from scipy.optimize import minimize_scalar

    if len(truth) < 5 or len(np.unique(truth)) < 2:
        return 1.0

    def loss(log_t: float) -> float:
        p = softmax(logits / np.exp(log_t))
        return float(-np.log(np.maximum(p[np.arange(len(truth)), truth], 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def choose_thresholds(p: Array, truth: NDArray[np.int64]) -> dict[str, float]:
    """Cuts on the probability of the second class, from validation patients.

    "youden" has the largest sensitivity + specificity (of several, the middle one);
    "sensitivity_95" is the highest cut that still finds 95 % of the positives.
    """
    positive = truth == 1
    if not positive.any() or positive.all():
        return {"youden": 0.5, "sensitivity_95": 0.5}
    values = np.unique(p)
    cuts = np.concatenate([(values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    cuts = np.concatenate([[max(0.0, values[0] - 1e-6)], cuts])
    sensitivity = np.array([(p[positive] >= c).mean() for c in cuts])
    specificity = np.array([(p[~positive] < c).mean() for c in cuts])
    score = sensitivity + specificity
    best = np.flatnonzero(score >= score.max() - 1e-12)
    enough = np.flatnonzero(sensitivity >= 0.95)
    return {
        "youden": float(cuts[best[len(best) // 2]]),
        "sensitivity_95": float(cuts[enough[-1]]),
    }


def fit_calibration(
    criterion: Criterion, logits: Array, y: Array, owners: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Learn from pooled inner validation what is frozen with the model.

    Args:
        logits: (V, all columns) of validation bags, each by a model that did not train on it.
        y: (V, 2).
        owners: (V,) patient of each bag; None = each bag its own. Thresholds are for a patient's
            mean over bags, as the figures are.
    """
    known = ~np.isnan(y[:, 0])
    owners = np.flatnonzero(known) if owners is None else owners[known]
    z, y = logits[known, criterion.start :][:, : criterion.target.width], y[known]
    if criterion.target.task == "classification":
        truth = y[:, 0].astype(np.int64)
        temperature = fit_temperature(z, truth)
        out: dict[str, Any] = {"temperature": temperature}
        if criterion.target.width == 2:
            _, first, place, bags = np.unique(
                owners, return_index=True, return_inverse=True, return_counts=True
            )
            p = np.bincount(place, softmax(z / temperature)[:, 1]) / bags
            out["thresholds"] = choose_thresholds(p, truth[first])
        return out
    if criterion.target.task == "survival":
        risk = raw_risk(criterion.target.loss, z, criterion.base)
        spread = float(risk.std()) if len(risk) > 1 else 1.0
        return {"centre": float(risk.mean()) if len(risk) else 0.0, "scale": spread or 1.0}
    return {}


def raw_risk(loss: str, z: Array, base: Array | float = 0.0) -> Array:
    """Higher = sooner. Cox: the log hazard; discrete time: minus the expected bins survived.

    Args:
        base: `Criterion.base` of the discrete-time likelihood.
    """
    if loss == "cox":
        return z[..., 0]
    return -np.cumprod(1 / (1 + np.exp(z + base)), axis=-1).sum(axis=-1)  # type: ignore[no-any-return]


def target_outputs(said: Mapping[str, Any], calibration: Mapping[str, Any], logits: Array) -> Array:
    """Logits of members as what users see, averaged over members.

    Args:
        said: `Criterion.describe()` of the target.
        logits: (M, B, all columns).

    Returns:
        (B, C) probabilities; (B, 1) values in the label's unit, or standardised risks.
    """
    width = {
        "classification": len(said["classes"]),
        "regression": 1,
        "survival": said["bins"] if said["loss"] == "nll" else 1,
    }[said["task"]]
    z = logits[..., said["start"] : said["start"] + width]
    if said["task"] == "classification":
        p: Array = softmax(z / calibration.get("temperature", 1.0)).mean(axis=0)
        return p
    if said["task"] == "regression":
        values: Array = z.mean(axis=0) * said["scale"] + said["centre"]
        return values
    # Models of earlier versions have no base.
    base = np.array(said.get("base") or 0.0)
    risk: Array = raw_risk(said["loss"], z, base).mean(axis=0)
    risk = (risk - calibration.get("centre", 0.0)) / calibration.get("scale", 1.0)
    return risk[:, None]
