"""Sizes as published: parameter counts, key sets, full-size loading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hubserver import Hub, safetensors_bytes
from published import published_state

from wsipipe.encoders import create
from wsipipe.encoders.create import create_encoder
from wsipipe.encoders.registry import Recipe, find, recipes
from wsipipe.encoders.remap import to_network
from wsipipe.weights import check_fit

LOADED = [r for r in recipes() if r.loads and r.origin == "catalogue"]


def distinct() -> Iterator[Recipe]:
    """One recipe for each network: names that share one need not be counted twice."""
    seen = set()
    for recipe in LOADED:
        card = recipe.card
        network = (card.arch, str(sorted(card.arch_kwargs.items())), recipe.build.__module__)
        if network not in seen:
            seen.add(network)
            yield recipe


@pytest.mark.parametrize("recipe", distinct(), ids=lambda recipe: recipe.card.name)
def test_parameter_count_is_the_published_one(recipe: Recipe) -> None:
    with torch.device("meta"):
        network = recipe.build(recipe.card)
    count = sum(parameter.numel() for parameter in network.parameters())
    if recipe.card.name == "virchow2g":
        assert recipe.card.params is None
        assert 1.8e9 < count < 1.95e9, "the paper says 1.85 to 1.9 billion"
    else:
        assert count == recipe.card.params


def test_names_that_share_a_network_share_its_count() -> None:
    counts: dict[tuple[object, ...], set[int | None]] = {}
    for recipe in LOADED:
        card = recipe.card
        network = (card.arch, str(sorted(card.arch_kwargs.items())), recipe.build.__module__)
        counts.setdefault(network, set()).add(card.params)
    assert all(len(found) == 1 for found in counts.values())


@pytest.mark.full
@pytest.mark.parametrize("recipe", LOADED, ids=lambda recipe: recipe.card.name)
def test_published_keys_fit_at_full_size(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: names and shapes of giants without their memory."""
    import published

    def shapes_only(state: dict, seed: int = 0) -> dict:
        return {key: torch.empty(value.shape, device="meta") for key, value in state.items()}

    monkeypatch.setattr(published, "randomise", shapes_only)
    with torch.device("meta"):
        state = published_state(recipe.card)
        network = recipe.build(recipe.card)
        if recipe.card.name == "genbio-pathfm":
            state["rope_embed.periods"] = torch.empty(16)
        target = create.weights_module(network)
        check_fit(recipe.card.name, target, to_network(recipe.card, state, target))
        edge = recipe.card.input_px
        out = network.eval()(torch.empty(2, 3, edge, edge))
    assert out.shape == (2, recipe.card.dim)


# Up to ViT-L and the large ResNet; what is smaller runs at full size in test_hub_rows.
FULL_SIZE = [
    *("quiltnet-b-16", "quiltnet-b-32", "kaiko-vits8", "kaiko-vitb16", "kaiko-vitb8", "brow"),
    *("lunit-dino-s8", "virchow2g-mini", "h0-mini-cls-mean", "beph-relpos", "pathoduet-ihc"),
    *("remedis-152x2-m", "uni", "phikon-v2", "gpfm", "hibou-l", "pathorchestra", "mstar"),
    *("kaiko-vitl14", "keep", "musk", "conch-v1-5", "dinov2-vitl14", "dinov3-vitl16", "rudolfv"),
]


@pytest.mark.full
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_runs_from_the_hub(name: str, hub: Hub, tmp_path, tiles) -> None:
    recipe = find(name)
    card = recipe.card
    data = safetensors_bytes(published_state(card))
    weights = None
    if card.hub is None:
        weights = str(tmp_path / "weights.safetensors")
        (tmp_path / "weights.safetensors").write_bytes(data)
    else:
        # torch's archives and safetensors are told apart by content, not by name.
        hub.add(card.hub, {card.file[0]: data}, commit=card.revision or "c" * 40)
    encoder = create_encoder(name, weights=weights, precision="fp32")
    features = encoder(tiles[:2])
    assert features.shape == (2, card.dim)
    assert torch.isfinite(features).all()
    assert sum(p.numel() for p in encoder.network.parameters()) == card.params
    again = create_encoder(name, weights=weights, precision="fp32")
    assert torch.equal(again(tiles[:2]), features)
    assert replace(card) == again.card


@pytest.mark.weights
def test_gigapath_gives_the_makers_vector(tmp_path) -> None:
    """Needs the gated weights in the hub's cache, and the makers' image and vector.

    They lie in the git repository prov-gigapath/prov-gigapath, `images/prov_normal_000_1.png` and
    `.pt`; name their folder with WSIPIPE_GIGAPATH_IMAGES.
    """
    import os
    from pathlib import Path

    import numpy as np
    from PIL import Image

    folder = Path(os.environ["WSIPIPE_GIGAPATH_IMAGES"])
    image = Image.open(folder / "prov_normal_000_1.png").convert("RGB")
    expected = torch.load(folder / "prov_normal_000_1.pt", weights_only=True).flatten()
    # The first eight numbers as published, against a wrong file.
    first = [-0.4881, 0.9477, -0.5380, 0.5231, 0.5373, -1.2500, 0.0771, -1.2838]
    assert torch.allclose(expected[:8], torch.tensor(first), atol=1e-3)
    encoder = create_encoder("prov-gigapath", precision="fp32")
    assert torch.allclose(encoder(np.asarray(image)[None])[0], expected, atol=1e-2)
