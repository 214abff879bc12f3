"""Virchow, Virchow2 and their relatives by Paige: DINOv2 ViT-H/14 with SwiGLU.

Traps: Virchow2 has 4 registers behind the class token, so Virchow's recipe (mean of all but the
first token) would mix them into the mean; and half of the field's tools take the class token alone
(1,280 numbers), the other half class token and mean (2,560). Both have names here.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import SWIGLU
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["CARDS", "build"]

_VIT_H = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    **SWIGLU,
}

VIRCHOW = EncoderCard(
    name="virchow",
    aliases=("virchow1", "paige-virchow", "virchow-v1", "virchow_v1", "virchow_full"),
    dim=2560,
    tile_px=224,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    interpolation="bicubic",
    pooling="cls+mean",
    alternatives={"cls": "virchow-cls"},
    precision="fp16",
    arch="vit_huge_patch14_224",
    arch_kwargs=_VIT_H,
    layout="timm",
    hub="paige-ai/Virchow",
    file=("model.safetensors", "pytorch_model.bin"),
    licence="Apache-2.0 (gated, institutional e-mail)",
    commercial=True,
    gated=True,
    public="gated",
    params=631_229_184,
    paper="arXiv 2309.07778; Nature Medicine 2024",
    notes=("The PRISM slide model takes the full 2,560 numbers.",),
    unverified=("pretrained_cfg of config.json",),
)

VIRCHOW2 = replace(
    VIRCHOW,
    name="virchow2",
    aliases=("paige-virchow2", "virchow_v2", "virchow-v2"),
    alternatives={"cls": "virchow2-cls"},
    arch_kwargs={**_VIT_H, "reg_tokens": 4},
    hub="paige-ai/Virchow2",
    revision="3158645804b69e3f3bc4439d4116edddf0840a72",
    licence="CC-BY-NC-ND-4.0",
    commercial=False,
    params=631_239_424,
    paper="arXiv 2408.00738",
    notes=(
        "The mean is of patch tokens only; the 4 registers are left out.",
        "Trained at 5x to 40x; 20x is the default.",
        "eva, STAMP, COBRA and PRISM2 use the class token alone: virchow2-cls.",
    ),
    unverified=(),
)

VIRCHOW2G = replace(
    VIRCHOW2,
    name="virchow2g",
    aliases=("virchow2-g",),
    alternatives={},
    dim=3328,
    arch="vit_gigantic_patch14_224",
    arch_kwargs={**_VIT_H, "reg_tokens": 4, "mlp_ratio": 6.5625},
    layout="dinov2",
    unwrap=("state_dict", "model", "teacher"),
    strip=("module.", "teacher.", "backbone."),
    hub=None,
    revision=None,
    licence="restricted (Paige, Azure AI catalogue)",
    gated=False,
    public="none",
    params=None,
    page="https://ai.azure.com/catalog",
    notes=(
        "Width, depth and registers are not public: this is timm's ViT-G/14 (1,664 wide, 48 deep) "
        "with SwiGLU, LayerScale and 4 registers, which has the 1.85B parameters of the paper. If "
        "your checkpoint differs, write a YAML card.",
    ),
    unverified=("width", "depth", "heads", "number of registers", "output dim"),
)

VIRCHOW2G_MINI = replace(
    VIRCHOW2G,
    name="virchow2g-mini",
    aliases=("virchow2-g-mini",),
    dim=384,
    pooling="cls",
    arch="vit_small_patch16_224",
    arch_kwargs={"patch_size": 14, "img_size": 224},
    params=21_619_584,
    notes=("ViT-S/14 without SwiGLU, LayerScale and registers.",),
    unverified=("pooling", "normalisation"),
)

CARDS = (
    VIRCHOW,
    replace(
        VIRCHOW,
        name="virchow-cls",
        aliases=("virchow1-cls",),
        dim=1280,
        pooling="cls",
        alternatives={"cls+mean": "virchow"},
    ),
    VIRCHOW2,
    replace(
        VIRCHOW2,
        name="virchow2-cls",
        aliases=("virchow2_cls",),
        dim=1280,
        pooling="cls",
        alternatives={"cls+mean": "virchow2"},
    ),
    VIRCHOW2G,
    VIRCHOW2G_MINI,
)
