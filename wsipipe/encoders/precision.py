"""Which arithmetic an encoder runs in, and how it gets there.

bf16 and fp16 run as mixed precision: matrix products in the short format, the residual stream and
the normalisations in float32. The weights of the products are converted once, when the encoder is
made; autocast alone would convert them again for every batch.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn

from wsipipe.encoders.card import Precision
from wsipipe.errors import ConfigError
from wsipipe.processor import cpu_has_bf16

__all__ = ["DTYPES", "Resolved", "lower", "resolve_precision"]

Resolved: TypeAlias = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolve_precision(asked: str, card_precision: Precision, device: torch.device) -> Resolved:
    """Turn "auto" into an arithmetic: the card's own where the hardware is good at it.

    Args:
        asked: "auto", "fp32", "bf16" or "fp16".
        card_precision: What the card says about "auto".
        device: Where the encoder will run.

    Returns:
        The arithmetic to use.

    Raises:
        ConfigError: No such precision.
    """
    if asked not in ("auto", *DTYPES):
        raise ConfigError(f"Precision {asked!r} is none of auto, fp32, bf16, fp16.")
    if asked != "auto":
        return asked  # type: ignore[return-value]
    if card_precision == "fp32":
        return "fp32"
    if device.type == "cuda":
        if card_precision == "fp16" or not torch.cuda.is_bf16_supported(including_emulation=False):
            return "fp16"
        return "bf16"
    if device.type == "cpu" and cpu_has_bf16():
        return "bf16"
    return "fp32"


def lower(network: nn.Module, precision: Resolved) -> nn.Module:
    """Convert the weights of matrix products to the short format, in place.

    Normalisations, embeddings and scales stay float32: they are cheap, and they carry what the
    short formats lose.
    """
    if precision == "fp32":
        return network
    dtype = DTYPES[precision]
    for module in network.modules():
        # Not layers that compute with their weights first (weight standardisation of BiT).
        if type(module).forward in (nn.Linear.forward, nn.Conv2d.forward):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return network
