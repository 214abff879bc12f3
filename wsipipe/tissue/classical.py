"""Tissue by optics, without weights: colour that the glass does not have.

Stain absorbs light and absorbs it unevenly over the colours; glass, dust, shadow and scanner frames
do not. Optical density relative to the slide's own background (Beer-Lambert) is therefore the
evidence: its spread over the channels, and a small share of its mean for pale grey stains.

All arithmetic up to the threshold is on integers (thousandths of optical density), so that two
machines find the same mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.tissue import morphology
from wsipipe.tissue.density import Density, extremes, optical_density
from wsipipe.tissue.morphology import Scale
from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = ["Regions", "detect_tissue_rgb", "estimate_background"]

# Evidence (thousandths of OD) from which on there is tissue. Glass after smoothing reaches 5 to 12
# (95th percentile, 12 real pictures, also at JPEG quality 40), pale tissue starts at 30.
_THRESHOLD = 25
# Overexposed glass sits at 255: pale stain loses density with it, but so does the noise of glass.
# The threshold falls by this much for each grey level of the background above the given one.
_THRESHOLD_FALL = 1.5
_EXPOSED_FROM = 250
# Pale strands count from this share of the threshold on, if they hang together over this area.
_STRAND_SHARE = 0.7
_MIN_STRAND_MM2 = 0.002
# Glass is at least this bright, at most this coloured (max - min of the channels), this flat, and
# makes up this share of a picture that has glass at all.
_GLASS_MIN_LEVEL = 160
_GLASS_MAX_CHROMA = 40
_GLASS_MAX_STEP = 4
_GLASS_MIN_SHARE = 0.005
# Grey: the spread over the channels is less than a tenth of their mean, and there is enough density
# to tell.
_GREY_MIN_TOTAL = 120
_GREY_TOTAL_PER_SPREAD = 30
# A whole part is dust, a hair or the coverslip's edge where its spread is less than this share of
# its mean: such lines reach 0.20, the greyest stain (brown beside blue, blurred to grey) 0.24.
_GREY_PART_SHARE = 0.22
# A whole part is ink where red absorbs more than green by this share of its sum; blue nuclei of
# immunostains reach 0.04.
_INK_PART_SHARE = 0.1
# On coarse slides a pixel is wider than what is smoothed over; compression noise still is not.
_MIN_SIGMA_PX = 0.6


@dataclass(frozen=True)
class Regions:
    """What was found in a picture: (h, w) bool each, never overlapping."""

    tissue: BoolArray
    pen: BoolArray
    background: Rgb


def detect_tissue_rgb(
    rgb: TileArray,
    mpp_xy: tuple[float, float],
    settings: ClassicalSettings | None = None,
    *,
    method: str = "auto",
    background: Rgb | None = None,
) -> Regions:
    """Find the tissue in a picture of known resolution.

    Args:
        rgb: (h, w, 3) uint8.
        mpp_xy: µm per pixel of `rgb`, (x, y).
        settings: Defaults where None.
        method: "auto", "otsu", "hsv" or "entropy".
        background: Colour of empty glass, (r, g, b); estimated from `rgb` where None.

    Returns:
        Masks of the size of `rgb`.
    """
    from wsipipe.tissue import pen, simple

    settings = settings or ClassicalSettings()
    scale = Scale(*mpp_xy)
    if background is None:
        background = estimate_background(rgb)
    density = optical_density(rgb, background)
    ink = np.zeros(rgb.shape[:2], dtype=bool)
    if settings.pen:
        ink = pen.find_pen(density, scale, settings)
    if method == "auto":
        found = _by_density(density, ink, min(background), scale, settings)
    else:
        found = simple.METHODS[method](rgb, scale, settings)
        found = _solid(found, ink, scale, settings)
    found = morphology.drop_specks(found, scale, settings.min_tissue_mm2)
    if method == "auto":
        found = _drop_unstained_parts(found, density, ink_too=settings.pen)
    return Regions(found, ink, background)


def estimate_background(rgb: TileArray) -> Rgb:
    """Colour of the empty glass: the commonest bright, flat and hardly coloured level.

    White where too little of the picture could be glass (a field full of tissue).
    """
    import cv2

    low, high = extremes(rgb)
    # Glass is smooth, tissue is not: this lets glass have a tint (lamps, filters) of its own.
    square = np.ones((3, 3), dtype=np.uint8)
    flat = cv2.morphologyEx(cv2.blur(high, (3, 3)), cv2.MORPH_GRADIENT, square) <= _GLASS_MAX_STEP
    glass = flat & (low >= _GLASS_MIN_LEVEL) & (high - low <= _GLASS_MAX_CHROMA)
    if np.count_nonzero(glass) < _GLASS_MIN_SHARE * glass.size:
        return 255, 255, 255
    counts = _histogram(high, glass)
    # Missing areas are often filled with pure white beside grey glass: a window over the histogram
    # finds the broad peak of glass and not one spike.
    peak = int(np.convolve(counts, np.ones(5), mode="same").argmax())
    near = glass & (np.abs(high.astype(np.int16) - peak) <= 6)
    r, g, b = (_median(_histogram(rgb, near, channel)) for channel in range(3))
    return r, g, b


def _histogram(pixels: NDArray[np.uint8], where: BoolArray, channel: int = 0) -> NDArray[np.int64]:
    """How often each level occurs in a channel, where a mask allows."""
    import cv2

    counts = cv2.calcHist([pixels], [channel], where.view(np.uint8), [256], [0, 256])
    found: NDArray[np.int64] = counts.ravel().astype(np.int64)
    return found


def _median(counts: NDArray[np.int64]) -> int:
    """Lower median of what a histogram counts."""
    running = counts.cumsum()
    return int(np.searchsorted(running, (running[-1] + 1) // 2))


def _solid(
    found: BoolArray, ink: BoolArray, scale: Scale, settings: ClassicalSettings
) -> BoolArray:
    found = morphology.close(found, scale, settings.close_um)
    return morphology.fill_holes(found, scale, settings.min_hole_mm2) & ~ink


def _by_density(
    density: Density, ink: BoolArray, exposure: int, scale: Scale, settings: ClassicalSettings
) -> BoolArray:
    """Stain by evidence; `exposure` is the background's darkest channel."""
    # Dust, folds of the coverslip, shadows and frames take all colours alike.
    grey = density.total > _GREY_MIN_TOTAL
    grey &= density.spread < density.total // _GREY_TOTAL_PER_SPREAD
    # A share of the mean helps the palest stains and the grey that brown and blue make together.
    evidence = (density.spread + density.total // 24).astype(np.uint16)
    evidence[grey | ink] = 0
    del grey
    falls = _THRESHOLD_FALL * max(0, exposure - _EXPOSED_FROM)
    stained = _blurred(evidence, scale, settings.smooth_um) >= int(_THRESHOLD - falls)
    strands = _blurred(evidence, scale, 0) >= int((_THRESHOLD - falls) * _STRAND_SHARE)
    del evidence  # On the largest slides these arrays are most of the memory.
    found = _solid(stained, ink, scale, settings)
    if settings.strand_um == 0:
        return found
    # Only areas count, not the pale fringe of solid tissue.
    solid = morphology.opening(found, scale, settings.strand_um)
    areas = _joined(strands, scale, settings) & ~solid & ~ink
    areas = morphology.opening(areas, scale, settings.strand_um)
    if not areas.any():
        return found
    found = morphology.keep_parts_touching(found | areas, found)
    return _solid(found, ink, scale, settings)


def _joined(strands: BoolArray, scale: Scale, settings: ClassicalSettings) -> BoolArray:
    """Areas that strands enclose. Fat is glass between membranes too thin to count by themselves.

    Noise of the glass is as pale, and does not hang together.
    """
    strands = morphology.drop_specks(strands, scale, _MIN_STRAND_MM2)
    return morphology.close(strands, scale, settings.strand_um)


def _blurred(evidence: NDArray[np.uint16], scale: Scale, sigma_um: float) -> NDArray[np.uint16]:
    """Smoothed by OpenCV's 16-bit Gaussian: fixed point, the same on every machine."""
    import cv2

    sigma = [max(_MIN_SIGMA_PX, sigma_um / um) for um in (scale.x_um, scale.y_um)]
    blurred: NDArray[np.uint16] = cv2.GaussianBlur(evidence, (0, 0), sigma[0], sigmaY=sigma[1])
    return blurred


def _drop_unstained_parts(found: BoolArray, density: Density, *, ink_too: bool) -> BoolArray:
    """Leave out connected parts that are, as a whole, grey (dust, edges) or ink (a pen's halo)."""
    import cv2

    if not found.any():
        return found
    _, labels = cv2.connectedComponents(found.astype(np.uint8), connectivity=8)
    # Every fourth pixel tells the colour of a part; none is smaller than a speck.
    few = np.s_[::2, ::2]
    part, inside = labels[few][found[few]], found[few]
    count = int(labels.max()) + 1
    spread = np.bincount(part, density.spread[few][inside], count)
    total = np.bincount(part, density.total[few][inside], count)
    keep = 3 * spread >= _GREY_PART_SHARE * total
    if ink_too:
        cold = np.bincount(part, (density.red[few] - density.green[few])[inside], count)
        keep &= cold < _INK_PART_SHARE * total
    keep[0] = False
    return morphology.parts_where(keep, labels)
