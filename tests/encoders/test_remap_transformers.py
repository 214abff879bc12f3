"""Published keys against the makers' own implementation, with the same random weights.

transformers writes the files (`save_pretrained` gives the published names), computes the reference,
and is not used by the code under test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from published import hf_dinov2_model, randomise, shrink

from wsipipe import weights
from wsipipe.encoders import create
from wsipipe.encoders.registry import find

TOLERANCE = 1e-5


def fill(model: Any, seed: int = 3) -> Any:
    """Random weights in which every tensor matters."""
    state = randomise(model.state_dict(), seed)
    if all(b.device.type == "cpu" for b in model.buffers()):
        # A skeleton becomes a model by assignment: no time is lost on initialising.
        model.load_state_dict(state, assign=True)
    return model.eval()


def normalised(tiles: NDArray[np.uint8], mean: Any, std: Any) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize, written out."""
    pixels = torch.from_numpy(tiles.astype(np.float32) / 255).permute(0, 3, 1, 2)
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def ours(name: str, model: Any, folder: Path, depth: int | None, **changes: Any) -> Any:
    """The encoder, loaded from the file that transformers wrote."""
    recipe = find(name)
    card = shrink(recipe.card, depth) if depth else recipe.card
    recipe = replace(recipe, card=replace(card, **changes))
    model.save_pretrained(folder)
    state = weights.read_state(folder / "model.safetensors", name)
    network = create.load_into(recipe, state)
    from wsipipe.encoders import Encoder

    return Encoder(recipe.card, network)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_phikon_equals_transformers_vit_at_full_size(tmp_path, tiles) -> None:
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        skeleton = ViTModel(ViTConfig(), add_pooling_layer=False)
    model = fill(skeleton)
    encoder = ours("phikon", model, tmp_path, None)
    pixels = normalised(tiles, encoder.card.mean, encoder.card.std)
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 0]
    assert distance(encoder(tiles), expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "registers"),
    [("phikon-v2", 0), ("midnight-12k", 0), ("hibou-b", 4), ("hibou-l", 4)],
)
def test_dinov2_families_equal_transformers(name: str, registers: int, tmp_path, tiles) -> None:
    card = shrink(find(name).card, 2)
    with torch.device("meta"):
        skeleton = hf_dinov2_model(card)
    model = fill(skeleton)
    encoder = ours(name, model, tmp_path, 2)
    with torch.no_grad():
        tokens = model(normalised(tiles, card.mean, card.std)).last_hidden_state
    expected = tokens[:, 0]
    if card.pooling == "cls+mean":
        expected = torch.cat([expected, tokens[:, 1 + registers :].mean(1)], dim=1)
    assert distance(encoder(tiles), expected) <= TOLERANCE


def test_cls_and_mean_of_phikon_v2(tmp_path, tiles) -> None:
    card = shrink(find("phikon-v2-cls-mean").card, 2)
    with torch.device("meta"):
        skeleton = hf_dinov2_model(card)
    model = fill(skeleton)
    encoder = ours("phikon-v2-cls-mean", model, tmp_path, 2)
    with torch.no_grad():
        tokens = model(normalised(tiles, card.mean, card.std)).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    assert distance(encoder(tiles), expected) <= TOLERANCE


def test_positions_of_518_px_are_resampled_as_transformers_does(tmp_path, tiles) -> None:
    card = shrink(find("midnight-12k").card, 1)
    with torch.device("meta"):
        skeleton = hf_dinov2_model(card, image_px=518)
    model = fill(skeleton)
    encoder = ours("midnight-12k", model, tmp_path, 1)
    with torch.no_grad():
        tokens = model(normalised(tiles, card.mean, card.std)).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    assert distance(encoder(tiles), expected) <= TOLERANCE


def test_plip_equals_transformers_clip(tmp_path, tiles) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig()
    config.vision_config.num_hidden_layers = 2
    config.text_config.num_hidden_layers = 1
    model = fill(CLIPModel(config))
    encoder = ours("plip", model, tmp_path, 2)
    pixels = normalised(tiles, encoder.card.mean, encoder.card.std)
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        expected = model.visual_projection(pooled)
    assert distance(encoder(tiles), expected) <= TOLERANCE


def test_beph_equals_transformers_beit(tmp_path, tiles) -> None:
    from published import published_state
    from transformers import BeitConfig, BeitModel

    depth = 2
    card = shrink(find("beph-relpos").card, depth)
    state = published_state(card)
    config = BeitConfig(
        num_hidden_layers=depth,
        use_shared_relative_position_bias=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
        layer_norm_eps=1e-6,
    )
    model = BeitModel(config).eval()
    own = model.state_dict()
    for key in own:
        source = _mmcls_name(key)
        if source is None:
            continue
        if isinstance(source, tuple):
            name, part = source
            own[key] = state[name].chunk(3)[part]
        else:
            own[key] = state[source].reshape(own[key].shape)
    own["pooler.layernorm.weight"].fill_(1)
    own["pooler.layernorm.bias"].fill_(0)
    model.load_state_dict(own)
    recipe = replace(find("beph-relpos"), card=card)
    from wsipipe.encoders import Encoder

    for name in ("beph-relpos", "beph"):
        variant = replace(find(name).card, arch_kwargs=card.arch_kwargs)
        network = create.load_into(replace(recipe, card=variant), state)
        if name == "beph":  # as published: no bias
            for key, value in model.state_dict().items():
                if key.endswith("relative_position_bias_table"):
                    value.zero_()
        with torch.no_grad():
            pixels = normalised(tiles, variant.mean, variant.std)
            expected = model(pixels).pooler_output
        assert distance(Encoder(variant, network)(tiles), expected) <= TOLERANCE


def _mmcls_name(key: str) -> str | tuple[str, int] | None:
    """mmcls's name of a tensor of transformers' BEiT (version 4 or 5), written by hand."""
    import re

    if key.startswith("pooler.") or key.endswith("relative_position_index"):
        return None
    plain = {
        "embeddings.cls_token": "backbone.cls_token",
        "embeddings.patch_embeddings.projection.weight": "backbone.patch_embed.projection.weight",
        "embeddings.patch_embeddings.projection.bias": "backbone.patch_embed.projection.bias",
    }
    if key in plain:
        return plain[key]
    if key.endswith("relative_position_bias_table"):
        return "backbone.rel_pos_bias.relative_position_bias_table"
    if key.endswith("mask_token"):
        return "backbone.mask_token"
    match = re.search(r"layers?\.(\d+)\.(.+)$", key)
    assert match, key
    layer, rest = f"backbone.layers.{match[1]}.", match[2]
    for part, names in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
        if any(f".{name}." in f".{rest}" for name in names):
            if rest.endswith("weight"):
                return f"{layer}attn.qkv.weight", part
            return f"{layer}attn.{'q' if part == 0 else 'v'}_bias"
    table = {
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "ln1",
        "layernorm_after": "ln2",
        "intermediate.dense": "ffn.layers.0.0",
        "mlp.fc1": "ffn.layers.0.0",
        "output.dense": "ffn.layers.1",
        "mlp.fc2": "ffn.layers.1",
    }
    if rest in ("lambda_1", "lambda_2"):
        return f"{layer}gamma_{rest[-1]}"
    stem, kind = rest.rsplit(".", 1)
    return f"{layer}{table[stem]}.{kind}"
