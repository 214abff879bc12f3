"""Pen marks by the colour of their ink.

Haematoxylin, eosin and DAB all absorb green at least as much as red. Green, blue and turquoise inks
absorb red most. Red ink absorbs blue nearly as much as green and red hardly at all, as only blood
does besides; black ink absorbs everything alike, and more than nuclei do at thumbnail resolution.

Certain ink (seeds) has to be as wide as a stroke, which blood cells, pigment and surgical ink on a
margin are not; from there it grows into paler ink of the same kind, and by a little into its halo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.tissue.morphology import (
    Scale,
    close,
    dilate,
    drop_specks,
    keep_open_parts,
    keep_parts_touching,
    opening,
    within,
)
from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = ["Ink", "black_ink", "cold_ink", "find_pen", "red_ink"]

# Sum of the channels (thousandths of OD) from which on a pixel has a hue to speak of.
_STAINED_TOTAL = 150
# Shares of the three channels in haematoxylin and eosin at thumbnail resolution (median over six
# real sections).
_TISSUE_HUE = np.array([0.2, 0.5, 0.3])
_SAME_HUE = 0.06
# Paler ink lies within this distance of certain ink; nothing there counts as typical tissue.
_REACH_UM = 800.0
# A stroke that may be blood has at least this share of its outline on glass.
_MIN_OPEN_SHARE = 0.1


def find_pen(
    rgb: TileArray, background: Rgb, scale: Scale, settings: ClassicalSettings
) -> BoolArray:
    """Mark pen ink, (h, w) bool."""
    from wsipipe.tissue.classical import optical_density

    density = optical_density(rgb, background)
    stained = density.sum(axis=2, dtype=np.int32) > _STAINED_TOTAL
    hue = _hue(density)
    found = np.zeros(rgb.shape[:2], dtype=bool)
    for ink in (cold_ink(density), red_ink(density), black_ink(density)):
        seeds = ink.certain
        if ink.only_wide:
            seeds = opening(seeds, scale, settings.pen_width_um / 2)
        seeds = drop_specks(seeds, scale, settings.min_pen_mm2)
        if not seeds.any():
            continue
        around = within(seeds, scale, _REACH_UM)
        likely = ink.likely & around & _nearer_to_ink(hue, seeds, around, stained)
        # Strokes are streaky: the closing joins their streaks.
        grown = close(likely | seeds, scale, settings.pen_halo_um)
        grown = keep_parts_touching(grown, seeds)
        grown = dilate(grown, scale, settings.pen_halo_um)
        if ink.only_open:
            grown = keep_open_parts(grown, ~stained, _MIN_OPEN_SHARE)
        found |= grown
    return found


@dataclass(frozen=True)
class Ink:
    """Where one kind of ink may be: (h, w) bool each.

    Attributes:
        certain: No common stain looks like this.
        likely: Ink if it hangs together with certain ink.
        only_wide: Pigment, blood cells and dense nuclei may look like it, but are not as wide.
        only_open: Bleeding may look like it, but a stroke leaves the tissue somewhere.
    """

    certain: BoolArray
    likely: BoolArray
    only_wide: bool
    only_open: bool


def _hue(density: NDArray[np.int16]) -> NDArray[np.float32]:
    """Each channel's share of a pixel's density, (h, w, 3): what Beer-Lambert keeps constant."""
    total = density.sum(axis=2, dtype=np.float32)
    hue: NDArray[np.float32] = density / np.maximum(total, 1)[..., None]
    return hue


def _nearer_to_ink(
    hue: NDArray[np.float32], seeds: BoolArray, around: BoolArray, stained: BoolArray
) -> BoolArray:
    """Pixels whose hue is nearer to this ink's than to this slide's tissue."""
    ink = np.median(hue[seeds], axis=0)
    tissue = _TISSUE_HUE
    if (stained & ~around).any():
        tissue = np.median(hue[stained & ~around], axis=0)
    if ((tissue - ink) ** 2).sum() < _SAME_HUE**2:
        # Nothing but ink is there to learn from, or tissue of its colour.
        tissue = _TISSUE_HUE
    near: BoolArray = ((hue - ink) ** 2).sum(axis=2) < ((hue - tissue) ** 2).sum(axis=2)
    return near


def cold_ink(density: NDArray[np.int16]) -> Ink:
    """Green, turquoise, blue."""
    red, green = density[..., 0], density[..., 1]
    return Ink(red - green > 80, red - green > 35, only_wide=False, only_open=False)


def red_ink(density: NDArray[np.int16]) -> Ink:
    """Red; blood has the same colours."""
    red, green, blue = (density[..., c].astype(np.int32) for c in range(3))
    certain = (green > 350) & (red * 20 < green * 4) & (blue * 100 > green * 66)
    likely = (green > 150) & (red * 20 < green * 6) & (blue * 100 > green * 62)
    return Ink(certain, likely, only_wide=True, only_open=True)


def black_ink(density: NDArray[np.int16]) -> Ink:
    """Black, also over tissue."""
    low, high = density.min(axis=2).astype(np.int32), density.max(axis=2).astype(np.int32)
    spread = high - low
    certain = (low > 600) & (spread * 10 < low * 6)
    likely = (low > 350) & (spread * 10 < low * 6)
    return Ink(certain, likely, only_wide=True, only_open=False)
