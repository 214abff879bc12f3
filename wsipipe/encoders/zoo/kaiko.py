"""Kaiko's five DINO / DINOv2 ViTs and Midnight-12k.

Traps: the ViTs are non-commercial (Midnight is MIT), and the ViT-L/14 keeps its 518 px grid of
positions, interpolated at run time; built at 224 px it gives other features.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import HALF

__all__ = ["CARDS", "build"]

_RELEASE = "https://github.com/kaiko-ai/towards_large_pathology_fms/releases/download/0.0.1"

VITS16 = EncoderCard(
    name="kaiko-vits16",
    aliases=("kaiko-s16", "kaiko_vits16"),
    dim=384,
    tile_px=224,
    mpp=0.5,
    mean=HALF,
    std=HALF,
    pooling="cls",
    arch="vit_small_patch16_224",
    arch_kwargs={"dynamic_img_size": True},
    layout="dinov2",
    drops=("head.*", "mask_token"),
    hub="1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms",
    url=f"{_RELEASE}/vits16.pth",
    licence="Kaiko Non-Commercial Public License v1",
    params=21_665_664,
    paper="arXiv 2404.15217",
)


def _vit(size: str, alias: str, **changes: object) -> EncoderCard:
    return replace(
        VITS16,
        name=f"kaiko-vit{size}",
        aliases=(f"kaiko-{alias}", f"kaiko_vit{size}"),
        url=f"{_RELEASE}/vit{size}.pth",
        **changes,  # type: ignore[arg-type]
    )


VITS8 = _vit(
    "s8",
    "s8",
    arch="vit_small_patch8_224",
    hub="1aurent/vit_small_patch8_224.kaiko_ai_towards_large_pathology_fms",
    params=21_670_272,
)
VITB16 = _vit(
    "b16",
    "b16",
    dim=768,
    arch="vit_base_patch16_224",
    hub="1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms",
    params=85_798_656,
)
VITB8 = replace(
    _vit(
        "b8",
        "b8",
        dim=768,
        arch="vit_base_patch8_224",
        hub="1aurent/vit_base_patch8_224.kaiko_ai_towards_large_pathology_fms",
        params=85_807_872,
        notes=("Trained at 2, 1, 0.5 and 0.25 µm/px; 0.5 is the default.",),
        unverified=("list of training resolutions",),
    ),
    aliases=("kaiko-b8", "kaiko_vitb8", "kaiko-ai", "kaiko"),
)
VITL14 = _vit(
    "l14",
    "l14",
    dim=1024,
    arch="vit_large_patch14_reg4_dinov2",
    arch_kwargs={"img_size": 518, "dynamic_img_size": True},
    hub="1aurent/vit_large_patch14_reg4_dinov2.kaiko_ai_towards_large_pathology_fms",
    params=304_370_688,
    unverified=("grid of positions stored in vitl14.pth",),
)

MIDNIGHT = EncoderCard(
    name="midnight-12k",
    aliases=("midnight", "midnight12k", "midnight_12k", "kaiko-midnight"),
    dim=3072,
    tile_px=224,
    mpp=0.5,
    mean=HALF,
    std=HALF,
    pooling="cls+mean",
    alternatives={"cls": "midnight-12k-cls"},
    precision="fp16",
    arch="vit_giant_patch14_dinov2",
    arch_kwargs={"img_size": 224, "init_values": 1e-5},
    layout="hf-dinov2",
    drops=("embeddings.mask_token",),
    hub="kaiko-ai/midnight",
    licence="MIT",
    commercial=True,
    params=1_134_769_664,
    paper="arXiv 2504.05186",
    notes=(
        "Trained at 0.25, 0.5, 1 and 2 µm/px; 0.5 is the default.",
        "TRIDENT and eva use the class token alone: midnight-12k-cls.",
    ),
    unverified=("image_size of config.json", "whether it is gated", "training resolutions"),
)

CARDS = (
    VITS16,
    VITS8,
    VITB16,
    VITB8,
    VITL14,
    MIDNIGHT,
    replace(
        MIDNIGHT,
        name="midnight-12k-cls",
        aliases=("midnight12k-cls",),
        dim=1536,
        pooling="cls",
        alternatives={"cls+mean": "midnight-12k"},
    ),
)
