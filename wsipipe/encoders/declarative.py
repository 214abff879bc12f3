"""A card as YAML, for a private checkpoint of any timm architecture: no code needed.

    name: our-vit
    arch: vit_large_patch14_reg4_dinov2   # timm's name
    kwargs: {img_size: 224, init_values: 1.0e-5}
    prefix_tokens: 5                      # class token and registers; checked
    pooling: cls+mean                     # cls, mean, cls+mean, gap, head
    dim: 2048
    tile_px: 224
    mpp: 0.5
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    weights: teacher.pth                  # beside this file; or --weights FILE
    layout: dinov2                        # names of the keys: timm, dinov2, hf-vit, hf-dinov2
    unwrap: [teacher]                     # nesting to descend through, where present
    strip: [backbone.]                    # prefixes to take off
    drops: ["*dino_head*", mask_token]    # what may be left over

Everything that `EncoderCard` has may be given; an unknown key is an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.registry import Recipe
from wsipipe.errors import ConfigError, UnknownEncoderError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_yaml"]

_OWN_KEYS = {"kwargs", "prefix_tokens", "weights"}
_REQUIRED = ("name", "arch", "dim", "tile_px", "pooling")


def from_yaml(path: Path) -> Recipe:
    """Read a card.

    Args:
        path: The YAML file.

    Returns:
        Its recipe; weights lie beside the file, on the hub, or are given by the user.

    Raises:
        UnknownEncoderError: There is no such file.
        ConfigError: It is not YAML, lacks a required key, or has an unknown one.
    """
    import yaml

    if not path.is_file():
        raise UnknownEncoderError(
            str(path), f"There is no card {path}.", "Give the path of a YAML card."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a card: it must be a mapping of keys to values.")
    settings = dict(content)
    _refuse_strangers(path, settings)
    prefix = settings.pop("prefix_tokens", None)
    weights = settings.pop("weights", None)
    arguments = [settings.pop(key, None) or {} for key in ("arch_kwargs", "kwargs")]
    if not all(isinstance(part, dict) for part in arguments):
        raise ConfigError(f"The card {path}: kwargs must be a mapping of names to values.")
    settings["arch_kwargs"] = arguments[0] | arguments[1]
    settings.setdefault("layout", "timm")
    settings.setdefault("mpp", None)
    settings.setdefault("mean", None)
    settings.setdefault("std", None)
    if weights is not None:
        settings["file"] = (str(weights),)
    elif "hub" not in settings:
        settings.setdefault("public", "none")
        settings.setdefault("licence", "your own")
    try:
        card = EncoderCard(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a card: {error}.") from error

    def build(card: EncoderCard) -> nn.Module:
        return _build(card, prefix)

    return Recipe(
        card,
        build,
        "card",
        folder=path.parent if weights is not None else None,
        definition=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _refuse_strangers(path: Path, settings: dict[str, Any]) -> None:
    known = {field.name for field in fields(EncoderCard)} | _OWN_KEYS
    strangers = sorted(set(settings) - known)
    missing = [key for key in _REQUIRED if key not in settings]
    if strangers or missing:
        parts = [f"unknown: {', '.join(strangers)}"] if strangers else []
        parts += [f"missing: {', '.join(missing)}"] if missing else []
        raise ConfigError(
            f"The card {path} has keys that are wrong ({'; '.join(parts)}).",
            f"Known are {', '.join(sorted(known))}.",
        )


def _build(card: EncoderCard, prefix: int | None) -> nn.Module:
    from wsipipe.encoders.nets.vit import PooledTokens, build_timm

    network = build_timm(card)
    if prefix is not None and isinstance(network, PooledTokens) and network.prefix != prefix:
        raise ConfigError(
            f"Encoder card {card.name!r} says {prefix} tokens are not patches, but {card.arch} "
            f"with these arguments has {network.prefix}.",
            "Correct prefix_tokens, or reg_tokens among the arguments; a mean over registers is "
            "another feature.",
        )
    return network
