"""From published key names to timm's, family by family. Pure renaming, and the few exact algebraic
foldings (queries, keys and values joined; a class token's position added to it).

A layout is a function `state -> state`; a card names it. What a card allows to be dropped is taken
out first, by its published name; everything else must find its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import TypeAlias

import torch
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.errors import ConfigError

__all__ = ["LAYOUTS", "State", "to_network"]

State: TypeAlias = dict[str, Tensor]


def to_network(card: EncoderCard, state: State, target: nn.Module) -> State:
    """Unwrap, strip, drop and rename published weights as the card says.

    Args:
        card: Names prefixes, drops and the layout.
        state: Published key -> tensor (flat).
        target: The module that will take them.

    Returns:
        State under the names of `target`; whether it fits is checked by the caller.
    """
    if card.layout not in LAYOUTS:
        raise ConfigError(
            f"Encoder card {card.name!r}: layout {card.layout!r} is none of {', '.join(LAYOUTS)}."
        )
    for prefix in card.strip:
        if any(key.startswith(prefix) for key in state):
            state = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix) or not _same_model(key, card.strip)
            }
    state = {
        key: value
        for key, value in state.items()
        if not any(fnmatch(key, pattern) for pattern in card.drops)
    }
    return LAYOUTS[card.layout](state)


def _same_model(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key.startswith(prefix) for prefix in prefixes)


def _same(state: State) -> State:
    return dict(state)


def _rename(state: State, rules: list[tuple[str, str]]) -> State:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: State = {}
    for key, value in state.items():
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)  # noqa: PLW2901
        renamed[key] = value
    return renamed


def _join_qkv(state: State, names: tuple[str, str, str], joined: str) -> State:
    """Concatenate query, key and value along the output axis, in that order (as timm stores them)."""
    result = dict(state)
    for key in state:
        if f".{names[0]}." not in key:
            continue
        parts = [key.replace(f".{names[0]}.", f".{name}.") for name in names]
        if all(part in state for part in parts):
            target = key.replace(f".{names[0]}.", f".{joined}.")
            result[target] = torch.cat([state[part] for part in parts])
            for part in parts:
                del result[part]
    return result


def _hf_vit(state: State) -> State:
    """transformers' ViTModel -> timm's VisionTransformer."""
    joined = _join_qkv(state, ("query", "key", "value"), "qkv")
    return _rename(
        joined,
        [
            (r"^vit\.", ""),
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.attention\.qkv\.", ".attn.qkv."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"^layernorm\.", "norm."),
        ],
    )


def _hf_dinov2(state: State) -> State:
    """transformers' Dinov2Model -> timm's VisionTransformer with LayerScale (SwiGLU or not)."""
    joined = _join_qkv(state, ("query", "key", "value"), "qkv")
    return _rename(
        joined,
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
            (r"\.attention\.attention\.qkv\.", ".attn.qkv."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.layer_scale1\.lambda1$", ".ls1.gamma"),
            (r"\.layer_scale2\.lambda1$", ".ls2.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
            (r"^layernorm\.", "norm."),
        ],
    )


def _fold_cls_position(state: State) -> State:
    """timm's *_reg4_dinov2 has no position for the class token: add it to the token itself."""
    folded = dict(state)
    position = folded["pos_embed"]
    folded["cls_token"] = folded["cls_token"] + position[:, :1]
    folded["pos_embed"] = position[:, 1:]
    return folded


LAYOUTS: dict[str, Callable[[State], State]] = {
    "same": _same,
    "timm": _same,
    "hf-vit": _hf_vit,
    "hf-dinov2": _hf_dinov2,
}
