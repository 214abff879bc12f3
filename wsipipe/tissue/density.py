"""Optical density relative to a slide's own glass, channel by channel, in whole numbers.

Planes of one channel each, 16 bit: four times faster than reducing over a last axis of three, and
the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import BoolArray, Rgb, TileArray

__all__ = ["Density", "extremes", "optical_density"]

Plane = NDArray[np.int16]
# Enough for a median to a thousandth.
_MEDIAN_PIXELS = 100_000


@dataclass(frozen=True, eq=False)
class Density:
    """Thousandths of decadic optical density, (h, w) int16 each, 0 to 2408."""

    red: Plane
    green: Plane
    blue: Plane

    @property
    def low(self) -> Plane:
        """Smallest of the three."""
        return np.minimum(np.minimum(self.red, self.green), self.blue)

    @cached_property
    def spread(self) -> Plane:
        """How unevenly the colours are absorbed: largest - smallest."""
        return np.maximum(np.maximum(self.red, self.green), self.blue) - self.low

    @cached_property
    def total(self) -> Plane:
        """Sum of the three, at most 7224."""
        return self.red + self.green + self.blue

    def hue(self, where: BoolArray) -> NDArray[np.float32]:
        """(n, 3) each channel's share of the total: what Beer-Lambert keeps constant."""
        planes = np.stack([self.red[where], self.green[where], self.blue[where]], axis=1)
        total = np.maximum(self.total[where], 1).astype(np.float32)
        shares: NDArray[np.float32] = np.divide(planes, total[:, None], dtype=np.float32)
        return shares

    def median_hue(self, where: BoolArray) -> NDArray[np.float32]:
        """(3,) median of `hue`; of every k-th row and column where there are very many pixels."""
        step = max(1, int((np.count_nonzero(where) / _MEDIAN_PIXELS) ** 0.5))
        thin = np.zeros_like(where)
        thin[::step, ::step] = where[::step, ::step]
        median: NDArray[np.float32] = np.median(self.hue(thin if thin.any() else where), axis=0)
        return median


def optical_density(rgb: TileArray, background: Rgb) -> Density:
    """Density of a picture, (h, w, 3) uint8, relative to the colour of empty glass, (r, g, b)."""
    import cv2

    levels = np.arange(256)
    planes = []
    for channel, white in zip(cv2.split(rgb), background, strict=True):
        table = np.rint(1000 * np.log10((white + 1) / (levels + 1)))
        table = np.clip(table, 0, None).astype(np.int16)
        planes.append(cv2.LUT(channel, table[None]))
    return Density(*planes)


def extremes(rgb: TileArray) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Smallest and largest channel of each pixel, (h, w) uint8."""
    import cv2

    r, g, b = cv2.split(rgb)
    return np.minimum(np.minimum(r, g), b), np.maximum(np.maximum(r, g), b)
