"""H-optimus-0, H-optimus-1 (ViT-g/14, 4 registers) and H0-mini (ViT-B/14) by Bioptimus.

Trap: they have a normalisation of their own. H0-mini's default here is the class token (768); the
model card's class token and mean (1,536) is `h0-mini-cls-mean`.
"""

from __future__ import annotations

from dataclasses import replace

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._build import SWIGLU
from wsipipe.encoders.zoo._build import build_timm as build
from wsipipe.encoders.zoo._norms import HOPTIMUS_MEAN, HOPTIMUS_STD

__all__ = ["CARDS", "build"]

H_OPTIMUS_0 = EncoderCard(
    name="h-optimus-0",
    aliases=("hoptimus0", "h_optimus_0", "H-Optimus-0", "hoptimus-0"),
    dim=1536,
    tile_px=224,
    mpp=0.5,
    mean=HOPTIMUS_MEAN,
    std=HOPTIMUS_STD,
    interpolation="bicubic",
    pooling="cls",
    precision="fp16",
    arch="vit_giant_patch14_reg4_dinov2",
    arch_kwargs={
        "img_size": 224,
        "init_values": 1e-5,
        "global_pool": "token",
        "dynamic_img_size": False,
    },
    layout="timm",
    hub="bioptimus/H-optimus-0",
    revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743",
    file=("pytorch_model.bin", "model.safetensors"),
    licence="Apache-2.0",
    commercial=True,
    params=1_134_774_272,
    paper="github.com/bioptimus/releases, models/h-optimus/v0",
)

H_OPTIMUS_1 = replace(
    H_OPTIMUS_0,
    name="h-optimus-1",
    aliases=("hoptimus1", "h_optimus_1", "H-Optimus-1", "hoptimus-1"),
    hub="bioptimus/H-optimus-1",
    revision=None,
    licence="CC-BY-NC-ND-4.0",
    commercial=False,
    gated=True,
    public="gated",
    paper="huggingface.co/bioptimus/H-optimus-1",
)

H0_MINI = EncoderCard(
    name="h0-mini",
    aliases=("h0mini", "h0_mini", "H0-mini"),
    dim=768,
    tile_px=224,
    mpp=0.5,
    mean=HOPTIMUS_MEAN,
    std=HOPTIMUS_STD,
    interpolation="bicubic",
    pooling="cls",
    alternatives={"cls+mean": "h0-mini-cls-mean"},
    precision="fp16",
    arch="vit_base_patch14_reg4_dinov2",
    arch_kwargs={
        "img_size": 224,
        "init_values": 1e-5,
        # 5.3333 makes timm 1.x fail on an odd hidden width; both mean 4,096.
        "mlp_ratio": 5.33334,
        "global_pool": "",
        "dynamic_img_size": True,
        **SWIGLU,
    },
    layout="timm",
    hub="bioptimus/H0-mini",
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    public="gated",
    params=85_739_520,
    paper="arXiv 2501.16239",
    unverified=("mlp_ratio in config.json",),
)

CARDS = (
    H_OPTIMUS_0,
    H_OPTIMUS_1,
    H0_MINI,
    replace(
        H0_MINI,
        name="h0-mini-cls-mean",
        aliases=("h0mini-full",),
        dim=1536,
        pooling="cls+mean",
        alternatives={"cls": "h0-mini"},
    ),
)
