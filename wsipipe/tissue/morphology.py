"""Shapes of a mask in µm and mm²: closing, holes, specks. Pixels need not be square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import BoolArray

__all__ = [
    "Scale",
    "close",
    "dilate",
    "drop_specks",
    "fill_holes",
    "keep_parts_touching",
    "opening",
    "parts_where",
    "share_around",
    "within",
]

# NumPy makes 64-bit copies of numbers that it counts or looks up: so many rows at a time.
_STRIP_ROWS = 256


@dataclass(frozen=True)
class Scale:
    """Size of a pixel in µm, (x, y)."""

    x_um: float
    y_um: float

    def pixels(self, area_mm2: float) -> float:
        """Number of pixels that have this area."""
        return area_mm2 * 1e6 / (self.x_um * self.y_um)


def close(mask: BoolArray, scale: Scale, radius_um: float) -> BoolArray:
    """Join what lies closer together than twice the radius. The border does not attract."""
    import cv2

    kernel = _ellipse(scale, radius_um)
    if kernel.size == 1 or not mask.any():
        return mask
    ry, rx = (n // 2 for n in kernel.shape)
    wide = np.pad(mask, ((ry, ry), (rx, rx))).astype(np.uint8)
    closed = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, kernel)
    result: BoolArray = closed[ry : ry + mask.shape[0], rx : rx + mask.shape[1]].astype(bool)
    return result


def dilate(mask: BoolArray, scale: Scale, radius_um: float) -> BoolArray:
    """Grow by the radius."""
    import cv2

    kernel = _ellipse(scale, radius_um)
    if kernel.size == 1 or not mask.any():
        return mask
    result: BoolArray = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
    return result


def opening(mask: BoolArray, scale: Scale, radius_um: float) -> BoolArray:
    """Keep what a disk of the radius fits into. The border of the picture does not cut."""
    import cv2

    kernel = _ellipse(scale, radius_um)
    if kernel.size == 1 or not mask.any():
        return mask
    result: BoolArray = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)
    return result


def within(mask: BoolArray, scale: Scale, distance_um: float) -> BoolArray:
    """What lies within a distance of the mask, measured in pixels of the finer axis."""
    import cv2

    steps = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    result: BoolArray = steps <= distance_um / min(scale.x_um, scale.y_um)
    return result


def share_around(mask: BoolArray, scale: Scale, radius_um: float) -> NDArray[np.float32]:
    """(h, w) float32, the share of the rectangle within the radius that is in the mask."""
    import cv2

    size = (2 * round(radius_um / scale.x_um) + 1, 2 * round(radius_um / scale.y_um) + 1)
    share: NDArray[np.float32] = cv2.blur(mask.astype(np.float32), size)
    return share


def drop_specks(mask: BoolArray, scale: Scale, min_mm2: float) -> BoolArray:
    """Leave out 8-connected parts that are smaller than an area."""
    return _keep_large(mask, scale.pixels(min_mm2), connectivity=8)


def fill_holes(mask: BoolArray, scale: Scale, below_mm2: float) -> BoolArray:
    """Fill holes smaller than an area. What is open to the border of the picture is no hole."""
    if not mask.any():
        return mask
    labels, areas = _parts(~mask, connectivity=4)
    small = areas < scale.pixels(below_mm2)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[border] = False
    small[0] = False
    return mask | parts_where(small, labels) if small.any() else mask


def keep_parts_touching(mask: BoolArray, seeds: BoolArray) -> BoolArray:
    """Keep the 8-connected parts of a mask that hold at least one seed."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.bincount(labels[seeds & mask], minlength=count) > 0
    keep[0] = False
    return parts_where(keep, labels)


def keep_open_parts(mask: BoolArray, glass: BoolArray, min_share: float) -> BoolArray:
    """Keep the 8-connected parts that have at least this share of their outline on glass.

    A part without any outline (it fills the picture) is kept.
    """
    import cv2

    if not mask.any():
        return mask
    square = np.ones((3, 3), dtype=np.uint8)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    # Each pixel just outside takes the number of the part that it touches.
    outline = cv2.dilate(labels.astype(np.float32), square).astype(np.int32)
    outline[mask] = 0
    around = np.bincount(outline.ravel(), minlength=count)
    open_ = np.bincount(outline[glass], minlength=count)
    keep = open_ >= min_share * around
    keep[0] = False
    return parts_where(keep, labels)


def parts_where(chosen: BoolArray, labels: NDArray[np.int32]) -> BoolArray:
    """Pixels whose part is chosen.

    Args:
        chosen: (n,) by number of the part.
        labels: (h, w) number of each pixel's part.
    """
    found = np.empty(labels.shape, dtype=bool)
    for top in range(0, len(labels), _STRIP_ROWS):
        strip = np.s_[top : top + _STRIP_ROWS]
        # All numbers are in range; "clip" spares a buffered copy of the strip.
        chosen.take(labels[strip], out=found[strip], mode="clip")
    return found


def _keep_large(mask: BoolArray, min_pixels: float, connectivity: int) -> BoolArray:
    if not mask.any():
        return mask
    labels, areas = _parts(mask, connectivity)
    keep = areas >= min_pixels
    if keep[1:].all():
        return mask
    keep[0] = False
    return parts_where(keep, labels)


def _parts(mask: BoolArray, connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number of each pixel's part, 0 outside, and pixels of each number."""
    import cv2

    # OpenCV's own statistics hold boxes and centres too, and take twice as long.
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=connectivity)
    areas = np.zeros(count, dtype=np.int64)
    for top in range(0, len(labels), _STRIP_ROWS):
        areas += np.bincount(labels[top : top + _STRIP_ROWS].ravel(), minlength=count)
    return labels, areas


def _ellipse(scale: Scale, radius_um: float) -> NDArray[np.uint8]:
    """Pixels whose centre lies within the radius of the middle one's; at least its neighbours."""
    if radius_um <= 0:
        return np.ones((1, 1), dtype=np.uint8)
    radius_um = max(radius_um, scale.x_um, scale.y_um)
    rx, ry = int(radius_um / scale.x_um), int(radius_um / scale.y_um)
    y, x = np.mgrid[-ry : ry + 1, -rx : rx + 1].astype(np.float64)
    inside = (x * scale.x_um) ** 2 + (y * scale.y_um) ** 2 <= radius_um**2
    kernel: NDArray[np.uint8] = inside.astype(np.uint8)
    return kernel
