"""CLAM, single and multi branch (Lu et al., Nature Biomed. Eng. 2021; arXiv:2004.09666)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.errors import ConfigError
from wsipipe.mil.aggregators.abmil import AttentionScores, stream_attention
from wsipipe.mil.base import Aggregator, MILOutput, init_linear
from wsipipe.mil.packing import Segments

__all__ = ["CLAM"]


class CLAM(Aggregator):
    """Gated attention pooling, plus pseudo-labels for the most and least attended tiles.

    For the bag's own class the `k_sample` most attended tiles count as positive and the least
    attended as negative evidence; with `subtyping` the most attended tiles are negatives for the
    other classes (classes exclude each other).
    loss = bag_weight * bag + (1 - bag_weight) * instance.

    Args:
        multi_branch: One attention a class (CLAM-MB), else one for all (CLAM-SB).
        attention_dim: 256 is the authors' "small", 384 "big".
        k_sample: Tiles a side; fewer where the bag has fewer.
        subtyping: Do classes exclude each other?
        bag_weight: Share of the bag's loss.
    """

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        multi_branch: bool = False,
        hidden: int = 512,
        attention_dim: int = 256,
        dropout: float = 0.25,
        k_sample: int = 8,
        subtyping: bool = False,
        bag_weight: float = 0.7,
    ) -> None:
        super().__init__(in_dim, n_classes)
        if k_sample < 1 or not 0 <= bag_weight <= 1:
            raise ConfigError(
                f"CLAM needs k_sample >= 1 and bag_weight within 0 and 1, not {k_sample}, "
                f"{bag_weight}."
            )
        self.multi_branch = multi_branch
        self.k_sample = k_sample
        self.subtyping = subtyping
        self.bag_weight = bag_weight
        rows = n_classes if multi_branch else 1
        self.reduce = nn.Linear(in_dim, hidden)
        self.drop = nn.Dropout(dropout)
        self.score = AttentionScores(hidden, attention_dim, rows, dropout=dropout)
        # One weight vector a class; the multi-branch form applies row c to branch c only.
        self.head = nn.Linear(hidden, n_classes)
        self.instance_heads = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(n_classes))
        init_linear(self)

    def embed(self, x: Tensor) -> Tensor:
        """(T, in_dim) -> (T, hidden)."""
        return self.drop(torch.relu(self.reduce(x)))  # type: ignore[no-any-return]

    def _logits(self, z: Tensor) -> Tensor:
        z = z.to(self.head.weight.dtype)
        if self.multi_branch:
            return (torch.einsum("bcd,cd->bc", z, self.head.weight) + self.head.bias).float()
        return self.head(z[:, 0]).float()  # type: ignore[no-any-return]

    def _one_map(self, attention: Tensor, logits: Tensor, bags: Segments) -> Tensor:
        """(T, K) -> (T,): the row of the class that the bag is given."""
        if attention.shape[1] == 1:
            return attention[:, 0]
        row = logits.detach().argmax(dim=1)[bags.index()]
        return attention.gather(1, row[:, None])[:, 0]

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = self.embed(x)
        scores = self.score(h)
        attention = bags.softmax(scores)
        logits = self._logits(bags.weighted_sum(attention, h))
        extras = {"scores": scores, "attention": attention, "h": h}
        return MILOutput(logits, self._one_map(attention, logits, bags), extras=extras)

    def forward_chunks(self, bag: Any, chunk: int = 16384) -> MILOutput:
        """See `Aggregator.forward_chunks`."""
        z, scores = stream_attention(self, bag, chunk)
        logits = self._logits(z)
        attention = torch.softmax(scores, dim=0)
        one = self._one_map(attention, logits, Segments((len(scores),), scores.device))
        return MILOutput(logits, one, extras={"scores": scores})

    def instance_loss(self, out: MILOutput, labels: Tensor, bags: Segments) -> Tensor | None:
        """See `Aggregator.instance_loss`."""
        attention, h = out.extras["attention"].detach(), out.extras["h"]
        losses = []
        for (start, stop), label in zip(bags.borders, labels.tolist(), strict=True):
            if label < 0:
                continue
            k = min(self.k_sample, stop - start)
            terms = []
            for c, head in enumerate(self.instance_heads):
                if c != label and not self.subtyping:
                    continue
                a = attention[start:stop, c if self.multi_branch else 0]
                top = torch.topk(a, k).indices
                rows, truth = top, torch.full((k,), int(c == label), device=h.device)
                if c == label:
                    rows = torch.cat([top, torch.topk(-a, k).indices])
                    truth = torch.cat([truth, torch.zeros_like(truth)])
                terms.append(F.cross_entropy(head(h[start + rows]).float(), truth))
            losses.append(torch.stack(terms).sum() / (self.n_classes if self.subtyping else 1))
        if not losses:
            return None
        return (1 - self.bag_weight) * torch.stack(losses).mean()
