"""GPFM (ViT-L/14) and mSTAR (ViT-L/16) by HKUST.

Trap: GPFM's authors read 512 px at 40x and shrink to 224; its GitHub file nests the teacher and
chunks its blocks, the hub's file is plain timm.
"""

from __future__ import annotations

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

CARDS = (
    EncoderCard(
        name="gpfm",
        aliases=("GPFM",),
        dim=1024,
        tile_px=512,
        mpp=0.25,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize_px=224,
        interpolation="bicubic",
        pooling="cls",
        precision="fp16",
        arch="vit_large_patch14_dinov2",
        arch_kwargs={"img_size": 224, "init_values": 1e-5},
        layout="dinov2",
        unwrap=("teacher",),
        strip=("backbone.",),
        drops=("mask_token", "*dino_head*", "*ibot_head*"),
        hub="majiabo/GPFM",
        file=("GPFM.pth",),
        url="https://github.com/birkhoffkiki/GPFM/releases/download/ckpt/GPFM.pth",
        licence="CC-BY-NC-ND-4.0",
        params=303_227_904,
        paper="arXiv 2407.18449",
    ),
    EncoderCard(
        name="mstar",
        aliases=("mSTAR",),
        dim=1024,
        tile_px=224,
        mpp=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="cls",
        arch="vit_large_patch16_224",
        arch_kwargs={"init_values": 1e-5, "dynamic_img_size": True},
        layout="timm",
        drops=("head.*",),
        hub="Wangyh/mSTAR",
        file=("pytorch_model.bin", "model.safetensors"),
        licence="unverified",
        gated=True,
        public="gated",
        params=303_350_784,
        paper="arXiv 2407.15362",
        unverified=("licence", "mpp"),
    ),
)
