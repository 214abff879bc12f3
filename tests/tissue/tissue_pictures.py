"""Pictures whose tissue is known."""

from __future__ import annotations

import numpy as np

__all__ = ["GLASS", "disk", "paint"]

GLASS = (243, 243, 243)
# Transmitted colours of pale haematoxylin and eosin at thumbnail resolution.
PINK, PURPLE = (222, 160, 195), (170, 120, 180)


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
