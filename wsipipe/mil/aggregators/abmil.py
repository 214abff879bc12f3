"""Attention-based MIL (Ilse, Tomczak, Welling, ICML 2018; arXiv:1802.04712)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.mil.base import Aggregator, MILOutput, init_linear
from wsipipe.mil.packing import Segments, rows_tensor

__all__ = ["ABMIL", "AttentionScores", "stream_attention"]


class AttentionScores(nn.Module):
    """s = w (tanh(V h) * sigm(U h)), or w tanh(V h) where not gated. (T, D) -> (T, K)."""

    def __init__(
        self, dim: int, hidden: int, rows: int = 1, *, gated: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.V = nn.Linear(dim, hidden)
        self.U = nn.Linear(dim, hidden) if gated else None
        self.w = nn.Linear(hidden, rows)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(T, D) -> (T, K) raw scores."""
        if self.U is None:
            return self.w(self.drop(torch.tanh(self.V(h))))  # type: ignore[no-any-return]
        # Both branches in one product: h is read once, and its gradient is one product as well.
        weight = torch.cat([self.V.weight, self.U.weight])
        bias = torch.cat([self.V.bias, self.U.bias])
        v, u = F.linear(h, weight, bias).chunk(2, dim=-1)
        a = self.drop(torch.tanh(v)) * self.drop(torch.sigmoid(u))
        return self.w(a)  # type: ignore[no-any-return]


class ABMIL(Aggregator):
    """h = ReLU(W x); a = softmax_n s(h_n); logits = C sum_n a_n h_n.

    Args:
        hidden: Width of h.
        attention_dim: Width inside the attention.
        gated: Ilse's gated form.
        bias: Has W a bias? (ACMIL's baseline has none, MIL-Lab's has.)
        dropout: On h and inside the attention.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        attention_dim: int = 384,
        gated: bool = True,
        bias: bool = True,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.reduce = nn.Linear(in_dim, hidden, bias=bias)
        self.drop = nn.Dropout(dropout)
        self.score = AttentionScores(hidden, attention_dim, gated=gated, dropout=dropout)
        self.head = nn.Linear(hidden, n_classes)
        init_linear(self)

    def embed(self, x: Tensor) -> Tensor:
        """(T, in_dim) -> (T, hidden)."""
        return self.drop(torch.relu(self.reduce(x)))  # type: ignore[no-any-return]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = self.embed(x)
        scores = self.score(h)
        attention = bags.softmax(scores)
        z = bags.weighted_sum(attention, h)[:, 0]
        logits = self.head(z.to(self.head.weight.dtype)).float()
        return MILOutput(logits, attention[:, 0], extras={"scores": scores, "bag_features": z})

    def forward_chunks(self, bag: Any, chunk: int = 16384) -> MILOutput:
        """See `Aggregator.forward_chunks`."""
        z, scores = stream_attention(self, bag, chunk)
        logits = self.head(z[:, 0].to(self.head.weight.dtype)).float()
        attention = torch.softmax(scores, dim=0)[:, 0]
        return MILOutput(logits, attention, extras={"scores": scores, "bag_features": z[:, 0]})


def stream_attention(model: Any, bag: Any, chunk: int) -> tuple[Tensor, Tensor]:
    """Attention pooling of one bag with `chunk` rows in memory at a time (online softmax).

    Args:
        model: An aggregator with `embed` (T, D) -> (T, H) and `score` (T, H) -> (T, K).
        bag: (N, D), sliceable; may be mapped from disk.

    Returns:
        Pooled (1, K, H) float32 and raw scores (N, K) float32.
    """
    device = model.device
    peak = total = z = None
    scores = []
    for start in range(0, len(bag), chunk):
        h = model.embed(model.cast(rows_tensor(bag[start : start + chunk], device)))
        s = model.score(h).float()
        scores.append(s)
        new_peak = s.amax(dim=0) if peak is None else torch.maximum(peak, s.amax(dim=0))
        weights = torch.exp(s - new_peak)
        part = weights.T @ h.float()
        if peak is None or total is None or z is None:
            total, z = weights.sum(dim=0), part
        else:
            # What was summed under the old maximum is brought under the new one.
            scale = torch.exp(peak - new_peak)
            total, z = total * scale + weights.sum(dim=0), z * scale[:, None] + part
        peak = new_peak
    assert z is not None
    assert total is not None
    return (z / total[:, None])[None], torch.cat(scores)
