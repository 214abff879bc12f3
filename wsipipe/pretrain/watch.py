"""Looks at the encoder while it trains: always the same tiles, and labelled ones where given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsipipe.pretrain.methods import Method
from wsipipe.pretrain.monitors import CollapseAlarm, Limits, feature_health, knn_accuracy
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.source import ArrayTiles, Source
from wsipipe.pretrain.views import normalise, resize, to_float
from wsipipe.types import TileArray

__all__ = ["Watch"]

_BATCH = 256


class Watch:
    """Features of watched tiles, their health, and the alarm.

    Args:
        method: What is trained.
        recipe: Views (normalisation) and monitor settings.
        source: Gives the watched tiles: the first of batch 0.
        labelled: Tiles with labels for a k-NN, even rows against odd ones; or None.
        device: Where the method is.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        source: Source,
        labelled: ArrayTiles | None,
        device: torch.device,
    ) -> None:
        self.method, self.recipe, self.source = method, recipe, source
        self.labelled, self.device = labelled, device
        m = recipe.monitor
        limits = Limits(m.std, m.rank, m.entropy, m.patience, m.grace)
        self.alarm = CollapseAlarm(limits, recipe.optim.steps)
        self._tiles: TileArray | None = None

    @torch.no_grad()
    def features(self, tiles: TileArray) -> Tensor:
        """(N, D) float32 features of uint8 tiles by the encoder that would be exported."""
        encoder = self.method.encoder()
        was, px = encoder.training, self.recipe.views.global_.px
        encoder.eval()
        out = []
        for i in range(0, len(tiles), _BATCH):
            images = to_float(torch.from_numpy(_middle(tiles[i : i + _BATCH], px)).to(self.device))
            out.append(encoder(normalise(resize(images, px), self.recipe.views)).float().cpu())
        encoder.train(was)
        return torch.cat(out)

    def check(self, step: int, entropy: float | None) -> tuple[dict[str, float], str | None]:
        """Measure; returns the values, and a sentence if training must stop.

        Args:
            step: Updates done.
            entropy: Of the teacher, as a share of ln K; None for methods without.
        """
        if self._tiles is None:
            n = self.recipe.monitor.tiles
            self._tiles = self.source.batch(0, n, slice(0, n)).tiles
        features = self.features(self._tiles)
        if not torch.isfinite(features).all():
            return {}, f"at step {step} the features are not finite numbers"
        values = feature_health(features)
        if entropy is not None:
            values["teacher_entropy_share"] = entropy
        if self.labelled is not None:
            label = torch.from_numpy(self.labelled.labels["label"])
            x = self.features(self.labelled.tiles)
            values["knn"] = knn_accuracy(x[::2], label[::2], x[1::2], label[1::2])
        return values, self.alarm.check(step, features.shape[1], values)


def _middle(tiles: TileArray, px: int) -> TileArray:
    """The middle of tiles that are larger than the encoder's: its resolution stays."""
    y, x = ((size - px) // 2 if size > px else 0 for size in tiles.shape[1:3])
    return np.ascontiguousarray(tiles[:, y : y + px, x : x + px])
