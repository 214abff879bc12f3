"""ResNet-50 trained on ImageNet, the field's old baseline: CLAM's cut after the third stage (1,024)
and the whole trunk (2,048)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

CUT = EncoderCard(
    name="resnet50-imagenet",
    aliases=("resnet50", "resnet50-trunc", "resnet50_trunc"),
    dim=1024,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="gap of stage 3",
    alternatives={"gap": "resnet50-imagenet-full"},
    arch="resnet50",
    arch_kwargs={"out_indices": (3,)},
    layout="timm",
    drops=("layer4.*", "fc.*"),
    hub="timm/resnet50.tv_in1k",
    licence="BSD-3-Clause",
    commercial=True,
    params=8_543_296,
    paper="arXiv 1512.03385",
)

CARDS = (
    CUT,
    replace(
        CUT,
        name="resnet50-imagenet-full",
        aliases=("resnet50-full",),
        dim=2048,
        pooling="gap",
        alternatives={"gap of stage 3": "resnet50-imagenet"},
        arch_kwargs={},
        drops=("fc.*",),
        params=23_508_032,
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.headed import build_cut_cnn
    from wsipipe.encoders.nets.vit import build_timm

    return build_timm(card) if card.pooling == "gap" else build_cut_cnn(card)
