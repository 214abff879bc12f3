"""Is the encoder learning, or has it collapsed? Numbers on features, and the rule that stops.

Loss and probes see collapse late: a teacher that answers the same for every tile still gave a k-NN
of .61 against .59 at random, while the features' spread had fallen to a seventh of a healthy one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CollapseAlarm", "feature_health", "knn_accuracy", "linear_accuracy", "rankme"]


def rankme(features: Tensor, center: bool = True, eps: float = 1e-7) -> float:
    """Effective rank exp(−Σ p log p), p = s/Σs + eps, s the singular values (RankMe 2210.02885).

    Centred by default: the class token of a ViT has a large mean, which hides the rest (5.0 of 96
    raw for a network with k-NN .91).

    Args:
        features: (N, D).
        center: Subtract the mean over N first.
        eps: As in the paper.
    """
    x = features if features.dtype == torch.float64 else features.float()
    if center:
        x = x - x.mean(dim=0, keepdim=True)
    s = torch.linalg.svdvals(x)
    p = s / s.sum().clamp_min(torch.finfo(x.dtype).tiny) + eps
    return float(torch.exp(-(p * p.log()).sum()))


def feature_health(features: Tensor) -> dict[str, float]:
    """Spread of features: `feature_std`, `rankme`, `mean_cosine`.

    Args:
        features: (N, D), N >= 2.

    Returns:
        feature_std: Mean over dimensions of the standard deviation of L2-normalised features;
            1/sqrt(D) for features spread over the sphere, 0 when collapsed.
        rankme: Effective rank of the centred features, at most min(N − 1, D).
        mean_cosine: Mean pairwise cosine.
    """
    z = F.normalize(features.float(), dim=1)
    n = z.shape[0]
    cosine = (z.sum(dim=0).square().sum() - n) / (n * (n - 1))
    return {
        "feature_std": float(z.std(dim=0).mean()),
        "rankme": rankme(features),
        "mean_cosine": float(cosine),
    }


def knn_accuracy(
    train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, k: int = 20
) -> float:
    """Share of test rows whose k nearest training rows by cosine vote for their class.

    Args:
        train: (N, D) features. train_y: (N,) int64.
        test: (M, D) features. test_y: (M,) int64.
        k: Neighbours; each has one vote, ties go to the lower class.
    """
    similarity = F.normalize(test.float(), dim=1) @ F.normalize(train.float(), dim=1).T
    nearest = similarity.topk(min(k, train.shape[0]), dim=1).indices
    classes = int(max(train_y.max(), test_y.max())) + 1
    votes = F.one_hot(train_y[nearest], classes).sum(dim=1)
    return float((votes.argmax(dim=1) == test_y).float().mean())


def linear_accuracy(
    train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, c: float = 1.0
) -> float:
    """Test accuracy of logistic regression on standardised features.

    Args:
        train: (N, D) features. train_y: (N,) int64.
        test: (M, D) features. test_y: (M,) int64.
        c: Inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    model = LogisticRegression(max_iter=1000, C=c)
    model.fit(((train - mean) / std).numpy(), train_y.numpy())
    return float(model.score(((test - mean) / std).numpy(), test_y.numpy()))


@dataclass(frozen=True)
class Limits:
    """When features count as collapsed.

    Attributes:
        std: Smallest feature_std, as a share of 1/sqrt(D).
        rank: Smallest centred RankMe.
        entropy: Teacher entropy, as a share of ln K, above which every tile gets the same answer.
            A young but healthy DINOv2 run shows .98; a uniform teacher 1 to three digits.
        patience: Checks in a row that must fail.
        grace: Share of all steps during which nothing is judged.
    """

    std: float = 0.02
    rank: float = 3.0
    entropy: float = 0.998
    patience: int = 3
    grace: float = 0.1


class CollapseAlarm:
    """Counts bad checks in a row and says when to stop.

    Args:
        limits: The rule.
        total_steps: Planned steps.
    """

    def __init__(self, limits: Limits, total_steps: int) -> None:
        self.limits, self.total_steps = limits, total_steps
        self.bad = 0
        self.reasons: list[str] = []

    def check(self, step: int, dim: int, metrics: dict[str, float]) -> str | None:
        """Judge one set of metrics; a sentence if training must stop, else None."""
        if step < self.limits.grace * self.total_steps:
            return None
        self.reasons = self._reasons(dim, metrics)
        self.bad = self.bad + 1 if self.reasons else 0
        if self.bad < self.limits.patience:
            return None
        return f"collapsed at step {step}: {'; '.join(self.reasons)} ({self.bad} checks in a row)"

    def _reasons(self, dim: int, metrics: dict[str, float]) -> list[str]:
        limits, found = self.limits, []
        least = limits.std / math.sqrt(dim)
        if metrics["feature_std"] < least:
            found.append(f"feature std {metrics['feature_std']:.2g} below {least:.2g}")
        if metrics["rankme"] < limits.rank:
            found.append(f"effective rank {metrics['rankme']:.2f} below {limits.rank:g}")
        share = metrics.get("teacher_entropy_share")
        if share is not None and share > limits.entropy:
            found.append(f"teacher entropy {share:.3f} of ln K, the same answer for every tile")
        return found
