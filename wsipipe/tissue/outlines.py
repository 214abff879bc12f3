"""Between pixels and polygons, both ways and without loss.

Outlines run along pixel edges, not through pixel centres (as contour finders' do): the polygon's
area is the pixels' area, and rasterising the outlines gives the mask back.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import BoolArray

if TYPE_CHECKING:
    from shapely.geometry import Polygon

__all__ = ["mask_outlines", "rasterise"]

# Directions of an edge: right, down, left, up (y grows downwards), clockwise.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])


def mask_outlines(
    mask: BoolArray,
    downsample: tuple[Fraction, Fraction],
    dimensions: tuple[int, int] | None = None,
) -> list[Polygon]:
    """Polygons with holes around the True pixels, in level-0 pixels, largest first.

    Pixels that touch only at a corner belong to different polygons (4-connectivity), which keeps
    every polygon valid. The last column and row end where the slide (`dimensions`) ends.
    """
    from shapely.geometry import Polygon

    if not mask.any():
        return []
    shells: dict[int, NDArray[np.float64]] = {}
    holes: dict[int, list[NDArray[np.float64]]] = {}
    scale = np.array([float(downsample[0]), float(downsample[1])])
    end = np.array(dimensions or (np.inf, np.inf), dtype=np.float64)
    for part, corners in _edge_rings(mask):
        ring = np.minimum(corners * scale, end)
        # Tissue lies on the right of every edge: shells run clockwise on screen, holes do not.
        if _shoelace(corners) > 0:
            shells[part] = ring
        else:
            holes.setdefault(part, []).append(ring)
    polygons = [Polygon(shell, holes.get(part)) for part, shell in shells.items()]
    polygons.sort(key=lambda p: (-p.area, *p.bounds))
    return polygons


def rasterise(
    polygons: Sequence[Polygon],
    shape: tuple[int, int],
    downsample: tuple[Fraction, Fraction],
    dimensions: tuple[int, int] | None = None,
) -> BoolArray:
    """Mark the pixels whose centre lies in a polygon (even-odd over all rings).

    What reaches the slide's end (`dimensions`) reaches the end of the last column or row, whose
    centres may lie beyond it.

    Args:
        polygons: In level-0 pixels, without overlaps.
        shape: (h, w) of the mask.
        downsample: Level-0 pixels per mask pixel, (x, y).

    Returns:
        (h, w) bool.
    """
    import shapely

    height, width = shape
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    rings = shapely.get_rings(np.asarray(polygons, dtype=object)) if len(polygons) else []
    for ring in rings:
        level0 = shapely.get_coordinates(ring)
        points = level0 / [float(downsample[0]), float(downsample[1])]
        if dimensions is not None:
            points = np.where(level0 >= dimensions, (width, height), points)
        _toggle_crossings(toggles, points, height, width)
    inside: BoolArray = (np.cumsum(toggles[:, :width], axis=1) % 2).astype(bool)
    return inside


def _toggle_crossings(
    toggles: NDArray[np.int32], points: NDArray[np.float64], height: int, width: int
) -> None:
    """Add one at the first pixel centre on the right of each crossing of a row of centres."""
    x0, y0 = points[:-1].T
    x1, y1 = points[1:].T
    # Row r is crossed where min(y) <= r + ½ < max(y): half open, so no vertex counts twice.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    count = stop - first
    edge = np.repeat(np.arange(len(count)), count)
    if len(edge) == 0:
        return
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    along = (row + 0.5 - y0[edge]) / (y1[edge] - y0[edge])
    x = x0[edge] + along * (x1[edge] - x0[edge])
    col = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    np.add.at(toggles, (row, col), 1)


def _edge_rings(mask: BoolArray) -> list[tuple[int, NDArray[np.int64]]]:
    """Closed rings of pixel corners, each with the number of the part that it bounds.

    Every directed edge has one successor. Where two pixels touch only diagonally four edges meet:
    the walk turns left if both belong to one part (the ring then splits into a shell and a hole
    that touch in a point) and right if not (two shells that touch in a point). Both are valid.
    """
    import cv2

    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    labels = np.pad(labels, 1)
    height, width = mask.shape
    edges = _directed_edges(labels > 0)
    index = np.full((4, height + 1, width + 1), -1, dtype=np.int64)
    way, y, x = edges.T
    index[way, y, x] = np.arange(len(edges))
    end_x, end_y = x + _STEP_X[way], y + _STEP_Y[way]
    left, ahead, right = (index[(way + turn) % 4, end_y, end_x] for turn in (3, 0, 1))
    # The four pixels around the corner at which the edge ends; padding shifts them by one.
    pinched = (left >= 0) & (right >= 0)
    one_part = (labels[end_y, end_x] == labels[end_y + 1, end_x + 1]) & (
        labels[end_y, end_x + 1] == labels[end_y + 1, end_x]
    )
    follower = np.where(left >= 0, left, np.where(ahead >= 0, ahead, right))
    follower = np.where(pinched & ~one_part, right, follower)
    inner_x, inner_y = _pixel_on_the_right(way, x, y)
    part = labels[inner_y + 1, inner_x + 1]
    return _chain(follower.tolist(), edges, part)


def _directed_edges(padded: BoolArray) -> NDArray[np.int64]:
    """(E, 3) direction, y, x of the starting corner; tissue on the right."""
    inside = padded[1:-1, 1:-1]
    # Sides without tissue beyond them, and how far each side's first corner is from (row, column).
    sides = (
        (inside & ~padded[:-2, 1:-1], (0, 0)),
        (inside & ~padded[1:-1, 2:], (0, 1)),
        (inside & ~padded[2:, 1:-1], (1, 1)),
        (inside & ~padded[1:-1, :-2], (1, 0)),
    )
    return np.concatenate(
        [
            np.insert(np.argwhere(side) + np.array(corner), 0, way, axis=1)
            for way, (side, corner) in enumerate(sides)
        ]
    )


def _pixel_on_the_right(
    way: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shift_x = np.array([0, -1, -1, 0])
    shift_y = np.array([0, 0, -1, -1])
    return x + shift_x[way], y + shift_y[way]


def _chain(
    follower: list[int], edges: NDArray[np.int64], part: NDArray[np.int32]
) -> list[tuple[int, NDArray[np.int64]]]:
    seen = bytearray(len(follower))
    rings = []
    for start in range(len(follower)):
        if seen[start]:
            continue
        ring = []
        at = start
        while not seen[at]:
            seen[at] = 1
            ring.append(at)
            at = follower[at]
        way = edges[ring, 0]
        # Corners only: an edge that goes on in the same direction adds no vertex.
        corner = way != np.roll(way, 1)
        rings.append((int(part[start]), edges[ring][corner][:, [2, 1]]))
    return rings


def _shoelace(corners: NDArray[np.int64]) -> int:
    x, y = corners.T
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
