"""Logits per tile, pooled over the bag: the simplest models, and hard to beat on easy tasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.mil.base import Aggregator, MILOutput, init_linear
from wsipipe.mil.packing import Segments, rows_tensor

__all__ = ["PooledInstances"]


class PooledInstances(Aggregator):
    """c_n = W2 ReLU(W1 x_n); bag logits by mean, max or log-sum-exp over n.

    lse = 1/r log(1/N sum exp(r c_n)) lies between mean (r -> 0) and max (r -> inf); Ramon and
    De Raedt, 2000.

    Args:
        pooling: "mean", "max" or "lse".
        hidden: Width of the hidden layer; 0 = linear.
        r: Sharpness of lse.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        pooling: str = "mean",
        hidden: int = 512,
        dropout: float = 0.25,
        r: float = 1.0,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if pooling not in ("mean", "max", "lse") or r <= 0:
            raise ConfigError(
                f"pooling is mean, max or lse with r > 0, not {pooling!r} with r={r}."
            )
        self.pooling = pooling
        self.r = r
        self.body = (
            nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
            if hidden
            else nn.Identity()
        )
        self.head = nn.Linear(hidden or in_dim, n_classes)
        init_linear(self)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        instance = self.head(self.body(x)).float()
        if self.pooling == "mean":
            logits = bags.mean(instance)
        elif self.pooling == "max":
            logits, _ = bags.max(instance)
        else:
            lengths = torch.tensor(bags.lengths, device=x.device, dtype=instance.dtype)
            logits = (bags.logsumexp(self.r * instance) - lengths.log()[:, None]) / self.r
        return MILOutput(logits, instance_logits=instance)

    def forward_chunks(self, bag: Tensor, chunk: int = 16384) -> MILOutput:
        """See `Aggregator.forward_chunks`."""
        device = self.head.weight.device
        instance = torch.empty((len(bag), self.n_classes), device=device)  # see stream_attention
        for start in range(0, len(bag), chunk):
            rows = self.cast(rows_tensor(bag[start : start + chunk], device))
            instance[start : start + len(rows)] = self.head(self.body(rows))
        if self.pooling == "mean":
            logits = instance.mean(dim=0)
        elif self.pooling == "max":
            logits = instance.amax(dim=0)
        else:
            logits = (torch.logsumexp(self.r * instance, dim=0) - math.log(len(instance))) / self.r
        return MILOutput(logits[None], instance_logits=instance)
