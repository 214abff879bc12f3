"""PathoDuet (2312.09894): MoCo v3 with a pretext token that asks about another picture.

Cross-scale: the network looks at a region and is handed a patch of it; it must say where the patch
lies and what it is. Cross-stain: it looks at one stain, is handed a crop, and must find the
features of the same tissue in the other stain. Written from the paper's formulas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.pretrain.losses import moco_v3_loss, symmetric_moco_v3_loss
from wsipipe.pretrain.methods.base import At, mlp
from wsipipe.pretrain.methods.contrastive import MocoV3
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.stain import recolour_to_dab
from wsipipe.pretrain.views import ViewBatch

__all__ = ["PathoDuet"]


class PathoDuet(MocoV3):
    """Both phases after the plain MoCo v3 one; `loss.cross_stain` picks."""

    plain = True

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        if not self.student.is_vit:
            raise ConfigError("PathoDuet needs a vision transformer.")
        o, px = recipe.loss, recipe.views.global_.px
        if o.cross_stain:
            # The bridge alone trains here: no second view goes through the predictor's twin.
            return
        self.locate = mlp(self.student.dim, o.hidden, self.student.grid(px) ** 2, last_norm=False)

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        return self._cross_stain(batch) if self.recipe.loss.cross_stain else self._scale(batch)

    def _scale(self, batch: ViewBatch) -> dict[str, Tensor]:
        o, net = self.recipe.loss, self.student
        assert batch.region is not None
        assert batch.plain is not None
        a, b = batch.views
        f1, f2 = self.head(net(a)), self.head(net(b))
        q1, q2 = self.predictor(f1).float(), self.predictor(f2).float()
        contrast = symmetric_moco_v3_loss(q1, q2, self.keys(a), self.keys(b), o.temp)

        pretext = net.patches(batch.plain).mean(dim=1, keepdim=True)
        tokens = net.tokens(batch.region, prefix=pretext)
        where = self.locate(tokens[:, 0]).float().softmax(dim=1)
        patches = tokens[:, 1 + net.n_prefix :].float()
        found = self.head(torch.einsum("bn,bnd->bd", where, patches))
        asked = self.predictor(found).float()
        bridge = _apart(asked, f1) + _apart(asked, f2) + _apart(q1, found) + _apart(q2, found)
        return {
            "loss": contrast + o.bridge * bridge,
            "contrast": contrast.detach(),
            "bridge": bridge.detach(),
        }

    def _cross_stain(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Query: the stained twin asked with its own crop. Key: the H&E tile asked the same."""
        net, teacher = self.student, self.teacher
        he, crop = batch.views
        twin = batch.labels.get("twin")
        if twin is None:
            # The same recolouring for tile and crop; mean and deviation are the recipe's.
            he_twin, crop = _recoloured(he, self.recipe), _recoloured(crop, self.recipe)
        else:
            # Real twins are not cropped at random, so neither is the H&E tile beside them.
            assert batch.plain is not None
            he, he_twin, quarter = batch.plain, twin, twin.shape[-1] // 4
            middle = twin[:, :, quarter : 3 * quarter, quarter : 3 * quarter]
            crop = F.interpolate(middle, crop.shape[-2:], mode="bilinear")
        pretext = net.patches(crop).mean(dim=1, keepdim=True)
        query = net.tokens(he_twin, prefix=pretext)[:, 0]
        q = self.predictor(self.head(query)).float()
        with torch.no_grad():
            asked = teacher.patches(crop).mean(dim=1, keepdim=True)
            tokens = teacher.tokens(he, prefix=asked)
            content = tokens[:, 1 + net.n_prefix :].float()
            spread = content.std(dim=1, keepdim=True).clamp_min(1e-6)
            moved = (content - content.mean(dim=1, keepdim=True)) / spread
            answer = moved.mean(dim=1) + tokens[:, 0].float()
            k = self.teacher_head(answer).float()
        return {"loss": moco_v3_loss(q, k, self.recipe.loss.temp)}


def _apart(prediction: Tensor, target: Tensor) -> Tensor:
    """1.001 − mean cosine; no gradient into the target."""
    return 1.001 - F.cosine_similarity(prediction, target.detach().float(), dim=1).mean()


def _recoloured(images: Tensor, recipe: Recipe) -> Tensor:
    mean, std = recipe.views.mean, recipe.views.std
    if mean is None or std is None:
        return recolour_to_dab(images)
    m = torch.tensor(mean, device=images.device)[None, :, None, None]
    s = torch.tensor(std, device=images.device)[None, :, None, None]
    return (recolour_to_dab(images * s + m) - m) / s
