"""REMEDIS: BiT ResNets with SimCLR on TCGA, published as TensorFlow SavedModels behind PhysioNet.

`python -m wsipipe.encoders.convert remedis SAVED_MODEL OUT.safetensors` converts once; TensorFlow
is needed only there.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build

__all__ = ["CARDS", "build"]

R152X2 = EncoderCard(
    name="remedis-152x2-m",
    aliases=("remedis", "path-152x2-remedis-m", "remedis-152x2", "remedis-r152x2"),
    dim=4096,
    tile_px=224,
    mpp=None,
    mean=None,
    std=None,
    pooling="gap",
    # Weight standardisation suffers in bf16: cosine 0.998 to fp32 with random weights.
    precision="fp32",
    arch="resnetv2_152x2_bit",
    layout="timm",
    drops=("head.*",),
    url="https://physionet.org/content/medical-ai-research-foundation/1.0.0/",
    page="https://physionet.org/content/medical-ai-research-foundation/1.0.0/",
    licence="PhysioNet credentialed data use agreement",
    gated=True,
    public="gated",
    params=232_238_208,
    paper="arXiv 2205.09723",
    notes=(
        "Convert the SavedModel first: python -m wsipipe.encoders.convert remedis IN OUT.",
        "HEST's port pools before the final GroupNorm; here it is applied, as BiT does.",
    ),
    unverified=(
        "whether the SavedModel takes 0..1 or 0..255",
        "whether the final norm is part of its output",
        "names of the SavedModel's variables",
    ),
)

CARDS = (
    R152X2,
    replace(
        R152X2,
        name="remedis-50x1-m",
        aliases=("path-50x1-remedis-m", "remedis-50x1", "remedis-r50x1"),
        dim=2048,
        arch="resnetv2_50x1_bit",
        params=23_500_352,
    ),
)
