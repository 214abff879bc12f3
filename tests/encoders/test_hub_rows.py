"""Every row of the catalogue through its real path: name, download, cache, strict load, features.

The hub is on loopback and serves random weights in the published layout. Of each family that has a
model no larger than a ViT-B one runs at full size; the others have one block here, and their full
size in `make test-full`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hubserver import Hub, safetensors_bytes
from numpy.typing import NDArray
from published import published_state, shrink

from wsipipe.encoders import create
from wsipipe.encoders.create import create_encoder
from wsipipe.encoders.registry import Recipe, find, recipes

# Too large for every run even with one block or without blocks to take away, or another pooling of
# weights that another row loads.
FULL_ONLY = {
    *("dinov3-vit7b16", "tissue-concepts-s", "tissue-concepts-b", "tissue-concepts-pool-first"),
    *("virchow-cls", "virchow2-cls", "h0-mini-cls-mean", "midnight-12k-cls", "phikon-v2-cls-mean"),
    *("musk-single-scale", "resnet50-imagenet-full", "remedis-152x2-m"),
}
# CNNs and Swins have no depth to take away: they run at full size anyway.
FULL_SIZE = {
    *("phikon", "h0-mini", "kaiko-vits16", "hibou-b", "lunit-dino-s16", "plip", "beph"),
    *("pathoduet-he", "dinov3-vitb16", "conch", "pluto"),
}
ROWS = [
    pytest.param(r.card.name, marks=pytest.mark.full if r.card.name in FULL_ONLY else ())
    for r in recipes()
    if r.loads and r.origin == "catalogue"
]


def save(state: dict[str, torch.Tensor], file: str, unwrap: tuple[str, ...] = ()) -> bytes:
    """The file as the makers publish it: safetensors, or torch's archive, nested as theirs is."""
    if file.endswith(".safetensors"):
        return safetensors_bytes(state)
    import io

    nested: object = state
    for key in reversed(unwrap[:1]):
        nested = {key: nested}
    buffer = io.BytesIO()
    torch.save(nested, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ROWS)
def test_row_runs_from_name_to_features(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path, tiles: NDArray[np.uint8]
) -> None:
    recipe = find(name)
    small = recipe
    if name not in FULL_SIZE:
        small = replace(recipe, card=shrink(recipe.card, depth=1))
        monkeypatch.setattr(create, "find", lambda _name: small)
    # Half precision: keys and shapes are the published ones at half the bytes to serve and hash.
    state = {
        key: v.half() if v.dtype == torch.float32 else v
        for key, v in published_state(small.card).items()
    }
    weights = None
    if recipe.card.hub is None:
        weights = str(tmp_path / "checkpoint.pth")
        (tmp_path / "checkpoint.pth").write_bytes(save(state, weights, recipe.card.unwrap))
    else:
        file = recipe.card.file[-1]
        commit = recipe.card.revision or "c" * 40
        content = {file: save(state, file, recipe.card.unwrap)}
        hub.add(recipe.card.hub, content, commit=commit)

    encoder = create_encoder(name, weights=weights, precision="fp32")
    features = encoder(tiles[:2])

    assert features.shape == (2, recipe.card.dim)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    # The tiles differ, so must their features: nothing is pooled away or left at zero.
    assert torch.linalg.vector_norm(features[0] - features[1]) > 1e-3
    assert encoder.identity()["encoder"] == recipe.card.name
    if name in FULL_SIZE:
        assert sum(p.numel() for p in encoder.network.parameters()) == recipe.card.params
    if recipe.card.hub is not None:
        assert encoder.revision == (recipe.card.revision or "c" * 40)


def test_a_left_over_key_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from wsipipe.errors import WeightsError

    recipe: Recipe = find("phikon")
    small = replace(recipe, card=shrink(recipe.card, depth=1))
    monkeypatch.setattr(create, "find", lambda _name: small)
    state = published_state(small.card)
    state["encoder.layer.7.layernorm_after.weight"] = torch.zeros(768)
    del state["layernorm.bias"]
    hub.add(
        "owkin/phikon", {"model.safetensors": safetensors_bytes(state)}, commit=recipe.card.revision
    )
    with pytest.raises(WeightsError) as caught:
        create_encoder("phikon")
    assert "blocks.7.norm2.weight" in str(caught.value)
    assert "1 missing (norm.bias)" in str(caught.value)
