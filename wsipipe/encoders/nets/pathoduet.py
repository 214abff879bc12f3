"""PathoDuet: a ViT-B/16 with an extra pretext token in front of the class token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.nets.vit import timm_model

__all__ = ["PathoDuet", "build_pathoduet"]


class PathoDuet(nn.Module):
    """Tokens [pretext, class, patches]; features are LN(mean of patch tokens).

    `pos_embed` covers all 2 + 196 tokens; the trunk has no final norm, `fc_norm` follows the mean.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        dim = trunk.embed_dim
        trunk.pretext_token = nn.Parameter(torch.zeros(1, 1, dim))
        trunk.pos_embed = nn.Parameter(torch.zeros(1, trunk.pos_embed.shape[1] + 1, dim))

    @property
    def weights_module(self) -> nn.Module:
        """The part that the published weights describe."""
        trunk: nn.Module = self.trunk
        return trunk

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 224, 224) in 0..1, not normalised, to (B, 768)."""
        trunk = self.trunk
        patches = trunk.patch_embed(pixels)
        prefix = torch.cat([trunk.pretext_token, trunk.cls_token], dim=1)
        tokens = torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
        tokens = trunk.norm(trunk.blocks(tokens + trunk.pos_embed))
        features: Tensor = trunk.fc_norm(tokens[:, 2:].mean(dim=1))
        return features


def build_pathoduet(card: EncoderCard) -> nn.Module:
    """PathoDuet, random weights."""
    return PathoDuet(timm_model(str(card.arch), card.arch_kwargs))
