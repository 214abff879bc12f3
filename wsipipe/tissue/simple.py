"""The plain detectors that other tools use, by name: `otsu`, `hsv`, `entropy`.

They are here to be chosen and to be compared with; `auto` is the one to use.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsipipe.tissue.morphology import Scale
from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray, TileArray

__all__ = ["METHODS", "otsu_split"]

# CLAM's documented default for `--seg`: saturation above 8 of 255 after a 7 px median.
_HSV_SATURATION = 8
_HSV_MEDIAN_PX = 7
# Window of the local entropy.
_ENTROPY_UM = 64.0


def otsu_split(counts: NDArray[np.int64]) -> int:
    """Last bin of the lower class at the split that separates two classes best (Otsu 1979)."""
    total = counts.sum()
    weight = np.cumsum(counts)
    mass = np.cumsum(counts * np.arange(len(counts), dtype=np.float64))
    other = total - weight
    valid = (weight > 0) & (other > 0)
    if not valid.any():
        return len(counts) - 1
    between = np.zeros(len(counts))
    mean_low = mass[valid] / weight[valid]
    mean_high = (mass[-1] - mass[valid]) / other[valid]
    between[valid] = weight[valid] * other[valid].astype(np.float64) * (mean_low - mean_high) ** 2
    # Empty bins between two classes tie: the middle of the tie is the fairest split.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return int(best[len(best) // 2])


def _saturation(rgb: TileArray) -> TileArray:
    import cv2

    saturation: TileArray = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1]
    return saturation


def _otsu(rgb: TileArray, scale: Scale, settings: ClassicalSettings) -> BoolArray:
    """Saturation above Otsu's threshold."""
    saturation = _saturation(rgb)
    split = otsu_split(np.bincount(saturation.ravel(), minlength=256))
    found: BoolArray = saturation > split
    return found


def _hsv(rgb: TileArray, scale: Scale, settings: ClassicalSettings) -> BoolArray:
    """Median-filtered saturation above a fixed level (Lu et al. 2021)."""
    import cv2

    found: BoolArray = cv2.medianBlur(_saturation(rgb), _HSV_MEDIAN_PX) > _HSV_SATURATION
    return found


def _entropy(rgb: TileArray, scale: Scale, settings: ClassicalSettings) -> BoolArray:
    """Local entropy of the grey levels above Otsu's threshold (Song et al. 2023)."""
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) >> 3
    window = tuple(max(3, round(_ENTROPY_UM / um) | 1) for um in (scale.x_um, scale.y_um))
    entropy = np.zeros(grey.shape, dtype=np.float32)
    for level in range(32):
        share = cv2.blur((grey == level).astype(np.float32), window)
        positive = share > 1e-6
        entropy[positive] -= share[positive] * np.log2(share[positive])
    binned = np.clip(np.rint(entropy * 50), 0, 255).astype(np.uint8)
    found: BoolArray = binned > otsu_split(np.bincount(binned.ravel(), minlength=256))
    return found


METHODS: dict[str, Callable[[TileArray, Scale, ClassicalSettings], BoolArray]] = {
    "otsu": _otsu,
    "hsv": _hsv,
    "entropy": _entropy,
}
