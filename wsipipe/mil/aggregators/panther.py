"""PANTHER: a bag as a mixture of prototypes (Song et al., CVPR 2024; arXiv:2405.11643)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["Panther", "mixture_summary"]


def mixture_summary(
    x: Tensor, prototypes: Tensor, *, iterations: int = 1, tau: float = 1.0, eps: float = 1.0
) -> tuple[Tensor, Tensor]:
    """MAP estimate of a diagonal Gaussian mixture around fixed prototypes.

    The prior of component k is the prototype m_k with variance `eps`, worth `tau` tiles.

    Args:
        x: (n, d).
        prototypes: (p, d).

    Returns:
        Summary (p + 2 p d): weights, means, variances; and responsibilities (n, p).
    """
    p, d = prototypes.shape
    variance0 = torch.full_like(prototypes, eps)
    weight = x.new_full((p,), 1 / p)
    mean, variance = prototypes, variance0
    share = x.new_zeros((len(x), p))
    for _ in range(iterations):
        inverse = 1 / variance
        quadratic = x.square() @ inverse.T - 2 * x @ (mean * inverse).T
        constant = (mean.square() * inverse + variance.log()).sum(dim=1) + d * math.log(2 * math.pi)
        share = torch.softmax(weight.log() - 0.5 * (quadratic + constant), dim=1)
        total = share.sum(dim=0) + tau
        weight = total / total.sum()
        mean = (share.T @ x + tau * prototypes) / total[:, None]
        second = share.T @ x.square() + tau * (variance0 + prototypes.square())
        variance = second / total[:, None] - mean.square()
    return torch.cat([weight, mean.flatten(), variance.flatten()]), share


class Panther(Aggregator):
    """Mixture summary of each bag, then a linear head.

    Prototypes are not learned by gradient: `fit_prototypes` sets them by k-means on tiles of the
    training part, which the trainer does before the first step.

    Args:
        prototypes: Components p.
        iterations, tau, eps: See `mixture_summary`.
        normalise: Scale features to unit length first.
    """

    duplication_invariant = False  # The prior is worth a fixed number of tiles.

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        prototypes: int = 16,
        iterations: int = 1,
        tau: float = 1.0,
        eps: float = 1.0,
        normalise: bool = True,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if min(prototypes, iterations) < 1 or min(tau, eps) <= 0:
            raise ConfigError("panther needs prototypes and iterations >= 1, tau and eps > 0.")
        self.iterations, self.tau, self.eps, self.normalise = iterations, tau, eps, normalise
        start = torch.randn(prototypes, in_dim) / math.sqrt(in_dim)
        self.prototypes: Tensor
        self.register_buffer("prototypes", start)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(prototypes * (1 + 2 * in_dim), n_classes)

    def fit_prototypes(self, tiles: Tensor, seed: int = 0) -> None:
        """Set the prototypes by k-means on tiles (n, in_dim) of the training part."""
        from sklearn.cluster import KMeans

        x = self._prepare(tiles.float()).cpu().numpy()
        k = min(len(self.prototypes), len(x))
        centres = KMeans(n_clusters=k, n_init=3, random_state=seed).fit(x).cluster_centers_
        self.prototypes[:k] = torch.as_tensor(centres, dtype=self.prototypes.dtype)

    def _prepare(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalise else x

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        x = self._prepare(x.float())
        pairs = [
            mixture_summary(
                part,
                self.prototypes.float(),
                iterations=self.iterations,
                tau=self.tau,
                eps=self.eps,
            )
            for part in bags.split(x)
        ]
        summary = torch.stack([s for s, _ in pairs])
        extras = {"summary": summary, "share": torch.cat([q for _, q in pairs])}
        z = self.drop(summary).to(self.head.weight.dtype)
        return MILOutput(self.head(z).float(), extras=extras)
