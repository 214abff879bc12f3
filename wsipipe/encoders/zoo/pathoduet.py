"""PathoDuet: MoCo-v3 ViT-B/16 with a pretext token, one checkpoint for H&E, one for IHC.

Traps: the makers do not normalise; features are LN(mean of the patch tokens), and the LN
(`fc_norm`) is in the file: loaded loosely into a token-pooled ViT it stays untrained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard

if TYPE_CHECKING:
    from torch import nn

HE = EncoderCard(
    name="pathoduet-he",
    aliases=("pathoduet", "pathoduet-p2", "pathoduet_he"),
    dim=768,
    tile_px=224,
    mpp=0.25,
    mean=None,
    std=None,
    pooling="fc-norm-mean",
    arch="vit_base_patch16_224",
    arch_kwargs={"global_pool": "avg"},
    layout="timm",
    unwrap=("state_dict",),
    drops=("head.*",),
    url="https://drive.google.com/file/d/1aQHGabQzopSy9oxstmM9cPeF7QziIUxM",
    page="https://github.com/openmedlab/PathoDuet",
    licence="CC-BY-NC-4.0",
    params=85_800_192,
    paper="arXiv 2312.09894",
    notes=("The makers do not normalise.",),
    unverified=("numbers against the real checkpoint", "mpp is about 0.25 (level 0 of TCGA)"),
)

CARDS = (
    HE,
    replace(
        HE,
        name="pathoduet-ihc",
        aliases=("pathoduet-p3", "pathoduet_ihc"),
        mpp=None,
        url="https://github.com/openmedlab/PathoDuet (Google Drive folder, checkpoint_IHC.pth)",
        unverified=("numbers against the real checkpoint",),
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.pathoduet import build_pathoduet

    return build_pathoduet(card)
