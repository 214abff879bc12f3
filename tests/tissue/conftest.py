"""Slides made of pictures, read by the package's own reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tissue_pictures import disk, paint

import wsipipe as wp


@pytest.fixture
def slide_of(tmp_path: Path) -> Iterator[Callable[..., wp.Slide]]:
    """Make an open slide of pixels: `slide_of(rgb, mpp=8.0, name="a")`."""
    opened = []

    def make(rgb: np.ndarray, mpp: float = 8.0, name: str = "a") -> wp.Slide:
        path = tmp_path / f"{name}.png"
        Image.fromarray(rgb).save(path, compress_level=1)
        opened.append(wp.open_slide(path, mpp=mpp))
        return opened[-1]

    yield make
    for slide in opened:
        slide.close()


@pytest.fixture(scope="session")
def section() -> tuple[np.ndarray, np.ndarray]:
    """A picture (600, 800, 3) at 8 µm per pixel and its tissue: two pieces, one with a hole."""
    shape = (600, 800)
    tissue = disk(shape, 250, 300, 180) & ~disk(shape, 250, 300, 40)
    tissue |= disk(shape, 620, 200, 90)
    return paint(tissue), tissue
