"""ILRA-MIL, iterative low-rank attention (Xiang and Zhang, ICLR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["ILRA"]


class GatedCrossAttention(nn.Module):
    """Queries read from keys; residual, norm, feed-forward, norm; a SiLU gate by the queries."""

    def __init__(self, query: int, key: int, dim: int, heads: int, *, gate: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(query, dim), nn.Linear(key, dim), nn.Linear(key, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm0, self.norm1 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        self.gate = nn.Sequential(nn.Linear(query, dim), nn.SiLU()) if gate else None

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """(1, n, query), (1, m, key) -> (1, n, dim)."""
        q = self.q(query)
        read, _ = self.attention(q, self.k(key), self.v(key), need_weights=False)
        o: Tensor = self.norm0(q + read)
        o = self.norm1(o + torch.relu(self.out(o)))
        return o if self.gate is None else o * self.gate(query)


class ILRA(Aggregator):
    """Tiles talk through `rank` latent tokens, twice; one learned token pools.

    Args:
        rank: Latent tokens a block.
        depth: Blocks.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 256,
        heads: int = 8,
        rank: int = 64,
        depth: int = 2,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.latents = nn.ParameterList()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        dim = in_dim
        for _ in range(depth):
            latent = nn.Parameter(torch.empty(1, rank, hidden))
            nn.init.xavier_uniform_(latent)
            self.latents.append(latent)
            self.down.append(GatedCrossAttention(hidden, dim, hidden, heads, gate=True))
            self.up.append(GatedCrossAttention(dim, hidden, hidden, heads, gate=True))
            dim = hidden
        self.token = nn.Parameter(torch.empty(1, 1, hidden))
        nn.init.xavier_uniform_(self.token)
        self.pool = GatedCrossAttention(hidden, hidden, hidden, heads, gate=False)
        self.head = nn.Linear(hidden, n_classes)

    def _bag(self, x: Tensor) -> Tensor:
        tiles = x[None]
        for latent, down, up in zip(self.latents, self.down, self.up, strict=True):
            tiles = up(tiles, down(latent.to(tiles.dtype), tiles))
        return self.pool(self.token.to(tiles.dtype), tiles)[0, 0]  # type: ignore[no-any-return]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        z = torch.stack([self._bag(part) for part in bags.split(x)])
        return MILOutput(self.head(z).float())
