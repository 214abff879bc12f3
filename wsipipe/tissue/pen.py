"""Pen marks by the colour of their ink.

Haematoxylin, eosin and DAB all absorb green at least as much as red. Green, blue and turquoise inks
absorb red most; red ink absorbs blue as much as green and red hardly at all; black ink absorbs
everything alike, and more than nuclei do at thumbnail resolution.
"""

from __future__ import annotations

import numpy as np

from wsipipe.tissue.morphology import Scale, dilate, drop_specks, keep_parts_touching
from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = ["find_pen"]


def find_pen(
    rgb: TileArray, background: Rgb, scale: Scale, settings: ClassicalSettings
) -> BoolArray:
    """Mark pen ink, (h, w) bool."""
    from wsipipe.tissue.classical import optical_density

    red, green, blue = np.moveaxis(optical_density(rgb, background), 2, 0)
    # Green, turquoise, blue ink.
    cold = red - np.maximum(green, 0)
    strong = cold > 120
    weak = cold > 50
    # Red ink.
    strong |= (green > 350) & (blue * 10 > green * 8) & (red * 4 < green)
    weak |= (green > 150) & (blue * 10 > green * 8) & (red * 3 < green)
    # Black ink.
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    dark = np.minimum(np.minimum(red, green), blue)
    strong |= (dark > 700) & (spread * 4 < dark)
    seeds = drop_specks(strong, scale, settings.min_pen_mm2)
    if not seeds.any():
        return seeds
    return dilate(keep_parts_touching(weak | strong, seeds), scale, scale.x_um * 1.5)
