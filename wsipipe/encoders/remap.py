"""From published key names to those of the network, layout by layout.

Pure renaming, and the few exact algebraic foldings (queries, keys and values joined; a class
token's position added to it). What a card allows to be dropped is taken out first, by its published
name; everything else must find its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.errors import ConfigError

__all__ = ["LAYOUTS", "State", "to_network"]

State: TypeAlias = dict[str, Tensor]
Rules: TypeAlias = list[tuple[str, str]]


def to_network(card: EncoderCard, state: Mapping[str, Tensor], target: nn.Module) -> State:
    """Strip, drop and rename published weights as the card says.

    Args:
        card: Names prefixes, drops and the layout.
        state: Published key -> tensor (flat).
        target: The module that will take them; its shapes tell which of two forms is meant.

    Returns:
        State under the names of `target`; whether it fits is for the caller to check.

    Raises:
        ConfigError: The card names an unknown layout.
    """
    if card.layout not in LAYOUTS:
        raise ConfigError(
            f"Encoder card {card.name!r}: layout {card.layout!r} is none of {', '.join(LAYOUTS)}."
        )
    stripped = {_strip(key, card.strip): value for key, value in state.items()}
    kept = {
        key: value
        for key, value in stripped.items()
        if not any(fnmatchcase(key, pattern) for pattern in card.drops)
    }
    return LAYOUTS[card.layout](kept, target)


def _strip(key: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key


def _rename(state: State, rules: Rules) -> State:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    renamed: State = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in compiled:
            new = pattern.sub(replacement, new)
        renamed[new] = value
    return renamed


def _join(state: State, names: tuple[str, ...], joined: str) -> State:
    """Concatenate the tensors of several linear maps along the output axis, in the given order."""
    result = dict(state)
    for key in state:
        parts = [key.replace(f".{names[0]}.", f".{name}.") for name in names]
        if parts[0] == parts[1] or not all(part in state for part in parts):
            continue
        result[key.replace(f".{names[0]}.", f".{joined}.")] = torch.cat([state[p] for p in parts])
        for part in parts:
            del result[part]
    return result


def _same(state: State, _target: nn.Module) -> State:
    return state


# --- vision transformers ------------------------------------------------------------------------

_HF_EMBEDDINGS: Rules = [
    (r"^(vit|dinov2)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(?:attention\.)?qkv\.", ".attn.qkv."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"^layernorm\.", "norm."),
]


def _join_hf(state: State) -> State:
    """Join what timm keeps in one matrix. Both spellings of transformers: that of published files,
    and that of its modules since version 5."""
    state = _join(state, ("query", "key", "value"), "qkv")
    state = _join(state, ("q_proj", "k_proj", "v_proj"), "qkv")
    return _join(state, ("gate_proj", "up_proj"), "weights_in")


def _hf_vit(state: State, _target: nn.Module) -> State:
    """transformers' ViTModel -> timm."""
    return _rename(
        _join_hf(state),
        [
            *_HF_EMBEDDINGS,
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        ],
    )


def _hf_dinov2(state: State, target: nn.Module) -> State:
    """transformers' Dinov2Model, with registers and SwiGLU or without -> timm."""
    renamed = _rename(
        _join_hf(state),
        [
            *_HF_EMBEDDINGS,
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
        ],
    )
    return _fit_positions(renamed, target)


def _dinov2(state: State, target: nn.Module) -> State:
    """Meta's DINOv2 names (chunked blocks too) or timm's own -> timm."""
    renamed = _rename(
        state,
        [
            (r"^register_tokens$", "reg_token"),
            (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ],
    )
    return _fit_positions(renamed, target)


def _fit_positions(state: State, target: nn.Module) -> State:
    """Bring `pos_embed` to the target's form.

    timm's networks with registers have no position for the class token: it is added to the token
    itself, which is the same sum. Another grid is resampled as transformers does at run time
    (bicubic, no antialiasing).
    """
    positions, wanted = state.get("pos_embed"), target.state_dict().get("pos_embed")
    if positions is None or wanted is None or positions.shape == wanted.shape:
        return state
    result = dict(state)
    has_class = _is_square(positions.shape[1] - 1)
    if has_class and _is_square(wanted.shape[1]) and "cls_token" in result:
        result["cls_token"] = result["cls_token"] + positions[:, :1]
        positions, has_class = positions[:, 1:], False
    if has_class == _is_square(wanted.shape[1] - 1):
        positions = _resample(positions, wanted.shape[1], int(has_class))
    result["pos_embed"] = positions
    return result


def _is_square(count: int) -> bool:
    return count > 0 and int(count**0.5) ** 2 == count


def _resample(positions: Tensor, tokens: int, prefix: int) -> Tensor:
    old, new = (int((n - prefix) ** 0.5) for n in (positions.shape[1], tokens))
    if old == new:
        return positions
    square = positions[:, prefix:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :prefix], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


# --- CLIP ---------------------------------------------------------------------------------------


def _hf_clip(state: State, _target: nn.Module) -> State:
    """transformers' CLIPModel, image half -> timm's CLIP ViT."""
    renamed = _rename(
        _join(state, ("q_proj", "k_proj", "v_proj"), "qkv"),
        [
            (r"^vision_model\.embeddings\.class_embedding$", "cls_token"),
            (r"^vision_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
            # transformers' own spelling.
            (r"^vision_model\.pre_layrnorm\.", "norm_pre."),
            (r"^vision_model\.post_layernorm\.", "norm."),
            (r"^vision_model\.encoder\.layers\.(\d+)\.", r"blocks.\1."),
            (r"\.self_attn\.qkv\.", ".attn.qkv."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"\.layer_norm([12])\.", r".norm\1."),
            (r"^visual_projection\.weight$", "head.weight"),
        ],
    )
    return _clip_shapes(renamed)


def _open_clip(state: State, _target: nn.Module) -> State:
    """open_clip's image half -> timm's CLIP ViT."""
    renamed = _rename(
        state,
        [
            (r"^visual\.class_embedding$", "cls_token"),
            (r"^visual\.positional_embedding$", "pos_embed"),
            (r"^visual\.conv1\.", "patch_embed.proj."),
            (r"^visual\.ln_pre\.", "norm_pre."),
            (r"^visual\.ln_post\.", "norm."),
            (r"^visual\.transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.attn\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
            (r"^visual\.proj$", "head.weight"),
        ],
    )
    if "head.weight" in renamed:
        renamed["head.weight"] = renamed["head.weight"].T.contiguous()
    return _clip_shapes(renamed)


def _clip_shapes(state: State) -> State:
    """Leading axes that timm has, and the zero bias of its head (CLIP's projection has none)."""
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state and state["pos_embed"].ndim == 2:
        state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    if "head.weight" in state:
        state["head.bias"] = torch.zeros(len(state["head.weight"]))
    return state


# --- single families ----------------------------------------------------------------------------


def _conch(state: State, _target: nn.Module) -> State:
    return _rename(state, [(r"^visual\.", "")])


def _keep(state: State, _target: nn.Module) -> State:
    # transformers renames every `gamma` to `weight` when it saves a model.
    return _rename(state, [(r"\.ls([12])\.weight$", r".ls\1.gamma")])


def _old_swin(state: State, _target: nn.Module) -> State:
    """timm 0.5's Swin: a stage's downsampling stood at its end, now at the next one's start."""
    renamed: State = {}
    for key, value in state.items():
        match = re.match(r"^layers\.(\d+)\.downsample\.(.+)$", key)
        renamed[f"layers.{int(match[1]) + 1}.downsample.{match[2]}" if match else key] = value
    return renamed


def _beph_relpos(state: State, target: nn.Module) -> State:
    """mmcls's BEiT ViT -> timm's. The last LayerNorm is not in the file: weight 1, bias 0."""
    renamed = _rename(
        state,
        [
            (r"^backbone\.", ""),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.", r"blocks.\1."),
            (r"\.(?:ln|norm)([12])\.", r".norm\1."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        ],
    )
    width = target.state_dict()["fc_norm.weight"].shape
    return {**renamed, "fc_norm.weight": torch.ones(width), "fc_norm.bias": torch.zeros(width)}


def _beph(state: State, target: nn.Module) -> State:
    """As published: the relative position bias was lost on loading, which is a bias of zero."""
    table = "rel_pos_bias.relative_position_bias_table"
    zeros = torch.zeros(target.state_dict()[table].shape)
    return {**_beph_relpos(state, target), table: zeros}


def _tissue_concepts(state: State, _target: nn.Module) -> State:
    """What `convert pickled` writes of the makers' encoder and squeezer modules."""
    return _rename(
        state,
        [
            (r"^(?:encoder\.)?(?:model\.)?(?:wrapped_model\.)?features\.", "features."),
            (r"^squeezer\.(?:norm)\.", "squeezer.norm."),
        ],
    )


def _musk(state: State, _target: nn.Module) -> State:
    """torchscale's BEiT-3, vision expert ("A") only."""
    return _rename(
        state,
        [
            (r"^beit3\.", ""),
            (r"\.A\.", "."),
            (r"^vision_embed\.", ""),
            (r"^encoder\.embed_positions\.weight$", "positions"),
            (r"^encoder\.", ""),
        ],
    )


LAYOUTS: dict[str, Callable[[State, nn.Module], State]] = {
    "same": _same,
    "timm": _same,
    "dinov2": _dinov2,
    "hf-vit": _hf_vit,
    "hf-dinov2": _hf_dinov2,
    "hf-clip": _hf_clip,
    "open-clip": _open_clip,
    "conch": _conch,
    "keep": _keep,
    "timm-0.5-swin": _old_swin,
    "beph": _beph,
    "beph-relpos": _beph_relpos,
    "tissue-concepts": _tissue_concepts,
    "musk": _musk,
}
