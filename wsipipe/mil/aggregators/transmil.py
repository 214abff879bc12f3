"""TransMIL (Shao et al., NeurIPS 2021; arXiv:2106.00908)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.mil.aggregators.nystrom import NystromAttention
from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["TransMIL"]


class PyramidPosition(nn.Module):
    """Depthwise convolutions 7, 5 and 3 over the tiles laid out as a square, plus identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in (7, 5, 3)
        )

    def forward(self, tiles: Tensor, side: int) -> Tensor:
        """(side * side, dim) -> the same."""
        image = tiles.T.reshape(1, -1, side, side)
        out = image
        for conv in self.convs:
            out = out + conv(image)
        return out.reshape(tiles.shape[1], -1).T


class TransMIL(Aggregator):
    """Class token, Nyström attention, position by convolution over a square, Nyström attention.

    The reference fills the square by repeating the first tiles and pads the attention with zero
    tokens in front; both take part as if they were tissue. `varlen=True` does neither: empty places
    of the square are zero and are dropped again, landmarks are means of real tokens only.

    The order of tiles matters: the square is filled in the order of the file (row-major).
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
        landmarks: int = 256,
        dropout: float = 0.1,
        varlen: bool = False,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.varlen = varlen
        self.reduce = nn.Linear(in_dim, hidden)
        self.cls = nn.Parameter(torch.randn(1, hidden))
        self.position = PyramidPosition(hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.layers = nn.ModuleList(
            NystromAttention(
                hidden,
                heads=heads,
                head_dim=hidden // heads,
                landmarks=landmarks,
                dropout=dropout,
                varlen=varlen,
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, n_classes)

    def _bag(self, h: Tensor) -> Tensor:
        n = len(h)
        side = math.ceil(math.sqrt(n))
        missing = side * side - n
        if not self.varlen:
            h = torch.cat([h, h[:missing]])
        tokens = torch.cat([self.cls.to(h.dtype), h])
        tokens = tokens + self.layers[0](self.norms[0](tokens))
        tiles = tokens[1:]
        if self.varlen:
            tiles = F.pad(tiles, (0, 0, 0, missing))
        tiles = self.position(tiles, side)[: len(tokens) - 1]
        tokens = torch.cat([tokens[:1], tiles])
        tokens = tokens + self.layers[1](self.norms[1](tokens))
        return self.norm(tokens[0])  # type: ignore[no-any-return]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = torch.relu(self.reduce(x))
        z = torch.stack([self._bag(part) for part in bags.split(h)])
        return MILOutput(self.head(z).float())
