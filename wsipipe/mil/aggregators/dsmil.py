"""DSMIL, dual-stream MIL (Li, Li, Eliceiri, CVPR 2021; arXiv:2011.08939)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wsipipe.mil.base import Aggregator, DeepLogits, MILOutput
from wsipipe.mil.packing import Segments, rows_tensor

__all__ = ["DSMIL"]


class DSMIL(Aggregator):
    """The critical tile of each class asks all tiles how much they resemble it.

    c_n = W x_n; m_k = argmax_n c_nk; q = query(x); A_nk = softmax_n(q_n . q_(m_k) / sqrt(d));
    B_k = sum_n A_nk v(x_n); logits mix all B by a convolution over classes. The largest c is
    trained with the same label; its share is half.

    Args:
        query_dim: d.
        pass_values: v = ReLU(W_v x) instead of the identity.
        dropout: On the values.
    """

    bag_weight = 0.5

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        query_dim: int = 128,
        pass_values: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.instance = nn.Linear(in_dim, n_classes)
        self.query = nn.Sequential(
            nn.Linear(in_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()
        )
        self.values = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(in_dim, in_dim), nn.ReLU())
            if pass_values
            else nn.Identity()
        )
        self.mix = nn.Conv1d(n_classes, n_classes, kernel_size=in_dim)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        instance = self.instance(x).float()
        best, critical = bags.max(instance)
        q = self.query(x)
        values = self.values(x)
        scale = 1 / math.sqrt(q.shape[1])
        parts = [
            torch.softmax(part.float() @ q[rows].float().T * scale, dim=0)
            for part, rows in zip(bags.split(q), critical, strict=True)
        ]
        attention = torch.cat(parts)
        pooled = bags.weighted_sum(attention, values)
        return self._finish(pooled, best, attention, instance, bags)

    def _finish(
        self, pooled: Tensor, best: Tensor, attention: Tensor, instance: Tensor, bags: Segments
    ) -> MILOutput:
        logits = self.mix(pooled.to(self.mix.weight.dtype))[..., 0].float()
        row = logits.detach().argmax(dim=1)[bags.index()]
        deep = DeepLogits(best, torch.arange(len(bags), device=best.device), 0.5)
        return MILOutput(
            logits,
            attention.gather(1, row[:, None])[:, 0],
            instance,
            {"attention": attention},
            (deep,),
        )

    def forward_chunks(self, bag: Any, chunk: int = 16384) -> MILOutput:
        """See `Aggregator.forward_chunks`."""
        device = self.mix.weight.device

        def pieces() -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, len(bag), chunk):
                x = self.cast(rows_tensor(bag[start : start + chunk], device))
                yield slice(start, start + len(x)), x

        # One array each, as in `stream_attention`.
        instance = torch.empty((len(bag), self.n_classes), device=device)
        for at, x in pieces():
            instance[at] = self.instance(x)
        best, critical = instance.max(dim=0)
        rows = torch.stack([rows_tensor(bag[int(i)]) for i in critical]).to(device)
        asked = self.query(self.cast(rows)).float()
        scale = 1 / math.sqrt(asked.shape[1])
        scores = torch.empty_like(instance)
        for at, x in pieces():
            scores[at] = self.query(x).float() @ asked.T * scale
        attention = torch.softmax(scores, dim=0)
        pooled = torch.zeros((self.n_classes, self.in_dim), device=device)
        for at, x in pieces():
            pooled += attention[at].T @ self.values(x).float()
        bags = Segments((len(instance),), device)
        return self._finish(pooled[None], best[None], attention, instance, bags)
