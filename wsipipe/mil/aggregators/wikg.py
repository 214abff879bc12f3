"""WiKG, a dynamic graph between tiles (Li et al., CVPR 2024; arXiv:2403.07719)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["WiKG"]


class WiKG(Aggregator):
    """Each tile takes messages from its `neighbours` most similar tiles; attention reads out.

    The gate of the authors' code contracts both operands over their own last axis,
    (sum_l Nb_l) * (sum_m gate_m), where the paper's formula is the scalar product; `gate="paper"`
    takes the latter.

    Args:
        neighbours: Edges a tile; fewer where the bag has fewer tiles.
        gate: "reference" or "paper".
        chunk: Rows of the similarity matrix in memory at a time: all of it would be 0.9 GB for
            15,000 tiles and 4 TB for a million.
    """

    duplication_invariant = False  # A twin takes a neighbour's place.

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        neighbours: int = 6,
        gate: str = "reference",
        dropout: float = 0.3,
        chunk: int = 2048,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if gate not in ("reference", "paper") or neighbours < 1 or chunk < 1:
            raise ConfigError(
                "WiKG's gate is reference or paper, with neighbours and chunk >= 1; not "
                f"{gate!r}, {neighbours}, {chunk}."
            )
        self.neighbours, self.gate, self.chunk = neighbours, gate, chunk
        self.scale = hidden**-0.5
        self.reduce = nn.Linear(in_dim, hidden)
        self.w_head, self.w_tail = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.add, self.multiply = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)
        self.readout = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.LeakyReLU(), nn.Linear(hidden // 2, 1)
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, n_classes)

    def _messages(self, head: Tensor, tail: Tensor) -> Tensor:
        """(n, d), (n, d) -> (n, d): what each tile hears from its nearest tails."""
        k = min(self.neighbours, len(tail))
        out = []
        for e in torch.split(head, self.chunk):
            similarity, index = torch.topk(e * self.scale @ tail.T, k, dim=-1)
            near = tail[index]
            p = torch.softmax(similarity, dim=-1)[..., None]
            relation = p * near + (1 - p) * e[:, None]
            gate = torch.tanh(e[:, None] + relation)
            if self.gate == "reference":
                weight = near.sum(dim=-1) * gate.sum(dim=-1)
            else:
                weight = (near * gate).sum(dim=-1)
            out.append((torch.softmax(weight, dim=-1)[:, None] @ near)[:, 0])
        return torch.cat(out)

    def _bag(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.5 * (h + h.mean(dim=0))
        head, tail = self.w_head(h), self.w_tail(h)
        heard = self._messages(head, tail)
        h = F.leaky_relu(self.add(head + heard)) + F.leaky_relu(self.multiply(head * heard))
        h = self.drop(h)
        a = torch.softmax(self.readout(h).float(), dim=0)
        return (a.to(h.dtype).T @ h)[0], a[:, 0]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = F.leaky_relu(self.reduce(x))
        pairs = [self._bag(part) for part in bags.split(h)]
        z = torch.stack([z for z, _ in pairs])
        return MILOutput(self.head(self.norm(z)).float(), torch.cat([a for _, a in pairs]))
