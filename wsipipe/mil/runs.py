"""A model in training, and the bags it trains on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.base import Aggregator
from wsipipe.mil.losses import Criterion
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.standardise import standardised

__all__ = ["BagSet", "Run"]


@dataclass(frozen=True)
class BagSet:
    """The bags of a cohort: one a slide, or one a patient with the tiles of all its slides.

    Attributes:
        bank: Features by slide.
        members: Slides of each bag.
    """

    bank: FeatureBank
    members: tuple[tuple[str, ...], ...]

    def get(self, index: int) -> Tensor:
        """(N, D) as stored."""
        parts = [self.bank.get(s) for s in self.members[index]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def draw(self, index: int, tiles: int, rng: np.random.Generator) -> Tensor:
        """At most `tiles` tiles of the bag, shared among its slides; all where `tiles` is 0."""
        if not tiles:
            return self.get(index)
        members = self.members[index]
        total = sum(self.bank.rows(s) for s in members)
        if total <= tiles:
            return self.get(index)
        share = [max(1, round(tiles * self.bank.rows(s) / total)) for s in members]
        parts = [self.bank.sample(s, n, rng) for s, n in zip(members, share, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass
class Run:
    """One model in training.

    Attributes:
        key: Its name within the call, for instance "fold-0/inner-1".
        train, val: Indices of bags.
        y: (B, T, 2) float32 labels; NaN for every bag outside `train` and `val`.
        norm: Mean and spread (D,) of the training part, or None.
        hazards: (B,) last log hazard of each bag of `train`, NaN elsewhere: the risk set of the Cox
            loss beyond one step. None for other losses.
        log: One dictionary an epoch.
    """

    key: str
    model: Aggregator
    criteria: tuple[Criterion, ...]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    y: Tensor
    settings: TrainSettings
    seed: int
    norm: tuple[Tensor, Tensor] | None = None
    log: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    best_epoch: int = -1
    gain_epoch: int = 0
    epoch: int = 0
    done: bool = False
    optimizer: torch.optim.Optimizer | None = None
    scheduler: Any = None
    rng: Tensor | None = None
    hazards: Tensor | None = None
    batch: int = 1

    def prepare(self, device: torch.device) -> None:
        """Make optimiser and schedule; the model moves to the device."""
        s = self.settings
        self.model.to(device)
        if self.norm is not None:
            self.norm = (self.norm[0].to(device), self.norm[1].to(device))
        n = len(self.train)
        self.batch = s.batch_bags or min(16, max(1, n // 16))
        steps = max(1, s.epochs * math.ceil(len(self.train) / self.batch))
        warm = max(1, int(s.warmup * steps))

        def rate(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        # Nearest neighbours have nothing to train; the optimiser wants something to hold.
        trained = list(self.model.parameters()) or [torch.nn.Parameter(torch.zeros(1))]
        self.optimizer = torch.optim.AdamW(
            trained, lr=s.lr, weight_decay=s.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        generator = torch.Generator().manual_seed(self.seed)
        self.rng = generator.get_state()

    @property
    def cox(self) -> bool:
        """Does the loss couple bags through risk sets?"""
        return any(c.target.loss == "cox" for c in self.criteria)

    def at_risk_beside(self, bags: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Last log hazards (M,) and labels (M, 2) of the training bags that are not these."""
        if self.hazards is None:
            return None
        y = self.y[:, 0].to(self.hazards.device)
        known = ~torch.isnan(self.hazards) & ~torch.isnan(y[:, 0])
        known[list(bags)] = False
        return self.hazards[known], y[known]

    def normalise(self, x: Tensor) -> Tensor:
        """Features as the model takes them."""
        if self.norm is None:
            return x
        return standardised(x, self.norm)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values only."""
        assert self.optimizer is not None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict()["last_epoch"],
            "best": self.best,
            "rng": self.rng,
            "hazards": self.hazards,
            "numbers": [self.best_loss, self.best_epoch, self.gain_epoch, self.epoch, self.done],
            "log": self.log,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`, after `prepare`."""
        assert self.optimizer is not None
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.last_epoch = int(state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * rate(self.scheduler.last_epoch)
        self.best, self.rng, self.log = state["best"], state["rng"], list(state["log"])
        self.hazards = state["hazards"]
        loss, best, gain, epoch, done = state["numbers"]
        self.best_loss, self.best_epoch, self.gain_epoch = float(loss), int(best), int(gain)
        self.epoch, self.done = int(epoch), bool(done)
