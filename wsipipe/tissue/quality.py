"""How good a tile is, in numbers: focus, ink, blood, black, saturation; outliers of a cohort.

Each measure is taken at its own fixed resolution, whatever the encoder's, so that a number means
the same in every run. Colours are judged as the pen detector judges them, relative to white.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = [
    "MEASURES",
    "QUALITY_VERSION",
    "QualityFilter",
    "flag_outliers",
    "slide_quality",
    "tile_quality",
]

QUALITY_VERSION = 1

# Measure -> what it is.
MEASURES = {
    "focus": "variance of the Laplacian of the grey levels at 1 µm per pixel; blurred tiles: small",
    "pen": "fraction that has the colour of green, turquoise or blue ink",
    "blood": "fraction that has the colour of blood or red ink, which look the same",
    "black": "fraction that is black: ink, pigment, folds' shadows, missing areas",
    "saturation": "mean saturation (HSV), 0 to 1",
}
# At 1 µm per pixel nuclei still have texture, and a defocus of a few µm has not.
_FOCUS_MPP = 1.0
# Where the colour rules were measured; finer pixels show single cells, not areas.
_COLOUR_MPP = 8.0
# Iglewicz and Hoaglin 1993: modified z-scores above this are outliers.
_OUTLIER_SCORE = 3.5
# Fewer slides have no spread to speak of.
_MIN_COHORT = 8


def tile_quality(
    tiles: TileArray, mpp: float, *, background: Rgb = (245, 245, 245)
) -> dict[str, NDArray[np.float32]]:
    """Measure a batch of tiles.

    Args:
        tiles: (B, H, W, 3) uint8.
        mpp: µm per pixel of the tiles.
        background: Colour of the slide's empty glass, (r, g, b).

    Returns:
        A (B,) float32 for each of `MEASURES`. `focus` is NaN where tiles are coarser than 1 µm per
        pixel: what is blurred at that resolution cannot be told any more.
    """
    import cv2

    result = {name: np.empty(len(tiles), dtype=np.float32) for name in MEASURES}
    for row, tile in enumerate(tiles):
        coarse = _reduce(tile, mpp, _COLOUR_MPP)
        for name, value in _colours(coarse, background).items():
            result[name][row] = value
        hsv = cv2.cvtColor(coarse, cv2.COLOR_RGB2HSV)
        result["saturation"][row] = hsv[..., 1].mean() / 255
        result["focus"][row] = _focus(tile, mpp)
    return result


def _reduce(tile: TileArray, mpp: float, target: float) -> TileArray:
    import cv2

    height, width = tile.shape[:2]
    size = (max(1, round(width * mpp / target)), max(1, round(height * mpp / target)))
    if mpp >= target or size == (width, height):
        return tile
    reduced: TileArray = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
    return reduced


def _colours(tile: TileArray, background: Rgb) -> dict[str, float]:
    from wsipipe.tissue.density import optical_density
    from wsipipe.tissue.pen import black_ink, cold_ink, red_ink

    density = optical_density(tile, background)
    return {
        "pen": float(cold_ink(density).likely.mean()),
        "blood": float(red_ink(density).certain.mean()),
        "black": float(black_ink(density).certain.mean()),
    }


def _focus(tile: TileArray, mpp: float) -> float:
    import cv2

    # 5 % of tolerance as for reading: scanners' 1.01 is 1.
    if mpp > _FOCUS_MPP * 1.05:
        return float("nan")
    grey = cv2.cvtColor(_reduce(tile, mpp, _FOCUS_MPP), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def slide_quality(quality: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """One number a measure for a slide: the median of focus, the mean of the others.

    Args:
        quality: As `tile_quality` returns it, for all tiles of the slide.

    Returns:
        Measure -> number; NaN where there is no tile that could be measured.
    """
    result = {}
    for name, values in quality.items():
        known = values[np.isfinite(values)].astype(np.float64)
        if len(known) == 0:
            result[name] = float("nan")
        else:
            result[name] = float(np.median(known) if name == "focus" else known.mean())
    return result


@dataclass(frozen=True)
class QualityFilter:
    """Which tiles pass; a measure that could not be taken passes.

    Attributes:
        minimum: Measure -> smallest value that passes.
        maximum: Measure -> largest value that passes.
    """

    minimum: Mapping[str, float] = field(default_factory=dict)
    maximum: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, **bounds: float | None) -> QualityFilter:
        """From `min_focus=`, `max_pen=` and the like; None is no bound."""
        given = {name: value for name, value in bounds.items() if value is not None}
        return cls(
            {name[4:]: value for name, value in given.items() if name.startswith("min_")},
            {name[4:]: value for name, value in given.items() if name.startswith("max_")},
        )

    def __bool__(self) -> bool:
        return bool(self.minimum or self.maximum)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers and the choice, for an identity."""
        return {
            "version": QUALITY_VERSION,
            "minimum": dict(self.minimum),
            "maximum": dict(self.maximum),
        }

    def keep(self, quality: Mapping[str, NDArray[np.float32]]) -> BoolArray:
        """(B,) bool, the tiles that pass; `quality` as `tile_quality` returns it."""
        keep = np.ones(len(next(iter(quality.values()))), dtype=bool)
        for name, low in self.minimum.items():
            keep &= ~(quality[name] < low)
        for name, high in self.maximum.items():
            keep &= ~(quality[name] > high)
        return keep


def flag_outliers(slides: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Slides that are unlike the cohort, by modified z-score (median and MAD) above 3.5.

    Args:
        slides: Slide id -> measure -> number (`slide_quality`, tissue area, tile count, ...).

    Returns:
        Slide id -> names of the measures in which it stands out, with the direction
        ("focus low"). Empty for cohorts of fewer than 8 slides.
    """
    flags: dict[str, list[str]] = {}
    names: Sequence[str] = sorted({name for values in slides.values() for name in values})
    for name in names:
        ids = [s for s, values in slides.items() if np.isfinite(values.get(name, np.nan))]
        if len(ids) < _MIN_COHORT:
            continue
        values = np.array([slides[s][name] for s in ids])
        deviation = values - np.median(values)
        spread = np.median(np.abs(deviation))
        if spread == 0:
            # More than half are equal: the mean distance takes over, as the authors propose.
            score = deviation / (1.253314 * max(float(np.abs(deviation).mean()), 1e-12))
        else:
            score = 0.6745 * deviation / spread
        for slide_id, z in zip(ids, score, strict=True):
            if abs(z) > _OUTLIER_SCORE:
                flags.setdefault(slide_id, []).append(f"{name} {'low' if z < 0 else 'high'}")
    return flags
