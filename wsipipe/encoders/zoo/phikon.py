"""Phikon (iBOT ViT-B/16) and Phikon-v2 (DINOv2 ViT-L/16) by Owkin.

Both are published as transformers models; `remap` renames their keys to timm's, so that
transformers is not needed.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

PHIKON = EncoderCard(
    name="phikon",
    aliases=("phikon-v1", "phikon_v1", "ibot-vit-b-pancan"),
    dim=768,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="cls",
    arch="vit_base_patch16_224",
    # transformers' ViT has 1e-12 where timm has 1e-6; a thousandth of the tolerance, but free.
    arch_kwargs={"norm_layer": "LayerNorm1e-12"},
    layout="hf-vit",
    drops=("pooler.*",),
    hub="owkin/phikon",
    revision="057cc0295895c2df3dd7681a89680da6015cbefe",
    licence="Owkin non-commercial licence",
    params=85_798_656,
    paper="medRxiv 2023.07.21.23292757",
    unverified=("layer_norm_eps of config.json",),
)

PHIKON_V2 = EncoderCard(
    name="phikon-v2",
    aliases=("phikon_v2", "phikonv2"),
    dim=1024,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    pooling="cls",
    alternatives={"cls+mean": "phikon-v2-cls-mean"},
    arch="vit_large_patch16_224",
    arch_kwargs={"init_values": 1e-5},
    layout="hf-dinov2",
    drops=("embeddings.mask_token",),
    hub="owkin/phikon-v2",
    licence="Owkin non-commercial licence",
    params=303_350_784,
    paper="arXiv 2409.09173",
    unverified=("text of config.json",),
)

PHIKON_V2_CLS_MEAN = replace(
    PHIKON_V2,
    name="phikon-v2-cls-mean",
    aliases=(),
    dim=2048,
    pooling="cls+mean",
    alternatives={"cls": "phikon-v2"},
)

CARDS = (PHIKON, PHIKON_V2, PHIKON_V2_CLS_MEAN)
