"""A few labels and many features: self-training and label spreading on what an encoder gives.

labels = propagate_labels(features, labels)        # −1 = unknown -> a class, or −1 where unsure
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError

__all__ = ["Propagated", "propagate_labels"]

_METHODS = ("self-training", "label-spreading")


@dataclass(frozen=True)
class Propagated:
    """Labels for all rows.

    Attributes:
        labels: (N,) int64: given labels, propagated ones, −1 where confidence is below threshold.
        confidence: (N,) float64 of the most likely class.
    """

    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]


def propagate_labels(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    method: str = "self-training",
    threshold: float = 0.75,
    neighbours: int = 10,
) -> Propagated:
    """Give labels to unlabelled rows.

    Args:
        features: (N, D), one row a tile or slide.
        labels: (N,), −1 = unknown.
        method: "self-training" (logistic regression taught by its own sure answers, Yarowsky 1995)
            or "label-spreading" (over a graph of nearest neighbours, Zhou et al. 2004).
        threshold: Confidence below which a row stays unknown.
        neighbours: Of the graph.

    Raises:
        ConfigError: Fewer than two classes have a label, or the method is unknown.
    """
    if method not in _METHODS:
        raise ConfigError(f"unknown method {method!r}.", f"One of {', '.join(_METHODS)}.")
    known = labels >= 0
    if len(np.unique(labels[known])) < 2:
        raise ConfigError("labels of two classes at least are needed.")
    x = np.asarray(features, np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    if method == "self-training":
        from sklearn.linear_model import LogisticRegression
        from sklearn.semi_supervised import SelfTrainingClassifier

        model = SelfTrainingClassifier(LogisticRegression(max_iter=1000), threshold=threshold)
    else:
        from sklearn.semi_supervised import LabelSpreading

        model = LabelSpreading(kernel="knn", n_neighbors=neighbours, alpha=0.2)
    model.fit(x, labels)
    probability = model.predict_proba(x)
    confidence = probability.max(axis=1)
    guess = model.classes_[probability.argmax(axis=1)]
    out = np.where(confidence >= threshold, guess, -1)
    out[known] = labels[known]
    return Propagated(out.astype(np.int64), confidence)
