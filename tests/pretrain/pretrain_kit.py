"""Tiles whose class is morphology and whose nuisance is stain; small recipes on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("lightly")
pytest.importorskip("kornia")

import torch

from wsipipe.pretrain.recipe import Recipe, load_recipe
from wsipipe.pretrain.source import ArrayTiles

torch.set_num_threads(1)

TINY = {
    "arch.timm": "vit_tiny_patch16_224",
    "arch.args": {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "arch.drop_path": 0.0,
}

# Number, radius and arrangement (0 scattered, 1 ring, 2 line) of nuclei.
_CLASSES = ((8, 2, 0), (30, 2, 0), (8, 4, 0), (20, 4, 0), (25, 2, 1), (12, 3, 2))
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


def stain_nuisance_tiles(
    n: int, seed: int, px: int = 64, slides: int = 40
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(n, px, px, 3) tiles of six classes, each tile in the stain of one of `slides` slides."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(_CLASSES), n)
    tiles = np.empty((n, px, px, 3), np.uint8)
    for i in range(n):
        stain_rng = np.random.default_rng(1000 + int(rng.integers(0, slides)))
        stains = _STAINS + stain_rng.normal(0, 0.08, (2, 3))
        strength = stain_rng.uniform(0.6, 1.6), stain_rng.uniform(0.4, 1.2)
        nuclei, stroma = _nuclei(rng, classes[i], px), _stroma(rng, px)
        density = strength[0] * nuclei[..., None] * stains[0]
        density = density + strength[1] * stroma[..., None] * stains[1]
        noisy = 255 * np.exp(-density) + rng.normal(0, 3, density.shape)
        tiles[i] = np.clip(noisy, 0, 255)
    return tiles, classes.astype(np.int64)


def _nuclei(rng: np.random.Generator, kind: int, px: int) -> NDArray[np.float64]:
    number, radius, shape = _CLASSES[kind]
    if shape == 0:
        points = rng.uniform(0, px, (number, 2))
    else:
        angle = rng.uniform(0, 2 * np.pi)
        if shape == 1:
            turn = angle + np.linspace(0, 2 * np.pi, number)
            points = px / 2 + 18 * np.stack([np.cos(turn), np.sin(turn)], 1)
        else:
            along = np.linspace(-30, 30, number)[:, None]
            direction = np.array([[np.cos(angle), np.sin(angle)]])
            points = px / 2 + along * direction + rng.normal(0, 2, (number, 2))
    y, x = np.mgrid[:px, :px]
    out = np.zeros((px, px))
    for point in points:
        r = radius * rng.uniform(0.8, 1.2)
        out += np.exp(-((((x - point[0]) ** 2 + (y - point[1]) ** 2) / r**2) ** 2))
    return np.clip(out, 0, 1.2)


def _stroma(rng: np.random.Generator, px: int) -> NDArray[np.float64]:
    x = np.arange(px)[None, :]
    wave = np.sin(x / rng.uniform(3, 9) + rng.uniform(0, 6)) * rng.uniform(0.3, 1)
    return np.clip(0.3 + 0.15 * wave + rng.normal(0, 0.05, (px, px)), 0, 2)


def tile_source(n: int = 64, seed: int = 1, **kwargs: Any) -> ArrayTiles:
    tiles, labels = stain_nuisance_tiles(n, seed)
    arrays = {"label": labels, "task": np.zeros(n, np.int64)}
    return ArrayTiles(tiles, arrays, {"label": len(_CLASSES)}, **kwargs)


def tiny_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe at smoke scale on the tiny ViT; `a__b=1` sets a.b."""
    given = {k.replace("__", "."): v for k, v in changes.items()}
    return load_recipe(name, "smoke", {**TINY, **given})


@pytest.fixture(scope="session")
def few_tiles() -> ArrayTiles:
    return tile_source(96)
