"""PathOrchestra: a ViT-L/16."""

from __future__ import annotations

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

CARDS = (
    EncoderCard(
        name="pathorchestra",
        aliases=("path_orchestra", "path-orchestra"),
        dim=1024,
        tile_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="cls",
        arch="vit_large_patch16_224",
        arch_kwargs={"init_values": 1e-5, "dynamic_img_size": True},
        layout="timm",
        drops=("head.*",),
        hub="AI4Pathology/PathOrchestra",
        file=("pytorch_model.bin", "model.safetensors"),
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        public="gated",
        params=303_350_784,
        paper="arXiv 2503.24345",
        unverified=("mpp",),
    ),
)
