"""Pictures with known tissue and slides made of them, read by the package's own reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsipipe as wp

GLASS = (243, 243, 243)
# Transmitted colours of pale haematoxylin and eosin at thumbnail resolution.
PINK, PURPLE = (222, 160, 195), (170, 120, 180)


@pytest.fixture
def slide_of(tmp_path: Path) -> Iterator[Callable[..., wp.Slide]]:
    """Make an open slide of pixels: `slide_of(rgb, mpp=8.0, name="a")`."""
    opened = []

    def make(rgb: np.ndarray, mpp: float = 8.0, name: str = "a") -> wp.Slide:
        path = tmp_path / f"{name}.png"
        Image.fromarray(rgb).save(path)
        opened.append(wp.open_slide(path, mpp=mpp))
        return opened[-1]

    yield make
    for slide in opened:
        slide.close()


def disk(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """(h, w) bool."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def paint(tissue: np.ndarray, seed: int = 0) -> np.ndarray:
    """A picture of glass with stained tissue where the mask says so."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0, 1, (*tissue.shape, 1))
    stained = np.array(PINK) * share + np.array(PURPLE) * (1 - share)
    rgb = np.where(tissue[..., None], stained, GLASS) + rng.normal(0, 1.5, (*tissue.shape, 3))
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def section() -> tuple[np.ndarray, np.ndarray]:
    """A picture (600, 800, 3) at 8 µm per pixel and its tissue: two pieces, one with a hole."""
    shape = (600, 800)
    tissue = disk(shape, 250, 300, 180) & ~disk(shape, 250, 300, 40)
    tissue |= disk(shape, 620, 200, 90)
    return paint(tissue), tissue
