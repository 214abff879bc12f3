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

from wsipipe.tissue.settings import ClassicalSettings
from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = ["Regions", "detect_tissue_rgb", "estimate_background", "optical_density"]

# Evidence (thousandths of OD) between which the automatic threshold may lie: below, glass shows;
# above, pale tissue is lost.
_THRESHOLD_RANGE = (25, 60)
# Glass is at least this bright and at most this coloured (max - min of the channels).
_GLASS_MIN_LEVEL = 170
_GLASS_MAX_CHROMA = 24
# A frame, a black gap or a missing tile: darker than this in every channel and nearly colourless.
_BLACK_MAX_LEVEL = 48
_BLACK_MAX_CHROMA = 16


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
    from wsipipe.tissue import morphology, pen, simple

    settings = settings or ClassicalSettings()
    scale = morphology.Scale(*mpp_xy)
    if background is None:
        background = estimate_background(rgb)
    ink = np.zeros(rgb.shape[:2], dtype=bool)
    if settings.pen:
        ink = pen.find_pen(rgb, background, scale, settings)
    if method == "auto":
        found = _by_density(rgb, ink, background, scale, settings)
    else:
        found = simple.METHODS[method](rgb, scale, settings)
    found = morphology.close(found, scale, settings.close_um)
    found = morphology.fill_holes(found, scale, settings.min_hole_mm2)
    found &= ~ink
    found = morphology.drop_specks(found, scale, settings.min_tissue_mm2)
    return Regions(found, ink, background)


def estimate_background(rgb: TileArray) -> Rgb:
    """Colour of the empty glass: the commonest bright and colourless level, per channel.

    White where too little of the picture could be glass (a field full of tissue).
    """
    high = rgb.max(axis=2)
    glass = (rgb.min(axis=2) >= _GLASS_MIN_LEVEL) & (
        high.astype(np.int16) - rgb.min(axis=2) <= _GLASS_MAX_CHROMA
    )
    if np.count_nonzero(glass) < 0.002 * glass.size:
        return 255, 255, 255
    counts = np.bincount(high[glass], minlength=256).astype(np.float64)
    # Missing areas are often filled with pure white beside grey glass: a flat window over the
    # histogram finds the broad peak of glass and not one spike.
    smooth = np.convolve(counts, np.ones(5), mode="same")
    peak = int(smooth.argmax())
    near = glass & (np.abs(high.astype(np.int16) - peak) <= 6)
    r, g, b = (int(v) for v in np.median(rgb[near], axis=0))
    return r, g, b


def optical_density(rgb: TileArray, background: Rgb) -> NDArray[np.int16]:
    """Thousandths of decadic optical density relative to the background, (h, w, 3) int16, >= 0."""
    levels = np.arange(256)
    density = np.empty(rgb.shape, dtype=np.int16)
    for channel, white in enumerate(background):
        table = np.rint(1000 * np.log10((white + 1) / (levels + 1)))
        density[..., channel] = np.clip(table, 0, None).astype(np.int16)[rgb[..., channel]]
    return density


def _by_density(
    rgb: TileArray,
    ink: BoolArray,
    background: Rgb,
    scale: object,
    settings: ClassicalSettings,
) -> BoolArray:
    import cv2

    from wsipipe.tissue.morphology import Scale

    assert isinstance(scale, Scale)
    density = optical_density(rgb, background)
    high, low = density.max(axis=2), density.min(axis=2)
    evidence = (high - low) + density.mean(axis=2).astype(np.int16) * 3 // 10
    black = (rgb.max(axis=2) <= _BLACK_MAX_LEVEL) & (
        rgb.max(axis=2).astype(np.int16) - rgb.min(axis=2) <= _BLACK_MAX_CHROMA
    )
    evidence[black | ink] = 0
    evidence = np.clip(evidence, 0, None).astype(np.uint16)
    sigma = (settings.smooth_um / scale.x_um, settings.smooth_um / scale.y_um)
    if min(sigma) > 0.3:
        # 16-bit Gaussian blur of OpenCV is fixed point: the same on every machine.
        evidence = cv2.GaussianBlur(evidence, (0, 0), sigma[0], sigmaY=sigma[1])
    found: BoolArray = evidence >= _threshold(evidence)
    return found


def _threshold(evidence: NDArray[np.uint16]) -> int:
    """Otsu's threshold on the logarithm of the evidence, held within the possible range."""
    low, high = _THRESHOLD_RANGE
    log = np.clip(np.rint(32 * np.log2(1 + np.arange(int(evidence.max()) + 1))), 0, 511)
    counts = np.bincount(log.astype(np.int64)[evidence.ravel()], minlength=512)
    from wsipipe.tissue.simple import otsu_split

    split = otsu_split(counts)
    return int(np.clip(round(2 ** (split / 32) - 1), low, high))
