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

from wsipipe.tissue.density import Density
from wsipipe.tissue.morphology import (
    Scale,
    close,
    dilate,
    drop_specks,
    keep_open_parts,
    keep_parts_touching,
    opening,
    share_around,
    within,
)
from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray

__all__ = ["Ink", "black_ink", "cold_ink", "find_pen", "red_ink"]

# Sum of the channels (thousandths of OD) from which on a pixel has a hue to speak of.
_STAINED_TOTAL = 150
# Shares of the three channels in haematoxylin and eosin at thumbnail resolution (median over six
# real sections).
_TISSUE_HUE = np.array([0.2, 0.5, 0.3], dtype=np.float32)
# Strong eosin is as near as 0.06 to red ink.
_SAME_HUE = 0.04
# Paler ink lies within this distance of certain ink, and most of it within the smaller one:
# nothing there counts as typical tissue, nor does what has hardly a hue (frames, shadows).
_REACH_UM = 1600.0
_FRINGE_UM = 400.0
_MOST_TOTAL_PER_SPREAD = 8
# Noise makes up to a tenth of the pixels of strong eosin look like red ink.
_MIN_LIKELY_SHARE = 0.1
# A stroke that may be blood has at least this share of its outline on glass.
_MIN_OPEN_SHARE = 0.1


def find_pen(density: Density, scale: Scale, settings: ClassicalSettings) -> BoolArray:
    """Mark pen ink, (h, w) bool."""
    stained = density.total > _STAINED_TOTAL
    coloured = stained & (density.spread > density.total // _MOST_TOTAL_PER_SPREAD)
    found = np.zeros(stained.shape, dtype=bool)
    for look_for in (cold_ink, red_ink, black_ink):
        ink = look_for(density)
        seeds = ink.certain
        if ink.only_wide:
            seeds = opening(seeds, scale, settings.pen_width_um / 2)
        seeds = drop_specks(seeds, scale, settings.min_pen_mm2)
        if not seeds.any():
            continue
        likely = ink.likely & within(seeds, scale, _REACH_UM)
        typical = coloured & ~within(seeds, scale, _FRINGE_UM)
        likely = _nearer_to_ink(density, seeds, likely, typical)
        # Strokes are streaky: the closing joins their streaks. It joins single pixels of tissue
        # that look like ink, too, but those are few among others.
        grown = close(likely | seeds, scale, settings.pen_halo_um)
        grown &= seeds | (share_around(likely, scale, settings.pen_halo_um) > _MIN_LIKELY_SHARE)
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


def _nearer_to_ink(
    density: Density, seeds: BoolArray, likely: BoolArray, tissue: BoolArray
) -> BoolArray:
    """The likely pixels whose hue is nearer to this ink's than to this slide's tissue."""
    ink_hue = density.median_hue(seeds)
    tissue_hue = density.median_hue(tissue) if tissue.any() else _TISSUE_HUE
    if ((tissue_hue - ink_hue) ** 2).sum() < _SAME_HUE**2:
        # Nothing but ink is there to learn from, or tissue of its colour.
        tissue_hue = _TISSUE_HUE
    hue = density.hue(likely)
    to_ink, to_tissue = (((hue - h) ** 2).sum(axis=1) for h in (ink_hue, tissue_hue))
    near = likely.copy()
    near[likely] = to_ink < to_tissue
    return near


def cold_ink(density: Density) -> Ink:
    """Green, turquoise, blue."""
    excess = density.red - density.green
    return Ink(excess > 80, excess > 35, only_wide=False, only_open=False)


def red_ink(density: Density) -> Ink:
    """Red; blood has the same colours."""
    red, green, blue = density.red, density.green, density.blue
    certain = (green > 350) & (red * 5 < green) & (blue * 3 > green * 2)
    likely = (green > 150) & (red * 10 < green * 3) & (blue * 8 > green * 5)
    return Ink(certain, likely, only_wide=True, only_open=True)


def black_ink(density: Density) -> Ink:
    """Black, also over tissue."""
    low = density.low
    neutral = density.spread * 5 < low * 3
    return Ink((low > 600) & neutral, (low > 350) & neutral, only_wide=True, only_open=False)
