"""A plain transformer over the bag with a class token; exact attention, memory linear in tiles."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["Transformer"]


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, dim)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, bags: Segments) -> Tensor:
        """(T + B, dim): every bag attends to itself only."""
        q, k, v = self.qkv(self.norm1(x)).reshape(len(x), 3, self.heads, -1).unbind(dim=1)
        parts = [
            # Fused kernels never hold the N x N matrix (15,000 tiles would be 7 GB for 8 heads).
            F.scaled_dot_product_attention(
                a.transpose(0, 1)[None], b.transpose(0, 1)[None], c.transpose(0, 1)[None]
            )[0].transpose(0, 1)
            for a, b, c in zip(bags.split(q), bags.split(k), bags.split(v), strict=True)
        ]
        x = x + self.drop(self.proj(torch.cat(parts).flatten(1)))
        return x + self.drop(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Transformer(Aggregator):
    """Linear, class token, `depth` pre-norm blocks, norm, head on the class token.

    `attention` is that of the class token in the last block, mean over heads, without the token
    itself; computing it does not touch the logits.
    """

    duplication_invariant = False  # The class token competes with the tiles.

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        heads: int = 8,
        depth: int = 2,
        mlp: int = 512,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if hidden % heads:
            raise ConfigError(f"hidden ({hidden}) must be a multiple of heads ({heads}).")
        self.reduce = nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Dropout(dropout))
        self.cls = nn.Parameter(torch.zeros(1, hidden))
        nn.init.trunc_normal_(self.cls, std=0.02)
        self.blocks = nn.ModuleList(Block(hidden, heads, mlp, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, n_classes)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = self.reduce(x)
        cls = self.cls.to(h.dtype)
        tokens = torch.cat([t for part in bags.split(h) for t in (cls, part)])
        longer = Segments(tuple(n + 1 for n in bags.lengths), bags.device)
        for block in self.blocks[:-1]:
            tokens = block(tokens, longer)
        last = cast(Block, self.blocks[-1])
        attention = self._class_attention(last, tokens.detach(), longer)
        tokens = last(tokens, longer)
        first = torch.tensor([start for start, _ in longer.borders], device=x.device)
        return MILOutput(self.head(self.norm(tokens[first])).float(), attention)

    @torch.no_grad()
    def _class_attention(self, block: Block, tokens: Tensor, bags: Segments) -> Tensor:
        q, k, _ = (
            block.qkv(block.norm1(tokens)).reshape(len(tokens), 3, block.heads, -1).unbind(dim=1)
        )
        out = []
        for a, b in zip(bags.split(q), bags.split(k), strict=True):
            logits = torch.einsum("hd,nhd->nh", a[0].float(), b[1:].float()) * a.shape[-1] ** -0.5
            out.append(torch.softmax(logits, dim=0).mean(dim=1))
        return torch.cat(out)
