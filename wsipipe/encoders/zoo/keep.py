"""KEEP: a ViT-L/16 with a projection, knowledge-enhanced vision and language; unit length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

CARDS = (
    EncoderCard(
        name="keep",
        aliases=("KEEP",),
        dim=768,
        tile_px=224,
        mpp=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        kind="multimodal",
        interpolation="bicubic",
        pooling="projected-unit",
        precision="fp16",
        arch="vit_large_patch16_224",
        arch_kwargs={"init_values": 1e-5, "dynamic_img_size": True},
        layout="keep",
        drops=("text.*", "logit_scale"),
        hub="Astaxanthin/KEEP",
        licence="MIT",
        commercial=True,
        params=304_728_576,
        paper="arXiv 2412.13126",
        unverified=("licence",),
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.headed import build_keep

    return build_keep(card)
