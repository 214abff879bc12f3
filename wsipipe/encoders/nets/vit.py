"""Any timm network, with the pooling that a card names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.errors import ConfigError

__all__ = ["PooledTokens", "PooledVector", "build_timm", "pool_tokens", "timm_model"]


def timm_model(arch: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Make a timm model without weights; layer classes may be given by name, as cards do."""
    import timm

    arguments = {"num_classes": 0, **kwargs}
    for key in ("mlp_layer", "act_layer", "norm_layer"):
        if isinstance(arguments.get(key), str):
            arguments[key] = _layer(arguments[key])
    model: nn.Module = timm.create_model(arch, pretrained=False, **arguments)
    return model


def _layer(name: str) -> Any:
    from timm.layers import LayerNorm, SwiGLUPacked

    layers: dict[str, Any] = {
        "SwiGLUPacked": SwiGLUPacked,
        "SiLU": nn.SiLU,
        "GELU": nn.GELU,
        "LayerNorm1e-5": partial(LayerNorm, eps=1e-5),
        "LayerNorm1e-6": partial(LayerNorm, eps=1e-6),
        "LayerNorm1e-12": partial(LayerNorm, eps=1e-12),
    }
    if name not in layers:
        raise ConfigError(f"Layer {name!r} is none of {', '.join(layers)}.")
    return layers[name]


def pool_tokens(tokens: Tensor, pooling: str, prefix: int) -> Tensor:
    """Reduce the tokens of a ViT to one vector.

    Args:
        tokens: (B, prefix + patches, C), normed; the class token first, then registers, if any.
        pooling: "cls", "cls+mean" (concatenated) or "mean"; means are of patch tokens only, never
            of registers.
        prefix: Number of tokens that are not patches.

    Returns:
        (B, C), or (B, 2C) for "cls+mean".
    """
    if pooling == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(1)
    return mean if pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=-1)


class PooledTokens(nn.Module):
    """A timm transformer and the reduction of its tokens.

    Args:
        trunk: timm model with `forward_features` and `num_prefix_tokens`.
        pooling: See `pool_tokens`.
    """

    def __init__(self, trunk: Any, pooling: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.prefix = int(trunk.num_prefix_tokens)

    @property
    def weights_module(self) -> nn.Module:
        """The part that the published weights describe."""
        trunk: nn.Module = self.trunk
        return trunk

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float to (B, D)."""
        return pool_tokens(self.trunk.forward_features(pixels), self.pooling, self.prefix)


class PooledVector(nn.Module):
    """A timm network that pools for itself: "gap" of a CNN, or a projected head."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    @property
    def weights_module(self) -> nn.Module:
        """The part that the published weights describe."""
        return self.trunk

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float to (B, D)."""
        features: Tensor = self.trunk(pixels)
        return features


def build_timm(card: EncoderCard) -> nn.Module:
    """The network of a card whose family is plain timm.

    Args:
        card: With `arch`, `arch_kwargs` and one of the poolings "cls", "cls+mean", "mean" (of
            tokens), or "gap" / "head" (whatever the timm model returns).

    Returns:
        Network from (B, 3, input_px, input_px) to (B, dim), random weights.
    """
    if card.arch is None:
        raise ConfigError(f"Encoder card {card.name!r} names no architecture.")
    trunk = timm_model(card.arch, card.arch_kwargs)
    if card.pooling in ("cls", "cls+mean", "mean"):
        return PooledTokens(trunk, card.pooling)
    if card.pooling in ("gap", "head"):
        return PooledVector(trunk)
    raise ConfigError(f"Encoder card {card.name!r}: pooling {card.pooling!r} is not known.")
