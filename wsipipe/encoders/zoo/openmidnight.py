"""OpenMidnight: a DINOv2 ViT-g/14 with registers; native DINOv2 keys, renamed to timm's."""

from __future__ import annotations

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

CARDS = (
    EncoderCard(
        name="openmidnight",
        aliases=("open-midnight",),
        dim=1536,
        tile_px=224,
        mpp=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pooling="cls",
        precision="fp16",
        arch="vit_giant_patch14_reg4_dinov2",
        arch_kwargs={"img_size": 224},
        layout="dinov2",
        unwrap=("teacher",),
        strip=("backbone.",),
        drops=("mask_token", "*dino_head*", "*ibot_head*"),
        hub="SophontAI/OpenMidnight",
        file=("teacher_checkpoint_load.pt",),
        licence="Apache-2.0 (gated)",
        commercial=True,
        gated=True,
        public="gated",
        params=1_134_774_272,
        paper="github.com/MedARC-AI/OpenMidnight",
        notes=("Trained at several resolutions; 0.5 µm/px is the default.",),
    ),
)
