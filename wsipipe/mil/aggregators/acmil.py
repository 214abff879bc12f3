"""ACMIL, attention-challenging MIL (Zhang et al., ECCV 2024; arXiv:2311.07125)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.mil.aggregators.abmil import AttentionScores
from wsipipe.mil.base import Aggregator, DeepLogits, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["ACMIL"]


class ACMIL(Aggregator):
    """Several attention rows that must differ, and a mask on the most attended tiles in training.

    Each of `branches` rows has a head of its own; the bag's logits come from the mean row. The
    penalty is the mean pairwise cosine of the rows, so that they look at different tiles.

    Args:
        branches: Attention rows.
        mask_top: Tiles of each row that may be masked while training.
        mask_share: Share of those that are masked.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        branches: int = 5,
        mask_top: int = 10,
        mask_share: float = 0.6,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.mask_top = mask_top
        self.mask_share = mask_share
        self.branches = branches
        self.reduce = nn.Linear(in_dim, hidden, bias=False)
        self.score = AttentionScores(hidden, attention_dim, branches)
        self.heads = nn.ModuleList(nn.Linear(hidden, n_classes) for _ in range(branches))
        self.head = nn.Linear(hidden, n_classes)

    def _mask_top(self, scores: Tensor, bags: Segments) -> Tensor:
        masked = []
        for part in bags.split(scores):
            k = min(self.mask_top, len(part))
            drop = min(int(k * self.mask_share), len(part) - 1)
            top = torch.topk(part, k, dim=0).indices
            keep = torch.rand(k, part.shape[1], device=part.device).argsort(dim=0)[:drop]
            masked.append(part.scatter(0, top.gather(0, keep), -1e9))
        return torch.cat(masked)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = torch.relu(self.reduce(x))
        raw = self.score(h).float()
        scores = self._mask_top(raw, bags) if self.training and self.mask_share > 0 else raw
        rows = bags.softmax(scores)
        z = bags.weighted_sum(rows, h)
        branch = torch.stack(
            [head(z[:, i].to(h.dtype)).float() for i, head in enumerate(self.heads)],
            dim=1,
        )
        mean_row = rows.mean(dim=1)
        bag = z.mean(dim=1)  # The pool of the mean row is the mean of the pools.
        logits = self.head(bag.to(self.head.weight.dtype)).float()
        deep = DeepLogits(
            branch.flatten(0, 1),
            torch.arange(len(bags), device=x.device).repeat_interleave(self.branches),
            1.0,
        )
        penalty = self._similarity(rows, bags) if self.training and self.branches > 1 else None
        extras = {"scores": raw, "branch_logits": branch}
        return MILOutput(logits, mean_row, extras=extras, deep=(deep,), penalty=penalty)

    def _similarity(self, rows: Tensor, bags: Segments) -> Tensor:
        terms = []
        for part in bags.split(rows):
            unit = F.normalize(part, dim=0)
            cosine = unit.T @ unit
            # The diagonal is 1; each pair stands there twice.
            terms.append((cosine.sum() - self.branches) / (self.branches * (self.branches - 1)))
        return torch.stack(terms).mean()
