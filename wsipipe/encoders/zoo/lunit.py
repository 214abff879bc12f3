"""Lunit's benchmark encoders: DINO ViT-S/8 and /16, and three ResNet-50s.

Trap: they have a normalisation of their own; several tools feed them ImageNet's.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build

__all__ = ["CARDS", "build"]

_RELEASE = (
    "https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights"
)

DINO_S8 = EncoderCard(
    name="lunit-dino-s8",
    aliases=("lunit-vits8", "lunit", "lunit-s8"),
    dim=384,
    tile_px=224,
    mpp=None,
    mean=(0.70322989, 0.53606487, 0.66096631),
    std=(0.21716536, 0.26081574, 0.20723464),
    interpolation="bicubic",
    pooling="cls",
    arch="vit_small_patch8_224",
    arch_kwargs={"dynamic_img_size": True},
    layout="timm",
    drops=("head.*", "fc.*"),
    hub="1aurent/vit_small_patch8_224.lunit_dino",
    url=f"{_RELEASE}/dino_vit_small_patch8_ep200.torch",
    licence="Lunit non-commercial",
    params=21_670_272,
    paper="arXiv 2212.04690",
    notes=("Trained on 20x and 40x: 0.5 or 0.25 µm/px.",),
    unverified=("mean and std in the hub's config.json",),
)

DINO_S16 = replace(
    DINO_S8,
    name="lunit-dino-s16",
    aliases=("lunit-vits16", "lunit-s16"),
    arch="vit_small_patch16_224",
    hub="1aurent/vit_small_patch16_224.lunit_dino",
    url=f"{_RELEASE}/dino_vit_small_patch16_ep200.torch",
    params=21_665_664,
)


def _resnet(short: str) -> EncoderCard:
    return replace(
        DINO_S8,
        name=f"lunit-{short}",
        aliases=(f"lunit-resnet50-{short}",),
        dim=2048,
        pooling="gap",
        arch="resnet50",
        arch_kwargs={},
        hub=f"1aurent/resnet50.lunit_{short}",
        url=f"{_RELEASE}/{short}_rn50_ep200.torch",
        params=23_508_032,
        unverified=("normalisation of the ResNet-50 variants",),
    )


CARDS = (DINO_S8, DINO_S16, _resnet("bt"), _resnet("swav"), _resnet("mocov2"))
