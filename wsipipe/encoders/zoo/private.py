"""Encoders whose weights are not public: the architecture of the paper, the user's checkpoint.

    wsipipe extract slides --encoder rudolfv --weights FILE --mpp 0.5

Nesting and prefixes of DINO-style checkpoints (`teacher`, `backbone.`) are taken off. Where a paper
says less than the card, the card says what is assumed; another layout is a YAML card away.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

RUDOLFV = EncoderCard(
    name="rudolfv",
    aliases=("rudolf-v",),
    dim=1024,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    pooling="cls",
    precision="fp16",
    arch="vit_large_patch14_dinov2",
    arch_kwargs={"img_size": 224, "init_values": 1e-5},
    layout="dinov2",
    unwrap=("state_dict", "model", "teacher"),
    strip=("module.", "teacher.", "backbone."),
    drops=("mask_token", "head.*", "*dino_head*", "*ibot_head*"),
    licence="proprietary (Aignostics)",
    public="none",
    params=303_227_904,
    paper="arXiv 2401.04079",
    unverified=("patch size", "registers", "normalisation", "mpp"),
)

BROW = replace(
    RUDOLFV,
    name="brow",
    aliases=("BROW",),
    dim=768,
    mpp=None,
    precision="auto",
    arch="vit_base_patch16_224",
    arch_kwargs={"img_size": 224},
    licence="unreleased",
    params=85_798_656,
    paper="arXiv 2309.08259",
    unverified=("patch size 16 or 8", "normalisation", "mpp"),
)

PLUTO = replace(
    RUDOLFV,
    name="pluto",
    aliases=("pathai-pluto",),
    dim=384,
    mpp=None,
    arch="vit_small_patch16_224",
    arch_kwargs={},
    licence="proprietary (PathAI)",
    params=21_665_664,
    paper="arXiv 2405.07905",
    notes=("A FlexiViT: this is its form at patch size 16. Record another in a YAML card.",),
    unverified=("patch sizes", "normalisation", "pooling"),
)

CARDS = (RUDOLFV, BROW, PLUTO)
