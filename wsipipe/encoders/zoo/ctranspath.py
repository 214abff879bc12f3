"""CTransPath, and CHIEF's copy of it: Swin-T behind a convolutional stem.

Traps: other tools' "ctranspath" is CHIEF's file, which is another checkpoint; and both were trained
at 10x (1 µm/px).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

CTRANSPATH = EncoderCard(
    name="ctranspath",
    aliases=("ctrans", "ctranspath-v1"),
    dim=768,
    tile_px=224,
    mpp=1.0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="gap",
    arch="swin_tiny_patch4_window7_224",
    layout="timm-0.5-swin",
    unwrap=("model",),
    drops=("*attn_mask", "*relative_position_index", "head.*"),
    url="https://drive.google.com/file/d/1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX",
    page="https://github.com/Xiyue-Wang/TransPath",
    sha256="7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
    licence="GPL-3.0 (non-commercial academic)",
    params=27_520_038,
    paper="Medical Image Analysis 2022, 10.1016/j.media.2022.102559",
)

CHIEF_CTRANSPATH = replace(
    CTRANSPATH,
    name="chief-ctranspath",
    aliases=("chief-tile", "ctranspath-chief", "chief_ctranspath"),
    hub="datasets/MahmoodLab/hest-bench",
    file=("fm_v1/ctranspath/CHIEF_CTransPath.pth",),
    url="https://drive.google.com/file/d/1_vgRF1QXa8sPCOpJ1S9BihwZhXQMOVJc",
    page="https://github.com/hms-dbmi/CHIEF",
    sha256=None,
    licence="AGPL-3.0",
    commercial=True,
    paper="Nature 2024, 10.1038/s41586-024-07894-z",
    notes=(
        "sha256 of the makers' file: "
        "1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a.",
    ),
)

CARDS = (CTRANSPATH, CHIEF_CTRANSPATH)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.swin import build_ctranspath

    return build_ctranspath(card)
