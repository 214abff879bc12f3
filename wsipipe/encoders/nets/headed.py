"""Trunks with something small behind them: KEEP's projection, a CNN cut off before its end."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.nets.vit import timm_model

__all__ = ["CutCNN", "Keep", "build_cut_cnn", "build_keep"]


class Keep(nn.Module):
    """KEEP's image half: class token, two linear layers, unit length."""

    def __init__(self, visual: Any, dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.visual_head = nn.Sequential(
            nn.Linear(visual.num_features, dim), nn.GELU(), nn.Linear(dim, dim)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 224, 224) to (B, 768), unit length."""
        return F.normalize(self.visual_head(self.visual(pixels)).float(), dim=-1)


def build_keep(card: EncoderCard) -> nn.Module:
    """KEEP, random weights."""
    return Keep(timm_model(str(card.arch), card.arch_kwargs), card.dim)


class CutCNN(nn.Module):
    """The mean over the feature map of an inner stage."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    @property
    def weights_module(self) -> nn.Module:
        """The part that the published weights describe."""
        return self.trunk

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C)."""
        maps: Tensor = self.trunk(pixels)[-1]
        return maps.mean(dim=(2, 3))


def build_cut_cnn(card: EncoderCard) -> nn.Module:
    """A timm CNN up to the stage `out_indices` names, random weights."""
    import timm

    return CutCNN(timm.create_model(str(card.arch), features_only=True, **card.arch_kwargs))
