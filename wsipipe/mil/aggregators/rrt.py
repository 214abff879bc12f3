"""RRT-MIL, re-embedded regional transformer (Tang et al., CVPR 2024; arXiv:2402.17228)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["RRT"]


class RegionAttention(nn.Module):
    """Self-attention in each of (R, n, dim); `kernel` > 0 convolves the logits too (EPEG)."""

    def __init__(self, dim: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.position = (
            nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads)
            if kernel
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        regions, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(regions, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q * (dim // self.heads) ** -0.5 @ k.transpose(-1, -2)
        if self.position is not None:
            logits = logits + self.position(logits)
        out = torch.softmax(logits, dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(regions, n, dim))  # type: ignore[no-any-return]


def to_regions(tiles: Tensor, per_side: int) -> tuple[Tensor, int, int]:
    """Lay (n, dim) out as a square, zero-filled, and cut it into regions (R, size * size, dim).

    Returns:
        Regions, regions a side, and tiles a region's side.
    """
    n, dim = tiles.shape
    side = math.ceil(math.sqrt(n))
    side += -side % per_side
    size = side // per_side
    square = F.pad(tiles, (0, 0, 0, side * side - n)).reshape(per_side, size, per_side, size, dim)
    return square.transpose(1, 2).reshape(per_side**2, size * size, dim), per_side, size


def from_regions(regions: Tensor, per_side: int, size: int, n: int) -> Tensor:
    """Inverse of `to_regions`: (n, dim)."""
    dim = regions.shape[-1]
    square = regions.reshape(per_side, per_side, size, size, dim).transpose(1, 2)
    return square.reshape(-1, dim)[:n]


class CrossRegion(nn.Module):
    """Each region speaks through `tokens` weighted means; these attend across regions."""

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.empty(dim, tokens))
        nn.init.kaiming_uniform_(self.phi, a=math.sqrt(5))
        self.attention = RegionAttention(dim, heads, kernel=0)

    def forward(self, x: Tensor) -> Tensor:
        """(R, n, dim) -> (R, n, dim)."""
        logits = torch.einsum("rpc,ct->rtp", x, self.phi.to(x.dtype))
        dispatch = torch.softmax(logits, dim=-1)
        combine = torch.softmax(logits, dim=1)
        low, high = logits.amin(dim=-1, keepdim=True), logits.amax(dim=-1, keepdim=True)
        spread = (logits - low) / (high - low + 1e-8)
        spoken = torch.einsum("rpc,rtp->trc", x, dispatch)
        heard = self.attention(spoken)
        return torch.einsum("trc,rtp->rpc", heard, spread * combine)


class RRT(Aggregator):
    """Re-embeds tiles in and across regions of a square, then pools by attention.

    The order of tiles matters: the square is filled in the order of the file (row-major).

    Args:
        regions: Regions along a side of the square.
        kernel: Convolution on the attention logits (EPEG); odd.
        cross_tokens: Tokens a region speaks with.
    """

    order_matters = True
    duplication_invariant = False

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        heads: int = 8,
        regions: int = 8,
        kernel: int = 15,
        cross_tokens: int = 3,
        attention_dim: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.regions = regions
        self.reduce = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.within = RegionAttention(hidden, heads, kernel)
        self.across = CrossRegion(hidden, heads, cross_tokens)
        self.score = nn.Sequential(
            nn.Linear(hidden, attention_dim, bias=False),
            nn.ReLU(),
            nn.Linear(attention_dim, 1, bias=False),
        )
        self.head = nn.Linear(hidden, n_classes)

    def _step(self, layer: nn.Module, x: Tensor) -> Tensor:
        regions, per_side, size = to_regions(x, self.regions)
        return from_regions(layer(regions), per_side, size, len(x))

    def _bag(self, h: Tensor) -> Tensor:
        h = h + self._step(self.within, self.norms[0](h))
        h = h + self._step(self.across, self.norms[1](h))
        return self.norms[2](h)  # type: ignore[no-any-return]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = torch.cat([self._bag(part) for part in bags.split(self.reduce(x))])
        scores = self.score(h)
        attention = bags.softmax(scores)
        z = bags.weighted_sum(attention, h)[:, 0]
        logits = self.head(z.to(self.head.weight.dtype)).float()
        return MILOutput(logits, attention[:, 0], extras={"scores": scores})
