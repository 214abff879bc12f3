"""Meta's general DINOv2 and DINOv3 encoders, by timm's ports: baselines that saw no pathology.

The DINOv2 models keep their 518 px grid of positions, interpolated at run time.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

DINOV2_L = EncoderCard(
    name="dinov2-vitl14",
    aliases=("dinov2-l", "dinov2_vitl14"),
    dim=1024,
    tile_px=224,
    mpp=None,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    pooling="cls",
    precision="bf16",
    arch="vit_large_patch14_dinov2",
    arch_kwargs={"dynamic_img_size": True},
    layout="dinov2",
    drops=("head.*", "mask_token"),
    hub="timm/vit_large_patch14_dinov2.lvd142m",
    licence="Apache-2.0",
    commercial=True,
    params=304_367_616,
    paper="arXiv 2304.07193",
)

DINOV2_G_REG = replace(
    DINOV2_L,
    name="dinov2-vitg14-reg",
    aliases=("dinov2-g-reg", "dinov2_vitg14_reg"),
    dim=1536,
    arch="vit_giant_patch14_reg4_dinov2",
    hub="timm/vit_giant_patch14_reg4_dinov2.lvd142m",
    params=1_136_483_840,
    paper="arXiv 2309.16588",
)

DINOV3_B = replace(
    DINOV2_L,
    name="dinov3-vitb16",
    aliases=("dinov3-b", "dinov3_vitb16"),
    dim=768,
    arch="vit_base_patch16_dinov3",
    arch_kwargs={},
    layout="timm",
    hub="timm/vit_base_patch16_dinov3.lvd1689m",
    licence="DINOv3 License",
    gated=True,
    public="gated",
    params=85_641_216,
    paper="arXiv 2508.10104",
    notes=("The DINOv3 licence allows commercial use under its own conditions.",),
    unverified=("spelling of the hub's tag",),
)

CARDS = (
    DINOV2_L,
    DINOV2_G_REG,
    DINOV3_B,
    replace(
        DINOV3_B,
        name="dinov3-vitl16",
        aliases=("dinov3-l", "dinov3_vitl16"),
        dim=1024,
        arch="vit_large_patch16_dinov3",
        hub="timm/vit_large_patch16_dinov3.lvd1689m",
        params=303_079_424,
    ),
    replace(
        DINOV3_B,
        name="dinov3-vit7b16",
        aliases=("dinov3-7b", "dinov3_vit7b16"),
        dim=4096,
        arch="vit_7b_patch16_dinov3",
        hub="timm/vit_7b_patch16_dinov3.lvd1689m",
        params=6_716_030_976,
    ),
)
