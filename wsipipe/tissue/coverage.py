"""Exact share of a box that is tissue, for many boxes at once.

The mask is piecewise constant, so the integral of it over [0, x] x [0, y] is bilinear within each
mask pixel: interpolating a summed-area table (Crow 1984) at a box's four corners gives the exact
area, with no sampling and no rounding of the box to pixels.
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

__all__ = ["PolygonCoverage", "SummedArea"]

# Below this a fraction is rounding noise of the table's differences, not tissue.
_NOISE = 1e-9
# Polygons are cut until a piece has no more vertices than this: clipping is then short.
_PIECE_VERTICES = 128


class SummedArea:
    """Coverage by the pixels of a mask."""

    def __init__(self, mask: BoolArray, downsample: tuple[Fraction, Fraction]) -> None:
        height, width = mask.shape
        if mask.size >= 2**31:
            raise ValueError("a mask of more than 2^31 pixels is not a thumbnail")
        # int32 holds any count below 2^31 and halves the table.
        self._table = np.zeros((height + 1, width + 1), dtype=np.int32)
        np.cumsum(mask, axis=0, dtype=np.int32, out=self._table[1:, 1:])
        np.cumsum(self._table[1:, 1:], axis=1, out=self._table[1:, 1:])
        self._downsample = (float(downsample[0]), float(downsample[1]))

    def fractions(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N, 4) boxes x0, y0, x1, y1 in level-0 pixels -> (N,) fractions."""
        dx, dy = self._downsample
        x0, y0, x1, y1 = (boxes / [dx, dy, dx, dy]).T
        area = self._integral(x1, y1) - self._integral(x0, y1)
        area -= self._integral(x1, y0) - self._integral(x0, y0)
        return _as_fraction(area, (x1 - x0) * (y1 - y0))

    def _integral(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue within [0, x] x [0, y], in mask pixels."""
        height, width = (n - 1 for n in self._table.shape)
        x = np.clip(x, 0, width)
        y = np.clip(y, 0, height)
        col = np.minimum(x.astype(np.int64), width - 1)
        row = np.minimum(y.astype(np.int64), height - 1)
        fx, fy = x - col, y - row
        at = self._table
        top = at[row, col] * (1 - fx) + at[row, col + 1] * fx
        bottom = at[row + 1, col] * (1 - fx) + at[row + 1, col + 1] * fx
        result: NDArray[np.float64] = top * (1 - fy) + bottom * fy
        return result


class PolygonCoverage:
    """Coverage by polygons that do not overlap, for masks that came as polygons.

    A polygon of 500,000 vertices would be walked once for every tile that it touches; cut into
    small pieces and indexed, each tile meets only the few vertices near it.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        import shapely

        self._pieces = np.asarray(_cut(list(polygons)), dtype=object)
        self._tree = shapely.STRtree(self._pieces)

    def fractions(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N, 4) boxes x0, y0, x1, y1 in level-0 pixels -> (N,) fractions."""
        import shapely

        area = np.zeros(len(boxes))
        rectangles = shapely.box(*boxes.T)
        if len(self._pieces):
            at_box, at_piece = self._tree.query(rectangles, predicate="intersects")
            whole = _is_rectangle(self._pieces)[at_piece]
            overlap = np.empty(len(at_box))
            overlap[whole] = _rectangle_overlap(
                boxes[at_box[whole]], shapely.bounds(self._pieces[at_piece[whole]])
            )
            overlap[~whole] = shapely.area(
                shapely.intersection(self._pieces[at_piece[~whole]], rectangles[at_box[~whole]])
            )
            np.add.at(area, at_box, overlap)
        return _as_fraction(area, shapely.area(rectangles))


def _as_fraction(area: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float32]:
    share = np.divide(area, of, out=np.zeros_like(area), where=of > 0)
    share[share < _NOISE] = 0
    return np.clip(share, 0, 1).astype(np.float32)


def _cut(polygons: list[Polygon]) -> list[Polygon]:
    """Cut polygons by halving their boxes until each piece is small."""
    import shapely

    done: list[Polygon] = []
    waiting = polygons
    while waiting:
        polygon = waiting.pop()
        if shapely.get_num_coordinates(polygon) <= _PIECE_VERTICES:
            done.append(polygon)
            continue
        x0, y0, x1, y1 = polygon.bounds
        if x1 - x0 >= y1 - y0:
            middle = (x0 + x1) / 2
            halves = ((x0, y0, middle, y1), (middle, y0, x1, y1))
        else:
            middle = (y0 + y1) / 2
            halves = ((x0, y0, x1, middle), (x0, middle, x1, y1))
        before = shapely.get_num_coordinates(polygon)
        for half in halves:
            for part in shapely.get_parts(shapely.clip_by_rect(polygon, *half)):
                if part.geom_type != "Polygon" or part.area == 0:
                    continue
                # Vertices packed on one spot cannot be halved away: such a piece stays whole.
                small = shapely.get_num_coordinates(part) < before
                (waiting if small else done).append(part)
    return done


def _is_rectangle(pieces: NDArray[np.object_]) -> NDArray[np.bool_]:
    import shapely

    x0, y0, x1, y1 = shapely.bounds(pieces).T
    result: NDArray[np.bool_] = shapely.area(pieces) == (x1 - x0) * (y1 - y0)
    return result


def _rectangle_overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    result: NDArray[np.float64] = np.clip(width, 0, None) * np.clip(height, 0, None)
    return result
