"""GenBio-PathFM: a ViT-g/16 that sees R, G and B one by one; three class tokens side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard

if TYPE_CHECKING:
    from torch import nn

CARDS = (
    EncoderCard(
        name="genbio-pathfm",
        aliases=("genbio", "genbio_pathfm"),
        dim=4608,
        tile_px=224,
        mpp=0.5,
        mean=(0.697, 0.575, 0.728),
        std=(0.188, 0.24, 0.187),
        pooling="cls of R, G, B",
        precision="bf16",
        arch="genbio_vit_giant_patch16",
        arch_kwargs={"dim": 1536, "depth": 40, "heads": 24, "hidden": 4096},
        layout="same",
        hub="genbio-ai/genbio-pathfm",
        file=("model.pth",),
        licence="GenBio AI Community License",
        params=1_133_686_784,
        paper="github.com/genbio-ai/genbio-pathfm",
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.genbio import build_genbio

    return build_genbio(card)
