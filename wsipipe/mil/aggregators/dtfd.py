"""DTFD-MIL, double-tier feature distillation (Zhang et al., CVPR 2022; arXiv:2203.12081)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.mil.aggregators.abmil import AttentionScores
from wsipipe.mil.base import Aggregator, DeepLogits, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["DTFD"]


class DTFD(Aggregator):
    """Pseudo-bags first, then the bag of what they distil.

    Tier 1: the tiles are cut into `groups` pseudo-bags (at random while training, else in order);
    gated attention and a head on each, all with the bag's label. Tier 2: gated attention and a head
    on the distilled features of the groups.

    Args:
        groups: Pseudo-bags; fewer where the bag has fewer tiles.
        distill: "afs" takes each group's pooled feature, "maxs" its tiles of highest class
            activation, "maxmins" those of highest and of lowest.
        per_group: Tiles a side that a group hands on.
    """

    duplication_invariant = False  # The cut into pseudo-bags moves.

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        groups: int = 4,
        distill: str = "afs",
        per_group: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if distill not in ("afs", "maxs", "maxmins") or groups < 1 or per_group < 1:
            raise ConfigError(
                f"DTFD distils by afs, maxs or maxmins with groups >= 1, not {distill!r}."
            )
        self.groups = groups
        self.distill = distill
        self.per_group = per_group
        self.reduce = nn.Linear(in_dim, hidden, bias=False)
        self.drop = nn.Dropout(dropout)
        self.score = AttentionScores(hidden, attention_dim)
        self.sub_head = nn.Linear(hidden, n_classes)
        self.score2 = AttentionScores(hidden, attention_dim)
        self.head = nn.Linear(hidden, n_classes)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = self.drop(torch.relu(self.reduce(x)))
        scores = self.score(h).float()
        order, lengths, owner = self._cut(bags)
        groups = Segments(tuple(lengths), x.device)
        h_cut = h[order]
        weights = groups.softmax(scores[order])
        pooled = groups.weighted_sum(weights, h_cut)[:, 0]
        sub_logits = self.sub_head(pooled.to(self.sub_head.weight.dtype)).float()
        if self.distill == "afs":
            second, sizes = pooled, torch.bincount(owner, minlength=len(bags)).tolist()
        else:
            second, sizes = self._pick(h_cut, weights, groups, owner, len(bags))
        tier2 = Segments(tuple(sizes), x.device)
        share = tier2.softmax(self.score2(second.to(h.dtype)))
        z = tier2.weighted_sum(share, second)[:, 0]
        logits = self.head(z.to(self.head.weight.dtype)).float()
        attention = self._attention(order, weights[:, 0], groups, share[:, 0])
        deep = DeepLogits(sub_logits, owner, 1.0)
        return MILOutput(logits, attention, extras={"sub_logits": sub_logits}, deep=(deep,))

    def _cut(self, bags: Segments) -> tuple[Tensor, list[int], Tensor]:
        """Row order of the pseudo-bags, their lengths, and the bag each belongs to."""
        order, lengths, owner = [], [], []
        for bag, (start, stop) in enumerate(bags.borders):
            n = stop - start
            rows = torch.randperm(n) if self.training else torch.arange(n)
            parts = torch.tensor_split(rows, min(self.groups, n))
            order += [p + start for p in parts]
            lengths += [len(p) for p in parts]
            owner += [bag] * len(parts)
        return torch.cat(order).to(bags.device), lengths, torch.tensor(owner, device=bags.device)

    def _pick(
        self, h: Tensor, weights: Tensor, groups: Segments, owner: Tensor, n_bags: int
    ) -> tuple[Tensor, list[int]]:
        """The tiles whose class activation is highest (and lowest) in each group."""
        activation = (weights * h).float() @ self.sub_head.weight.float().T
        evidence = torch.softmax(activation, dim=1)
        # Two classes: the positive one, as the authors do; more: whichever is most certain.
        rank = evidence[:, -1] if self.n_classes == 2 else evidence.amax(dim=1)
        if self.n_classes == 1:
            rank = activation[:, 0]
        rows, sizes = [], [0] * n_bags
        for (start, stop), bag in zip(groups.borders, owner.tolist(), strict=True):
            ranked = torch.sort(rank[start:stop], descending=True).indices + start
            k = min(self.per_group, stop - start)
            chosen = ranked[:k]
            if self.distill == "maxmins":
                chosen = torch.cat([chosen, ranked[-k:]])
            rows.append(chosen)
            sizes[bag] += len(chosen)
        return h[torch.cat(rows)], sizes

    def _attention(self, order: Tensor, first: Tensor, groups: Segments, second: Tensor) -> Tensor:
        """Tier-1 weights, each group scaled by what tier 2 gives it; sums to 1 a bag."""
        if self.distill == "afs":
            per_group = second
        else:
            side = 1 if self.distill == "maxs" else 2
            counts = [side * min(self.per_group, n) for n in groups.lengths]
            per_group = torch.stack([s.sum() for s in torch.split(second, counts)])
        scaled = first * per_group[groups.index()]
        return torch.empty_like(scaled).scatter(0, order, scaled)
