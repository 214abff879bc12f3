"""Tissue Concepts: torchvision's Swin v2, trained on 16 tasks at once, by Fraunhofer MEVIS.

Published as pickled modules: convert once with `python -m wsipipe.encoders.convert pickled`, which
runs nothing from the file. The makers' package changed the order of pooling and norm between 1.0.4
and 1.6.3; both orders have names. There is no normalisation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard

if TYPE_CHECKING:
    from torch import nn

TINY = EncoderCard(
    name="tissue-concepts",
    aliases=("tissueconcepts", "tc-nopanda", "tcv1", "tissue_concepts"),
    dim=768,
    tile_px=224,
    mpp=None,
    mean=None,
    std=None,
    pooling="squeeze-pool",
    alternatives={"pool-squeeze": "tissue-concepts-pool-first"},
    arch="swin_v2_t",
    layout="tissue-concepts",
    drops=("*wrapped_model.norm.*", "norm.*", "head.*"),
    url="https://data.rslide.org/tc-nopanda.pt.zip",
    page="https://github.com/FraunhoferMEVIS/MedicalMultitaskModeling",
    licence="Fraunhofer MMM research-only",
    params=27_582_570,
    paper="arXiv 2409.03519; Computers in Biology and Medicine 186, 109621",
    notes=(
        "Convert first: python -m wsipipe.encoders.convert pickled encoder.pt squeezer.pt OUT.",
        "Order of mmm 1.6.3; mmm 1.0.4 pooled first: tissue-concepts-pool-first.",
    ),
    unverified=(
        "Swin variant in the file (tiny assumed; -s and -b are there)",
        "channels of the squeezer",
        "which release made the paper's numbers",
        "training mpp",
    ),
)

CARDS = (
    TINY,
    replace(
        TINY,
        name="tissue-concepts-pool-first",
        aliases=("tissue-concepts-mmm-1.0.4",),
        pooling="pool-squeeze",
        alternatives={"squeeze-pool": "tissue-concepts"},
    ),
    replace(
        TINY,
        name="tissue-concepts-s",
        aliases=(),
        alternatives={},
        arch="swin_v2_s",
        params=48_968_442,
    ),
    replace(
        TINY,
        name="tissue-concepts-b",
        aliases=(),
        alternatives={},
        dim=1024,
        arch="swin_v2_b",
        params=86_905_848,
    ),
)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.swin import build_tissue_concepts

    return build_tissue_concepts(card)
