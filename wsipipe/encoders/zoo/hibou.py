"""Hibou-B and Hibou-L by HistAI: DINOv2 ViTs with 4 registers and SwiGLU.

Published with code of their own that needs `trust_remote_code`; the keys map on stock timm, which
folds the class token's position into the token itself.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import SWIGLU
from wsipipe.encoders.zoo._build import build_timm as build

__all__ = ["CARDS", "build"]

HIBOU_B = EncoderCard(
    name="hibou-b",
    aliases=("hibou_b", "hibou"),
    dim=768,
    tile_px=224,
    mpp=None,
    mean=(0.7068, 0.5755, 0.722),
    std=(0.195, 0.2316, 0.1816),
    interpolation="bicubic",
    pooling="cls",
    arch="vit_base_patch14_reg4_dinov2",
    arch_kwargs={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, **SWIGLU},
    layout="hf-dinov2",
    drops=("embeddings.mask_token", "mask_token"),
    hub="histai/hibou-b",
    licence="Apache-2.0 (gated)",
    commercial=True,
    gated=True,
    public="gated",
    params=85_739_520,
    paper="arXiv 2406.05074",
    unverified=("spelling of the register key on the hub", "training mpp"),
)

HIBOU_L = replace(
    HIBOU_B,
    name="hibou-l",
    aliases=("hibou_l",),
    dim=1024,
    arch="vit_large_patch14_reg4_dinov2",
    # SwiGLU's hidden width is 2,736; 5.3333 would fail.
    arch_kwargs={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.34375, **SWIGLU},
    hub="histai/hibou-L",
    params=303_657_216,
    unverified=("text of config.json", "training mpp"),
)

CARDS = (HIBOU_B, HIBOU_L)
