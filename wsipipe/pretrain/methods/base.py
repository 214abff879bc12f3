"""What a method is: views in, a loss out; and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsipipe.pretrain.backbone import Backbone, build_backbone
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.schedule import cosine
from wsipipe.pretrain.views import ViewBatch

__all__ = ["At", "Method", "copy_weights", "ema_update", "mlp", "pair"]


@dataclass(frozen=True)
class At:
    """Where in training a call happens, and which rows of the joined batch this process has.

    Attributes:
        step: Update, from 0.
        total: Planned updates.
        rows: This process's rows of the joined micro-batch.
        n: Rows of the joined micro-batch.
        generator: For masks; on the CPU, in the same state on every process.
    """

    step: int
    total: int
    rows: slice
    n: int
    generator: torch.Generator

    @property
    def share(self) -> float:
        """Share of training that is over, 0 to 1."""
        return self.step / max(1, self.total)


class Method(nn.Module):
    """One way to train an encoder.

    A subclass builds its networks in `__init__` and computes `forward(batch, at)`; everything that
    must survive a restart is a parameter, a buffer, or in `get_extra_state`.

    Attributes:
        student: The network that gets gradients.
        min_batch: Fewest tiles a process may have in a micro-batch.
        needs: Arrays that the source must give ("label", "text", ...).
        plain: Whether the unchanged tile is needed.
    """

    min_batch: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[bool] = False
    masking: ClassVar[bool] = False

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = build_backbone(recipe.arch, masking=self.masks(recipe))

    @classmethod
    def masks(cls, recipe: Recipe) -> bool:
        """Whether the student needs a mask token."""
        return cls.masking

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """Loss of a micro-batch: "loss" (scalar, with gradient), and scalars to log."""
        raise NotImplementedError

    def prepare(self, batches: Iterable[ViewBatch]) -> None:
        """Called once before the first step of a new run (fit a vocabulary, ...)."""

    def before_update(self, at: At) -> None:
        """Called after backward, before the optimiser."""

    def after_update(self, at: At) -> None:
        """Called after the optimiser."""

    def encoder(self) -> Backbone:
        """The network worth keeping: the EMA teacher where there is one."""
        return self.student

    def exported(self) -> Backbone:
        """What is written to OUT/encoder: plain timm parameters."""
        return self.encoder()

    def head_state(self) -> dict[str, Tensor]:
        """Parameters of a classifier that is worth keeping beside the encoder; {} = none."""
        return {}

    def initialise(self, state: dict[str, Tensor]) -> None:
        """Start the student (and what copies it) from these weights of the timm model."""
        self.student.net.load_state_dict(state)
        self.synchronise()

    def synchronise(self) -> None:
        """Copy the student to its teacher, if there is one."""

    def momentum(self, at: At, first_last: tuple[float, float]) -> float:
        """EMA momentum of this step (cosine from first to last)."""
        return cosine(at.step, at.total, *first_last)


@torch.no_grad()
def ema_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """teacher = momentum·teacher + (1 − momentum)·student; buffers are copied."""
    own: list[Tensor] = [p for p in teacher.parameters() if p.is_floating_point()]
    other = [p.detach() for p in student.parameters() if p.is_floating_point()]
    torch._foreach_lerp_(own, other, 1 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


def copy_weights(student: nn.Module, teacher: nn.Module) -> None:
    """Make the teacher equal to the student, and deaf to gradients."""
    teacher.load_state_dict(student.state_dict())
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)


def mlp(*widths: int, last_norm: bool) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between; the last norm without scale and shift."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=False))
        if not last:
            layers += [nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(b, affine=False))
    return nn.Sequential(*layers)


def pair(build: Callable[[], Any]) -> tuple[Any, Any]:
    """A module and its frozen twin with equal weights.

    Built twice: torch's weight_norm, in lightly's DINO head, cannot be deep-copied.
    """
    student, teacher = build(), build()
    copy_weights(student, teacher)
    return student, teacher
