"""Two Swin families: CTransPath (timm's Swin-T behind a convolutional stem) and Tissue Concepts
(torchvision's Swin v2 with a small "squeezer" behind it)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.nets.vit import PooledVector, timm_model

__all__ = ["ConvStem", "TissueConcepts", "build_ctranspath", "build_tissue_concepts"]


class ConvStem(nn.Module):
    """Two strided convolutions and a 1 x 1 in place of Swin's patch embedding; channels last out.

    Early convolutions help transformers see better, arXiv 2106.14881.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Any = nn.LayerNorm,
        **_timm_arguments: Any,
    ) -> None:
        super().__init__()
        image, patch = _pair(img_size), _pair(patch_size)
        self.grid_size = (image[0] // patch[0], image[1] // patch[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow = embed_dim // 8
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, 2 * narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * narrow, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H/4, W/4, C)."""
        out: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return out


def _pair(edge: int | tuple[int, int]) -> tuple[int, int]:
    return (edge, edge) if isinstance(edge, int) else edge


def build_ctranspath(card: EncoderCard) -> nn.Module:
    """CTransPath, random weights."""
    trunk = timm_model(str(card.arch), {**card.arch_kwargs, "embed_layer": ConvStem})
    return PooledVector(trunk)


class _Squeezer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = F.gelu(self.norm(maps))
        return out


class TissueConcepts(nn.Module):
    """Swin v2 feature maps, squeezed and pooled.

    The order changed between releases of the makers' package: 1.6.3 squeezes each position and then
    averages; 1.0.4 averages first. The published weights are the same, the features are not.

    Args:
        features: torchvision's `swin_v2_*().features`.
        pool_first: The order of 1.0.4.
    """

    def __init__(self, features: nn.Module, channels: int, *, pool_first: bool) -> None:
        super().__init__()
        self.features = features
        self.squeezer = _Squeezer(channels)
        self.pool_first = pool_first

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1, H and W multiples of 32, to (B, C)."""
        maps = self.features(pixels).permute(0, 3, 1, 2)
        if self.pool_first:
            pooled: Tensor = self.squeezer(maps.mean(dim=(2, 3), keepdim=True))
            return pooled.flatten(1)
        squeezed: Tensor = self.squeezer(maps)
        return squeezed.mean(dim=(2, 3))


def build_tissue_concepts(card: EncoderCard) -> nn.Module:
    """Tissue Concepts, random weights. `arch` names torchvision's model."""
    from torchvision.models import get_model

    features = get_model(str(card.arch), weights=None).features
    if not isinstance(features, nn.Module):
        raise TypeError(f"torchvision's {card.arch} has no features")
    return TissueConcepts(features, card.dim, pool_first=card.pooling == "pool-squeeze")
