"""SimCLR, MoCo v2, MoCo v3, BYOL: two views of a tile should agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsipipe.pretrain.backbone import Backbone, build_backbone
from wsipipe.pretrain.losses import byol_loss, symmetric_moco_v3_loss
from wsipipe.pretrain.methods.base import At, Method, copy_weights, ema_update, mlp, pair
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["Byol", "MocoV2", "MocoV3", "SimClr"]


class SimClr(Method):
    """SimCLR (2002.05709): each view finds its twin among all others of the batch."""

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__(recipe, classes)
        o = recipe.loss
        self.head = SimCLRProjectionHead(self.student.out_dim, o.hidden, o.out)
        self.criterion = NTXentLoss(o.temp, gather_distributed=torch.distributed.is_available())

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        a, b = batch.views
        z = self.head(self.student(torch.cat([a, b]))).float()
        return {"loss": self.criterion(*z.chunk(2))}


class _Momentum(Method):
    """A student and a key encoder that follows it slowly."""

    teacher: Backbone
    head: Any
    teacher_head: Any

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        self.teacher = build_backbone(recipe.arch, teacher=True)

    def synchronise(self) -> None:
        """See `Method`."""
        copy_weights(self.student, self.teacher)
        copy_weights(self.head, self.teacher_head)

    def after_update(self, at: At) -> None:
        """See `Method`."""
        m = self.momentum(at, self.recipe.loss.ema)
        ema_update(self.student, self.teacher, m)
        ema_update(self.head, self.teacher_head, m)

    def encoder(self) -> Backbone:
        """See `Method`. Contrastive methods are published with the query encoder."""
        return self.student

    @torch.no_grad()
    def keys(self, images: Tensor) -> Tensor:
        """Projections of the key encoder, (B, out)."""
        out: Tensor = self.teacher_head(self.teacher(images)).float()
        return out


class MocoV2(_Momentum):
    """MoCo v2 (1911.05722, 2003.04297): a queue of former keys as negatives."""

    min_batch = 1

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead

        super().__init__(recipe, classes)
        o, dim = recipe.loss, self.student.out_dim
        self.head, self.teacher_head = pair(lambda: MoCoProjectionHead(dim, o.hidden, o.out))
        self.criterion = NTXentLoss(
            o.temp,
            memory_bank_size=(o.queue, o.out),
            gather_distributed=torch.distributed.is_available(),
        )
        self.synchronise()

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        query, key = batch.views
        q = self.head(self.student(query)).float()
        return {"loss": self.criterion(q, self.keys(key))}

    # lightly keeps its queue in buffers that are not saved: a resumed run would start it anew.
    def get_extra_state(self) -> dict[str, Tensor]:
        """The queue and its position."""
        bank = self.criterion.memory_bank
        return {"bank": bank.bank, "bank_ptr": bank.bank_ptr}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the queue."""
        bank = self.criterion.memory_bank
        bank.bank, bank.bank_ptr = state["bank"].to(bank.bank), state["bank_ptr"].to(bank.bank_ptr)


class MocoV3(_Momentum):
    """MoCo v3 (2104.02057): a momentum encoder, a predictor, the batch as negatives."""

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        o, dim = recipe.loss, self.student.out_dim
        self.head, self.teacher_head = pair(
            lambda: mlp(dim, o.hidden, o.hidden, o.out, last_norm=True)
        )
        self.predictor = mlp(o.out, o.hidden, o.out, last_norm=True)
        self.synchronise()

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        a, b = batch.views
        q1 = self.predictor(self.head(self.student(a))).float()
        q2 = self.predictor(self.head(self.student(b))).float()
        k1, k2 = self.keys(a), self.keys(b)
        return {"loss": symmetric_moco_v3_loss(q1, q2, k1, k2, self.recipe.loss.temp)}


class Byol(_Momentum):
    """BYOL (2006.07733): predict the momentum encoder's projection of the other view."""

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__(recipe, classes)
        o, dim = recipe.loss, self.student.out_dim
        self.head, self.teacher_head = pair(lambda: BYOLProjectionHead(dim, o.hidden, o.out))
        self.predictor = BYOLPredictionHead(o.out, o.hidden, o.out)
        self.synchronise()

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        a, b = batch.views
        p1, p2 = (self.predictor(self.head(self.student(x))).float() for x in (a, b))
        return {"loss": byol_loss(p1, self.keys(b)) + byol_loss(p2, self.keys(a))}
