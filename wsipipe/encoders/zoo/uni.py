"""UNI (ViT-L/16) and UNI2-h (ViT-H/14, 8 registers) by the Mahmood lab.

Trap: without `init_values` timm builds UNI without LayerScale, and the weights of it would be
left over; loading is strict, so such a network cannot be had here.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import SWIGLU
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

UNI = EncoderCard(
    name="uni",
    aliases=("uni_v1", "uni1", "uni-v1"),
    dim=1024,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="cls",
    precision="fp16",
    arch="vit_large_patch16_224",
    arch_kwargs={
        "img_size": 224,
        "patch_size": 16,
        "init_values": 1e-5,
        "dynamic_img_size": True,
    },
    layout="timm",
    hub="MahmoodLab/UNI",
    revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
    file=("pytorch_model.bin", "model.safetensors"),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    public="gated",
    params=303_350_784,
    paper="arXiv 2308.15474; Nature Medicine 2024",
)

UNI2_H = replace(
    UNI,
    name="uni2-h",
    aliases=("uni_v2", "uni2", "uni2h", "uni-v2", "uni2_h"),
    dim=1536,
    precision="bf16",
    arch="vit_giant_patch14_224",
    arch_kwargs={
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 5.33334,
        "no_embed_class": True,
        "reg_tokens": 8,
        "dynamic_img_size": True,
        **SWIGLU,
    },
    hub="MahmoodLab/UNI2-h",
    revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
    params=681_394_176,
    paper="huggingface.co/MahmoodLab/UNI2-h",
)

CARDS = (UNI, UNI2_H)
