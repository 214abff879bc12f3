"""Words of the field as types.

Points are (x, y), sizes (width, height), arrays (height, width, channel) uint8 RGB. A *level-0
pixel* is a pixel of the slide's finest level; *mpp* is µm per pixel. Exact arithmetic uses
`Fraction`: a scanner that writes "0.2527" means 2527/10000, not the nearest float.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BoolArray",
    "Bounds",
    "Coords",
    "FloatArray",
    "Level",
    "Mpp",
    "Rgb",
    "Rows",
    "SlideId",
    "TileArray",
    "exact",
]

SlideId = NewType("SlideId", str)
Mpp: TypeAlias = float

Rgb: TypeAlias = tuple[int, int, int]
TileArray: TypeAlias = NDArray[np.uint8]  # (B, tile_px, tile_px, 3) or (H, W, 3)
Coords: TypeAlias = NDArray[np.int64]  # (N, 2) level-0 (x, y) of top-left corners
Rows: TypeAlias = NDArray[np.int64]  # (B,) indices into a grid
BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.floating[Any]]


def exact(value: float | str | Fraction) -> Fraction:
    """The rational number that a decimal text (or a float's shortest text) says.

    >>> exact(0.2527)
    Fraction(2527, 10000)
    """
    if isinstance(value, Fraction):
        return value
    return Fraction(str(value).strip().replace(",", "."))


@dataclass(frozen=True, slots=True)
class Bounds:
    """A rectangle in level-0 pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid.

    Attributes:
        index: 0 is the finest.
        width, height: Size in pixels of this level.
        downsample: Level-0 pixels per pixel of this level, (x, y), exact: the integer ratio where
            the level's size is that ratio's floor or ceiling on both axes, else the two ratios.
    """

    index: int
    width: int
    height: int
    downsample: tuple[Fraction, Fraction]
