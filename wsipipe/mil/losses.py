"""Losses by target, masked where a label is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from wsipipe.mil.base import MILOutput
from wsipipe.mil.targets import Target

__all__ = ["Criterion", "cox_loss", "fit_criterion", "nll_loss"]


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative partial log-likelihood, Efron's correction for tied event times, mean over events.

    Args:
        risk, time, event: (B,) log hazard, follow-up, 1 = event.
    """
    order = torch.argsort(time, descending=True, stable=True)
    risk, time, seen = risk[order].float(), time[order], event[order] > 0
    if not seen.any():
        return risk.sum() * 0
    _, group, sizes = torch.unique_consecutive(time, return_inverse=True, return_counts=True)
    # Log of the hazards at risk at each time; sums of exponentials alone would underflow.
    at_risk = torch.logcumsumexp(risk, dim=0)[sizes.cumsum(0) - 1][group]
    share = (risk - at_risk).exp() * seen
    tied = risk.new_zeros(len(sizes)).index_add(0, group, share)[group]
    deaths = seen.long().new_zeros(len(sizes)).index_add(0, group, seen.long())
    before = (seen.cumsum(0) - 1) - (deaths.cumsum(0) - deaths)[group]
    efron = torch.log1p(-tied[seen] * (before / deaths[group].clamp(min=1))[seen])
    return (at_risk[seen] + efron - risk[seen]).sum() / seen.sum()


def cox_loss_among(risk: Tensor, y: Tensor, others: Tensor, others_y: Tensor) -> Tensor:
    """The Cox loss of everybody, with a gradient for some.

    A risk set is the whole training part, whatever fits into a step: bags outside of the step take
    part with their last known log hazard. The gradient is scaled by everybody / some, so that the
    mean over the steps of an epoch, weighted by bags, is the full gradient (exactly, while the
    hazards are current).

    Args:
        risk: (B,) log hazard of the bags of this step, with graph.
        y: (B, 2) time and event.
        others, others_y: (M,) and (M, 2) of the other bags, without graph.
    """
    full = torch.cat([y, others_y.to(y)])
    loss = cox_loss(torch.cat([risk, others.to(risk)]), full[:, 0], full[:, 1])
    scale = len(full) / max(1, len(y))
    return loss.detach() + scale * (loss - loss.detach())


def nll_loss(logits: Tensor, bin_index: Tensor, event: Tensor, alpha: float = 0.0) -> Tensor:
    """Discrete-time likelihood (Zadeh and Schmid, TPAMI 2020), mean over patients.

    h = sigmoid(logits), S = cumprod(1 - h). An event in bin b says log S_(b-1) + log h_b; censoring
    in bin b says log S_b and is weighted 1 - alpha.

    Args:
        logits: (B, K).
        bin_index: (B,) int64 bin of the follow-up time.
    """
    log_h, log_s = F.logsigmoid(logits), torch.cumsum(F.logsigmoid(-logits), dim=1)
    before = torch.cat([torch.zeros_like(log_s[:, :1]), log_s[:, :-1]], dim=1)
    pick = bin_index[:, None]
    seen = (before.gather(1, pick) + log_h.gather(1, pick))[:, 0]
    alive = log_s.gather(1, pick)[:, 0]
    return -(event * seen + (1 - alpha) * (1 - event) * alive).mean()


@dataclass(frozen=True)
class Criterion:
    """The loss of one target, with what it learned from the training part.

    Attributes:
        start: First of the target's columns in the logits.
        class_weights: (C,) or None.
        centre, scale: Of regression values; logits are in these units.
        edges: Inner edges of the time bins.
        base: (bins,) log odds of the training part's hazard in each bin; logits are beside these.
            Without, all bags first learn that hazards are not 1/2, and those with the strongest
            features learn it most: risks come out in reverse until that is undone.
    """

    target: Target
    start: int
    class_weights: Tensor | None = None
    centre: float = 0.0
    scale: float = 1.0
    edges: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    base: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def columns(self, logits: Tensor) -> Tensor:
        """This target's columns of the logits."""
        return logits[:, self.start : self.start + self.target.width]

    def __call__(
        self, logits: Tensor, y: Tensor, others: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | None:
        """Loss over these bags, or None where no label is known. (B, all columns), (B, 2).

        The mean over all bags, those without a label at nothing: so the parts of a step add up to
        the step, and a label counts the same among many that are known or few.

        Args:
            others: For the Cox loss: log hazards (M,) and labels (M, 2) of bags at risk beside
                these; see `cox_loss_among`.
        """
        known = ~torch.isnan(y[:, 0])
        if not known.any():
            return None
        return self._of_known(self.columns(logits)[known], y[known], others) * known.float().mean()

    def _of_known(self, z: Tensor, y: Tensor, others: tuple[Tensor, Tensor] | None) -> Tensor:
        first, second, target = y[:, 0], y[:, 1], self.target
        if target.task == "classification":
            weights = None if self.class_weights is None else self.class_weights.to(z.device)
            loss = F.cross_entropy(z, first.long(), reduction="none")
            if weights is not None:
                # Weighted sum over the number of bags, not over the weights: a batch of one class
                # would otherwise undo its own weight.
                loss = loss * weights[first.long()]
            return loss.mean()
        if target.task == "regression":
            return F.smooth_l1_loss(z[:, 0], ((first - self.centre) / self.scale).to(z.dtype))
        if target.loss == "cox":
            if others is not None:
                return cox_loss_among(z[:, 0], y, *others)
            return cox_loss(z[:, 0], first, second)
        # Edges are times of events: compared as the times are stored, or equal ones fall below.
        edges = self.edges.astype(np.float32)
        bins = torch.as_tensor(np.searchsorted(edges, first.float().cpu().numpy(), side="right"))
        base = torch.as_tensor(self.base, dtype=z.dtype, device=z.device)
        return nll_loss(z + base, bins.to(z.device), second.to(z.dtype))

    def describe(self) -> dict[str, Any]:
        """As it goes into `model.json`."""
        return {
            **self.target.describe(),
            "start": self.start,
            "centre": self.centre,
            "scale": self.scale,
            "edges": self.edges.tolist(),
            "base": self.base.tolist(),
        }


def fit_criterion(
    target: Target, start: int, y: NDArray[np.float64], class_weights: str
) -> Criterion:
    """Learn class weights, scale or time bins from the labels (P, 2) of the training part."""
    known = y[~np.isnan(y[:, 0])]
    if target.task == "classification":
        counts = np.bincount(known[:, 0].astype(int), minlength=len(target.classes))
        weights = None
        if class_weights == "balanced":
            balanced = len(known) / (np.count_nonzero(counts) * np.maximum(counts, 1))
            weights = torch.tensor(np.where(counts > 0, balanced, 0.0), dtype=torch.float32)
        return Criterion(target, start, weights)
    if target.task == "regression":
        scale = float(known[:, 0].std()) or 1.0
        return Criterion(target, start, centre=float(known[:, 0].mean()), scale=scale)
    if target.loss == "cox":
        return Criterion(target, start)
    events = known[known[:, 1] == 1, 0]
    edges = np.quantile(events, np.linspace(0, 1, target.bins + 1)[1:-1])
    last = np.searchsorted(edges, known[:, 0], side="right")
    alive = np.array([(last >= k).sum() for k in range(target.bins)])
    died = np.array([known[last == k, 1].sum() for k in range(target.bins)])
    # Half an event more on either side: no bin is certain.
    base = np.log((died + 0.5) / (alive - died + 0.5))
    return Criterion(target, start, edges=edges, base=base)


def total_loss(
    out: MILOutput,
    y: Tensor,
    criteria: tuple[Criterion, ...],
    bag_weight: float,
    others: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """Bag loss, deep supervision and penalty together; None where no label is known.

    Args:
        y: (B, T, 2).
        others: Log hazards and labels of bags at risk beside these, for the Cox loss.
    """
    terms: list[Tensor] = []
    for t, criterion in enumerate(criteria):
        loss = criterion(out.logits, y[:, t], others)
        if loss is not None:
            terms.append(bag_weight * loss)
        for deep in out.deep:
            loss = criterion(deep.logits, y[deep.bag, t], others)
            if loss is not None:
                terms.append(deep.weight * loss)
    if not terms:
        return None
    if out.penalty is not None:
        terms.append(out.penalty)
    return torch.stack(terms).sum()
