"""PLIP and QuiltNet: CLIP's image half, projected to the space shared with text, not normalised."""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import CLIP_MEAN, CLIP_STD

__all__ = ["CARDS", "build"]

PLIP = EncoderCard(
    name="plip",
    aliases=("vinid-plip",),
    dim=512,
    tile_px=224,
    mpp=0.5,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    kind="multimodal",
    interpolation="bicubic",
    pooling="head",
    arch="vit_base_patch32_clip_quickgelu_224",
    arch_kwargs={"num_classes": 512},
    layout="hf-clip",
    drops=("text_model.*", "text_projection.*", "logit_scale", "*position_ids"),
    hub="vinid/plip",
    file=("model.safetensors", "pytorch_model.bin"),
    licence="non-commercial",
    params=87_849_728,
    paper="Nature Medicine 2023, 10.1038/s41591-023-02504-3",
)

QUILTNET_B_32 = replace(
    PLIP,
    name="quiltnet-b-32",
    aliases=("quiltnet", "quiltnet-b32", "quilt-net"),
    mpp=None,
    arch="vit_base_patch32_clip_224",
    layout="open-clip",
    drops=(
        "token_embedding.*",
        "positional_embedding",
        "transformer.*",
        "ln_final.*",
        "text_projection",
        "text.*",
        "attn_mask",
        "logit_scale",
        "logit_bias",
    ),
    hub="wisdomik/QuiltNet-B-32",
    file=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    licence="MIT",
    commercial=True,
    paper="arXiv 2306.11207",
    unverified=("GELU or QuickGELU in open_clip_config.json (GELU assumed)", "licence"),
)

QUILTNET_B_16 = replace(
    QUILTNET_B_32,
    name="quiltnet-b-16",
    aliases=("quiltnet-b16",),
    arch="vit_base_patch16_clip_224",
    hub="wisdomik/QuiltNet-B-16",
    params=86_193_152,
)

CARDS = (
    PLIP,
    QUILTNET_B_32,
    QUILTNET_B_16,
    replace(
        QUILTNET_B_16,
        name="quiltnet-b-16-pmb",
        aliases=("quiltnet-b16-pmb",),
        hub="wisdomik/QuiltNet-B-16-PMB",
    ),
)
