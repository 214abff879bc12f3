"""Prov-GigaPath's tile encoder: DINOv2 ViT-g/16.

Trap: 256 px tiles at 20x, of which the network sees the central 224: the only encoder whose
transform cuts a border off.
"""

from __future__ import annotations

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

CARDS = (
    EncoderCard(
        name="prov-gigapath",
        aliases=("gigapath", "gigapath-tile", "prov_gigapath"),
        dim=1536,
        tile_px=256,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize_px=256,
        crop_px=224,
        interpolation="bicubic",
        pooling="cls",
        precision="fp16",
        arch="vit_giant_patch14_dinov2",
        arch_kwargs={
            "img_size": 224,
            "in_chans": 3,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "mlp_ratio": 5.33334,
            "init_values": 1e-5,
        },
        layout="timm",
        hub="prov-gigapath/prov-gigapath",
        revision="64f9e26c15019f2d4f6d9113c6822f88bb16b01b",
        file=("pytorch_model.bin",),
        licence="Apache-2.0 with conditions of use (research)",
        gated=True,
        public="gated",
        params=1_134_953_984,
        paper="Nature 2024, 10.1038/s41586-024-07441-w",
    ),
)
