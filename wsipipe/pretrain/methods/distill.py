"""DINO, iBOT, DINOv2 and their kin: the student answers as its own slow average does.

One class, switched by options: masked patches (iBOT), KoLeo or kernel density (Virchow2), Sinkhorn
or centring, masked reconstruction with an amplitude-spectrum term and flexible patches (PLUTO).
"""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import torch
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pretrain.backbone import Backbone, build_backbone
from wsipipe.pretrain.losses import (
    TeacherTargets,
    cross_view_loss,
    kde_loss,
    masked_patch_loss,
)
from wsipipe.pretrain.methods.base import At, Method, copy_weights, ema_update, pair
from wsipipe.pretrain.methods.masked import Reconstruction, random_keep
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["Dino", "block_masks"]


class Dino(Method):
    """Self-distillation (DINO 2104.14294, iBOT 2111.07832, DINOv2 2304.07193)."""

    min_batch = 1

    @classmethod
    def masks(cls, recipe: Recipe) -> bool:
        """See `Method`."""
        return recipe.loss.ibot is not None

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        from lightly.loss import KoLeoLoss

        super().__init__(recipe, classes)
        o = recipe.loss
        self.teacher = build_backbone(recipe.arch, masking=self.masks(recipe), teacher=True)
        self.head, self.teacher_head = pair(lambda: self._new_head(o.k))
        self.targets = TeacherTargets(o.k, o.centering)
        self.own_patch_head = o.ibot is not None and o.ibot.separate_head
        if o.ibot:
            patch_k = o.ibot.k if self.own_patch_head else o.k
            self.patch_targets = TeacherTargets(patch_k, o.centering)
        if self.own_patch_head:
            self.patch_head, self.teacher_patch_head = pair(lambda: self._new_head(o.ibot.k))
        self.koleo = KoLeoLoss()
        if o.reconstruct:
            self.reconstruction = Reconstruction(
                self.student, recipe.views.global_.px, o.reconstruct
            )
        if (o.koleo or o.kde) and recipe.optim.batch // recipe.optim.accumulate < 2:
            raise ConfigError("KoLeo and KDE need two tiles in a batch at least.")
        copy_weights(self.student, self.teacher)

    def _new_head(self, k: int) -> Any:
        from lightly.models.modules import DINOProjectionHead

        o = self.recipe.loss
        with warnings.catch_warnings():
            # lightly's weight_norm is torch's old one, whose parameter names checkpoints keep.
            warnings.simplefilter("ignore", FutureWarning)
            return DINOProjectionHead(self.student.dim, o.hidden, o.bottleneck, k)

    def synchronise(self) -> None:
        """See `Method`."""
        copy_weights(self.student, self.teacher)

    def encoder(self) -> Backbone:
        """See `Method`."""
        return self.teacher

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        o = self.recipe.loss
        n_views, b = len(batch.views), batch.views[0].shape[0]
        images = torch.cat(batch.views)
        self._choose_patch(at)
        temp = teacher_temp(at.share, o.temp, o.temp_warmup)
        mask = self._mask(images.shape[-1], n_views, at) if o.ibot else None
        mask = None if mask is None else mask.to(images.device)

        with torch.no_grad():
            t_tokens = self._encode(self.teacher, images)
            t_logits = self.teacher_head(t_tokens[:, 0]).float()
            targets = self.targets(t_logits, temp).view(n_views, b, -1)
        flat = None if mask is None else mask.flatten(1)
        s_tokens = self._encode(self.student, images, flat)
        summaries = [s_tokens[:, 0]]
        if batch.local:
            summaries.append(self._encode(self.student, torch.cat(batch.local))[:, 0])
        s_logits = self.head(torch.cat(summaries)).float()
        s_logits = s_logits.view(n_views + len(batch.local), b, -1)
        out = {"dino": cross_view_loss(targets, s_logits, o.student_temp)}
        loss = out["dino"]
        if o.ibot and mask is not None:
            out["ibot"] = self._patch_loss(t_tokens, s_tokens, mask, temp)
            loss = loss + o.ibot.weight * out["ibot"]
        chunks = s_tokens[:, 0].float().chunk(n_views)
        if o.koleo:
            out["koleo"] = torch.stack([self.koleo(c) for c in chunks]).sum()
            loss = loss + o.koleo * out["koleo"]
        if o.kde:
            out["kde"] = torch.stack([kde_loss(c, o.kde.kappa) for c in chunks]).sum()
            loss = loss + o.kde.weight * out["kde"]
        if o.reconstruct:
            out["reconstruct"] = self._reconstruct(batch.views[0], at)
            loss = loss + o.reconstruct.weight * out["reconstruct"]
        entropy = -(targets * targets.clamp_min(1e-12).log()).sum(-1).mean()
        out["teacher_entropy_share"] = entropy / math.log(targets.shape[-1])
        return {"loss": loss, **{k: v.detach() for k, v in out.items()}}

    @staticmethod
    def _encode(net: Backbone, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 1 + N, dim): the summary token, then patch tokens (none for other networks)."""
        if not net.is_vit:
            whole: Tensor = net(images)
            return whole.unsqueeze(1)
        tokens = net.tokens(images, mask=mask)
        return torch.cat([net.summary(tokens).unsqueeze(1), tokens[:, net.n_prefix :]], dim=1)

    def _mask(self, px: int, n_views: int, at: At) -> Tensor:
        """(views·B, g, g) bool for this process's rows of the joined batch."""
        o, g = self.recipe.loss.ibot, self.student.grid(px)
        masks = block_masks(n_views * at.n, g, o.images, o.ratio, at.generator)
        return masks.view(n_views, at.n, g, g)[:, at.rows].flatten(0, 1)

    def _patch_loss(self, teacher: Tensor, student: Tensor, mask: Tensor, temp: float) -> Tensor:
        """An empty mask gives 0, and heads still see a (0, dim) batch: no unused parameters."""
        own = self.own_patch_head
        head = self.patch_head if own else self.head
        teacher_head = self.teacher_patch_head if own else self.teacher_head
        flat = mask.flatten(1)
        with torch.no_grad():
            logits = teacher_head(teacher[:, 1:][flat]).float()
            targets = self.patch_targets(logits, temp)
        answers = head(student[:, 1:][flat]).float()
        return masked_patch_loss(targets, answers, mask, self.recipe.loss.student_temp)

    def _reconstruct(self, images: Tensor, at: At) -> Tensor:
        o = self.recipe.loss.reconstruct
        keep, mask = random_keep(
            at, self.student.grid(images.shape[-1]) ** 2, o.mask, images.device
        )
        pixels, spectrum = self.reconstruction(self.student, images, keep, mask)
        mixed: Tensor = (1 - o.fourier) * pixels + o.fourier * spectrum
        return mixed

    def _choose_patch(self, at: At) -> None:
        """FlexiViT: this step's patch size, the same on every process."""
        sizes = self.recipe.arch.patch_sizes
        if sizes:
            draw = int(torch.randint(len(sizes), (1,), generator=at.generator))
            self.student.patch_now = self.teacher.patch_now = sizes[draw]

    def before_update(self, at: At) -> None:
        """Keep the prototypes still at the start."""
        if at.share >= self.recipe.loss.freeze_last:
            return
        heads = [self.head, self.patch_head] if self.own_patch_head else [self.head]
        for head in heads:
            for parameter in head.last_layer.parameters():
                parameter.grad = None

    def after_update(self, at: At) -> None:
        """See `Method`."""
        m = self.momentum(at, self.recipe.loss.ema)
        ema_update(self.student, self.teacher, m)
        ema_update(self.head, self.teacher_head, m)
        if self.own_patch_head:
            ema_update(self.patch_head, self.teacher_patch_head, m)


def teacher_temp(share: float, first_last: tuple[float, float], warmup: float) -> float:
    """Linear from first to last over `warmup` of training, then constant."""
    first, last = first_last
    return last if warmup <= 0 else first + (last - first) * min(1.0, share / warmup)


def block_masks(
    n: int, grid: int, images: float, ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Blockwise masks, (n, grid, grid) bool; a share `images` of them is not empty."""
    from lightly.models.utils import random_block_mask

    if int(n * images) == 0:
        return torch.zeros(n, grid, grid, dtype=torch.bool)
    # lightly draws from Python's global generator; ours decides, and the caller's is put back.
    state = random.getstate()
    random.seed(int(torch.randint(2**62, (1,), generator=generator)))
    try:
        masks: Tensor = random_block_mask(
            (n, grid, grid),
            batch_mask_ratio=images,
            min_image_mask_ratio=ratio[0],
            max_image_mask_ratio=ratio[1],
            # A block of 4 patches, but never more than what the smallest mask may hold.
            min_num_masks_per_block=max(1, min(4, int(grid * grid * ratio[0]))),
            max_num_masks_per_block=grid * grid,
        )
    finally:
        random.setstate(state)
    return masks
