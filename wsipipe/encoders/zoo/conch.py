"""CONCH and CONCH v1.5 by the Mahmood lab: a ViT and an attention pooler.

Traps: CONCH's features are taken before the projection (`proj_contrast=False`); after it they are
another 512-d space. v1.5 keeps a 14 x 14 grid of positions and stretches it to 28 x 28 at 448 px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.zoo._norms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from torch import nn

CONCH = EncoderCard(
    name="conch",
    aliases=("conch_v1", "conch-v1", "conchv1"),
    dim=512,
    tile_px=448,
    mpp=0.5,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    kind="multimodal",
    interpolation="bicubic",
    pooling="attention",
    arch="vit_base_patch16_224",
    arch_kwargs={"img_size": 448, "dynamic_img_size": True},
    layout="conch",
    strip=("module.",),
    drops=(
        "text.*",
        "text_decoder.*",
        "logit_scale",
        "visual.attn_pool_caption.*",
        "visual.ln_caption.*",
        "visual.proj_contrast",
    ),
    hub="MahmoodLab/CONCH",
    revision="f9ca9f877171a28ade80228fb195ac5d79003357",
    file=("pytorch_model.bin",),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    public="gated",
    params=87_567_104,
    paper="arXiv 2307.12914; Nature Medicine 2024",
    notes=("Unprojected features; the projection is for comparison with text.",),
)

CONCH_V1_5 = EncoderCard(
    name="conch-v1-5",
    aliases=("conch_v15", "conchv1_5", "conch1_5", "conch-v15", "conchv1-5", "conch_v1_5"),
    dim=768,
    tile_px=512,
    mpp=0.5,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    resize_px=448,
    pooling="attention",
    precision="fp16",
    arch="vit_large_patch16_224",
    arch_kwargs={"init_values": 1.0, "img_size": 224, "dynamic_img_size": True},
    layout="same",
    hub="MahmoodLab/conchv1_5",
    file=("pytorch_model_vision.bin",),
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    public="gated",
    params=306_109_184,
    paper="arXiv 2411.19666 (TITAN)",
    notes=("512 px tiles at 20x, resized to 448, as TITAN was trained on.",),
    unverified=("grid of positions in the checkpoint",),
)

CARDS = (CONCH, CONCH_V1_5)


def build(card: EncoderCard) -> nn.Module:
    """The network of the card, random weights."""
    from wsipipe.encoders.nets.attention_pool import build_conch, build_conch_v15

    return build_conch(card) if card.name == "conch" else build_conch_v15(card)
