"""Models on one vector a bag, the mean of its tiles: linear probe, nearest neighbours, Cox net.

They are fitted in closed form by scikit-learn and scikit-survival, and keep plain tensors. A slide
encoder's own vector is a bag of one tile and goes through here as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments, rows_tensor

if TYPE_CHECKING:
    from wsipipe.mil.losses import Criterion
    from wsipipe.mil.targets import Target

__all__ = ["CoxNet", "KNearest", "LinearProbe"]


class _OnMean(Aggregator):
    """Shared: the mean of a bag's tiles, also in pieces."""

    def head_logits(self, vectors: Tensor) -> Tensor:
        """(B, in_dim) -> (B, n_classes)."""
        raise NotImplementedError

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        return MILOutput(self.head_logits(bags.mean(x.float())).float())

    def forward_chunks(self, bag: Any, chunk: int = 16384) -> MILOutput:
        """See `Aggregator.forward_chunks`."""
        total = torch.zeros(self.in_dim, dtype=torch.float64)
        for start in range(0, len(bag), chunk):
            total += rows_tensor(bag[start : start + chunk]).double().sum(dim=0).cpu()
        mean = (total / len(bag)).float()[None]
        return MILOutput(self.head_logits(mean.to(self.device)).float())


class LinearProbe(_OnMean):
    """Logistic regression (or ridge for numbers) on the mean tile.

    Args:
        c: Inverse strength of the L2 penalty; 0.5 as in published linear probes.
    """

    def __init__(self, in_dim: int, n_classes: int = 2, *, c: float = 0.5) -> None:
        super().__init__(in_dim, n_classes)
        if c <= 0:
            raise ConfigError(f"linear needs c > 0, not {c}.")
        self.c = c
        self.head = nn.Linear(in_dim, n_classes)

    def head_logits(self, vectors: Tensor) -> Tensor:
        """(B, in_dim) -> (B, n_classes)."""
        return self.head(vectors.to(self.head.weight.dtype))  # type: ignore[no-any-return]

    @torch.no_grad()
    def fit_vectors(self, vectors: Tensor, y: Tensor, criterion: Criterion, seed: int) -> bool:
        """See `Aggregator.fit_vectors`; other tasks than these are trained by gradient."""
        from sklearn.linear_model import LogisticRegression, Ridge

        x, first = vectors.double().numpy(), y[:, 0].double().numpy()
        if self.n_classes != criterion.target.width:
            return False  # several targets share the head
        if criterion.target.task == "regression":
            fit = Ridge(alpha=1 / self.c).fit(x, (first - criterion.centre) / criterion.scale)
            weight, bias = fit.coef_[None], np.array([fit.intercept_])
        elif criterion.target.task == "classification" and len(np.unique(first)) > 1:
            balanced = None if criterion.class_weights is None else "balanced"
            fit = LogisticRegression(
                C=self.c, class_weight=balanced, max_iter=5000, random_state=seed
            ).fit(x, first.astype(int))
            weight, bias = fit.coef_, fit.intercept_
            if len(weight) == 1:  # two classes: half of the margin to each side
                weight, bias = np.r_[-weight, weight] / 2, np.r_[-bias, bias] / 2
            full = np.zeros((self.n_classes, self.in_dim)), np.full(self.n_classes, -30.0)
            full[0][fit.classes_], full[1][fit.classes_] = weight, bias
            weight, bias = full
        else:
            return False
        self.head.weight.copy_(torch.from_numpy(weight))
        self.head.bias.copy_(torch.from_numpy(bias))
        return True


class KNearest(_OnMean):
    """Votes of the `k` nearest training bags by cosine, weighted by similarity (DINO's form).

    Args:
        k: Neighbours.
        temperature: Of the similarity.
        capacity: Training bags that the model can hold; further ones are left out at random.
    """

    vectors: Tensor
    votes: Tensor

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        k: int = 20,
        temperature: float = 0.07,
        capacity: int = 4096,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if min(k, temperature, capacity) <= 0:
            raise ConfigError("knn needs k, temperature and capacity above 0.")
        self.k, self.temperature = k, temperature
        self.register_buffer("vectors", torch.zeros(capacity, in_dim))
        self.register_buffer("votes", torch.zeros(capacity, n_classes))

    def head_logits(self, vectors: Tensor) -> Tensor:
        """(B, in_dim) -> (B, n_classes): log of the share of votes, or their mean value."""
        filled = self.votes.abs().sum(dim=1) > 0
        if not filled.any():
            return vectors.new_zeros((len(vectors), self.n_classes))
        known, votes = self.vectors[filled], self.votes[filled]
        similarity = F.normalize(vectors.float(), dim=1) @ known.T
        top, index = similarity.topk(min(self.k, len(known)), dim=1)
        weight = torch.softmax(top / self.temperature, dim=1)
        share = (weight[..., None] * votes[index]).sum(dim=1)
        return torch.log(share.clamp(min=1e-4))

    def check_targets(self, targets: Sequence[Target]) -> None:
        """See `Aggregator.check_targets`."""
        if len(targets) > 1 or targets[0].task != "classification":
            raise ConfigError("knn classifies one target.", "Use --aggregator linear or coxnet.")

    @torch.no_grad()
    def fit_vectors(self, vectors: Tensor, y: Tensor, criterion: Criterion, seed: int) -> bool:
        """See `Aggregator.fit_vectors`."""
        keep = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
        keep = keep[: len(self.vectors)]
        self.vectors.zero_()
        self.votes.zero_()
        self.vectors[: len(keep)] = F.normalize(vectors[keep], dim=1)
        self.votes[: len(keep)] = F.one_hot(y[keep, 0].long(), self.n_classes).float()
        return True


class CoxNet(_OnMean):
    """Cox regression with an elastic net on the mean tile (scikit-survival).

    Args:
        alpha: Strength of the penalty.
        l1_ratio: Share of L1.
    """

    def __init__(
        self, in_dim: int, n_classes: int = 1, *, alpha: float = 0.05, l1_ratio: float = 0.5
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.alpha, self.l1_ratio = alpha, l1_ratio
        self.head = nn.Linear(in_dim, n_classes)

    def head_logits(self, vectors: Tensor) -> Tensor:
        """(B, in_dim) -> (B, n_classes)."""
        return self.head(vectors.to(self.head.weight.dtype))  # type: ignore[no-any-return]

    def check_targets(self, targets: Sequence[Target]) -> None:
        """See `Aggregator.check_targets`."""
        if targets[0].loss != "cox":
            raise ConfigError("coxnet needs --time and --event, with the Cox loss.")

    @torch.no_grad()
    def fit_vectors(self, vectors: Tensor, y: Tensor, criterion: Criterion, seed: int) -> bool:
        """See `Aggregator.fit_vectors`."""
        from sksurv.linear_model import CoxnetSurvivalAnalysis
        from sksurv.util import Surv

        x = vectors.double().numpy()
        spread = np.where(x.std(axis=0) > 1e-9, x.std(axis=0), 1.0)
        truth = Surv.from_arrays(y[:, 1].numpy() == 1, np.maximum(y[:, 0].double().numpy(), 1e-9))
        fit = CoxnetSurvivalAnalysis(alphas=[self.alpha], l1_ratio=self.l1_ratio)
        fit.fit((x - x.mean(axis=0)) / spread, truth)
        weight = fit.coef_[:, 0] / spread
        self.head.weight.copy_(torch.from_numpy(weight)[None])
        self.head.bias.fill_(-float(x.mean(axis=0) @ weight))
        return True
