"""The `build` of families that are plain timm; only calling it loads torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard

if TYPE_CHECKING:
    from torch import nn

# Class names stand for timm's and torch's classes: a card is data.
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}


def build_timm(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.vit import build_timm as build

    return build(card)
