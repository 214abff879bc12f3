"""MUSK's image half: BEiT-3 large at 384 px.

Traps: the makers' features are of two scales (`ms_aug`, 2,048 numbers); one scale is 1,024. Mean
and std are 0.5, not ImageNet's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._norms import HALF

if TYPE_CHECKING:
    from torch import nn

MUSK = EncoderCard(
    name="musk",
    aliases=("MUSK",),
    dim=2048,
    tile_px=384,
    mpp=0.5,
    mean=HALF,
    std=HALF,
    kind="multimodal",
    interpolation="bicubic",
    pooling="cls+fine-cls",
    alternatives={"cls": "musk-single-scale"},
    precision="fp16",
    arch="beit3_large_patch16_384",
    arch_kwargs={"dim": 1024, "depth": 24, "heads": 16, "hidden": 4096, "image_px": 384},
    layout="musk",
    drops=(
        "*.B.*",
        "beit3.text_embed.*",
        "beit3.vision_embed.mask_token",
        "language_head.*",
        "vision_head.*",
        "logit_scale",
    ),
    hub="xiangjx/musk",
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    public="gated",
    params=303_938_560,
    paper="Nature 2025, 10.1038/s41586-024-08378-w",
    notes=("Features before the heads, not normalised, two scales.",),
)

CARDS = (
    MUSK,
    replace(
        MUSK,
        name="musk-single-scale",
        aliases=("musk-1024",),
        dim=1024,
        pooling="cls",
        alternatives={"cls+fine-cls": "musk"},
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.musk import build_musk

    return build_musk(card)
