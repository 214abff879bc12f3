"""BEPH: BEiTv2 ViT-B/16 at 40x, in two forms.

`beph` is what the authors' published features are: their extractor dropped the relative position
bias (the log says so), left the last LayerNorm at its initial values and used ImageNet's mean and
std. `beph-relpos` is what was trained: with the bias and the training normalisation.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

_BACKBONE_DROPS = ("*mask_token", "*relative_position_index", "backbone.ln2.*", "head.*", "neck.*")

BEPH = EncoderCard(
    name="beph",
    aliases=("beph-published",),
    dim=768,
    tile_px=224,
    mpp=0.25,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    pooling="head",
    alternatives={"as trained": "beph-relpos"},
    arch="beitv2_base_patch16_224",
    arch_kwargs={
        "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": False,
        "init_values": 0.1,
    },
    layout="beph",
    unwrap=("state_dict",),
    drops=(*_BACKBONE_DROPS, "*relative_position_bias_table"),
    url="https://drive.google.com/file/d/19Fu3dw3G4i2gPXijzrxfaQ2D_xcqNdNz",
    page="https://github.com/Zhcyoung/BEPH",
    licence="GPL-3.0",
    commercial=True,
    params=85_665_360,
    paper="Nature Communications 2025, 10.1038/s41467-025-57587-y",
    notes=("As published: no relative position bias, ImageNet normalisation.",),
    unverified=("ln1/ln2 or norm1/norm2 in the checkpoint (both are read)",),
)

CARDS = (
    BEPH,
    replace(
        BEPH,
        name="beph-relpos",
        aliases=("beph-trained",),
        mean=(0.744272, 0.502923, 0.686971),
        std=(0.150565, 0.177459, 0.126326),
        alternatives={"as published": "beph"},
        layout="beph-relpos",
        drops=_BACKBONE_DROPS,
        notes=("As trained: shared relative position bias, training normalisation.",),
    ),
)
