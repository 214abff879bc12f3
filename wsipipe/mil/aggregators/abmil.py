"""Attention-based MIL (Ilse, Tomczak, Welling, ICML 2018; arXiv:1802.04712)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.aggregators.gated import gated_pool
from wsipipe.mil.base import Aggregator, MILOutput, init_linear
from wsipipe.mil.packing import Segments, rows_tensor

__all__ = ["ABMIL", "AttentionScores", "kept_units", "stream_attention"]


def kept_units(width: int, share: float, device: torch.device) -> Tensor:
    """Indices of the units that dropout leaves in this step, all but a `share` of them."""
    keep = max(1, round(width * (1 - share)))
    return torch.randperm(width)[:keep].sort().values.to(device)


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

    Dropout takes whole units, the same for all tiles of a step (as Gal and Ghahramani do along
    time, arXiv:1512.05287). Drawn for every tile anew it would average out over thousands of tiles
    and cost a third of the step; units that are dropped together need not be computed at all.

    Args:
        hidden: Width of h.
        attention_dim: Width inside the attention.
        gated: Ilse's gated form.
        bias: Has W a bias? (ACMIL's baseline has none, MIL-Lab's has.)
        dropout: Share of the units of h, and of the units inside the attention.
        tile_dropout: Draw it for every tile anew, as the authors' code does.
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
        tile_dropout: bool = False,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is a share of the units, 0 <= dropout < 1, not {dropout}.")
        self.dropout = dropout
        self.tile_dropout = tile_dropout
        by_tile = dropout if tile_dropout else 0.0
        self.reduce = nn.Linear(in_dim, hidden, bias=bias)
        self.drop = nn.Dropout(by_tile)
        self.score = AttentionScores(hidden, attention_dim, gated=gated, dropout=by_tile)
        self.head = nn.Linear(hidden, n_classes)
        init_linear(self)

    def embed(self, x: Tensor) -> Tensor:
        """(T, in_dim) -> (T, hidden)."""
        return self.drop(torch.relu(self.reduce(x)))  # type: ignore[no-any-return]

    def cast(self, x: Tensor) -> Tensor:
        """See `Aggregator.cast`; what `gated_pool` takes stays as it is stored."""
        return x if self._in_blocks(x) else super().cast(x)

    def _in_blocks(self, x: Tensor) -> bool:
        by_tile = self.training and self.drop.p > 0
        return (
            self.score.U is not None
            and not by_tile
            and x.device.type == "cpu"
            and not x.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and self.head.weight.dtype == torch.float32
        )

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        reduce: tuple[Tensor, Tensor | None] = (self.reduce.weight, self.reduce.bias)
        head: Tensor = self.head.weight
        gates = [self.score.V] if self.score.U is None else [self.score.V, self.score.U]
        gate: list[tuple[Tensor, Tensor]] = [(m.weight, m.bias) for m in gates]
        score: tuple[Tensor, Tensor] = (self.score.w.weight, self.score.w.bias)
        if self.training and self.dropout > 0 and not self.tile_dropout:
            # Dropped units are left out of the weights, those that stay are scaled up for them.
            units = kept_units(len(head[0]), self.dropout, x.device)
            inner = kept_units(score[0].shape[1], self.dropout, x.device)
            up = len(head[0]) / len(units)
            bias = None if reduce[1] is None else reduce[1][units] * up
            reduce, head = (reduce[0][units] * up, bias), head[:, units]
            gate = [(w[inner][:, units], b[inner]) for w, b in gate]
            score = (score[0][:, inner] * (score[0].shape[1] / len(inner)), score[1])
        weight = torch.cat([w for w, _ in gate])
        both = torch.cat([b for _, b in gate])
        if self._in_blocks(x):
            z, scores = gated_pool(x, bags, reduce, (weight, both), score)
            attention = bags.softmax(scores)
        else:
            h = self.drop(torch.relu(F.linear(x, *reduce)))
            # Both branches in one product: h is read once, its gradient is one product as well.
            parts = F.linear(h, weight, both).chunk(len(gate), dim=-1)
            a = self.score.drop(torch.tanh(parts[0]))
            if len(parts) == 2:
                a = a * self.score.drop(torch.sigmoid(parts[1]))
            scores = F.linear(a, *score)
            attention = bags.softmax(scores)
            z = bags.weighted_sum(attention, h)
        z = z[:, 0]
        logits = F.linear(z.to(head.dtype), head, self.head.bias).float()
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
    peak = total = z = scores = None
    for start in range(0, len(bag), chunk):
        rows = rows_tensor(bag[start : start + chunk], device)
        h = model.embed(Aggregator.cast(model, rows))
        s = model.score(h).float()
        if scores is None:
            # One array, not a piece a chunk: small pieces that stay between large ones that go keep
            # the allocator from using the room again (2 GB for a million tiles).
            scores = s.new_empty((len(bag), s.shape[1]))
        scores[start : start + len(s)] = s
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
    assert scores is not None
    return (z / total[:, None])[None], scores
