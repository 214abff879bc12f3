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
# Boxes at a time: bounds the memory of their crossings with the polygons' edges.
_CHUNK_BOXES = 20_000


class SummedArea:
    """Coverage by the pixels of a mask."""

    def __init__(
        self,
        mask: BoolArray,
        downsample: tuple[Fraction, Fraction],
        dimensions: tuple[int, int] | None = None,
    ) -> None:
        height, width = mask.shape
        if mask.size >= 2**31:
            raise ValueError("a mask of more than 2^31 pixels is not a thumbnail")
        # int32 holds any count below 2^31 and halves the table.
        self._table = np.zeros((height + 1, width + 1), dtype=np.int32)
        np.cumsum(mask, axis=0, dtype=np.int32, out=self._table[1:, 1:])
        np.cumsum(self._table[1:, 1:], axis=1, out=self._table[1:, 1:])
        self._downsample = (float(downsample[0]), float(downsample[1]))
        # Where the slide ends, in mask pixels: within the last column and row.
        self._end = (float(width), float(height))
        if dimensions is not None:
            ends = (float(d / s) for d, s in zip(dimensions, downsample, strict=True))
            self._end = (min(width, next(ends)), min(height, next(ends)))

    @property
    def area0(self) -> float:
        """Area of all tissue in level-0 pixels."""
        x, y = (np.array([end]) for end in self._end)
        return float(self._integral(x, y)[0]) * self._downsample[0] * self._downsample[1]

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
        x = np.clip(x, 0, self._end[0])
        y = np.clip(y, 0, self._end[1])
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

    Green's theorem, box by box. With rings oriented so that the inside lies on their left,

        area(P ∩ box) = W · L + sum over edges of the integral of (x - x0) dy within the box,

    where W is the box's width and L the length of its right side that lies inside P (it stands for
    all edges further right). Only edges that meet the box and those that cross its right side's
    line are looked at, so that 500,000 vertices cost little more than 500.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        import shapely

        starts, ends = [np.zeros((0, 2))], [np.zeros((0, 2))]
        for polygon in polygons:
            for index, ring in enumerate(shapely.get_rings(polygon)):
                points = shapely.get_coordinates(ring)
                if shapely.is_ccw(ring) != (index == 0):
                    points = points[::-1]
                starts.append(points[:-1])
                ends.append(points[1:])
        self._start, self._end = np.concatenate(starts), np.concatenate(ends)
        self._tree = shapely.STRtree(shapely.linestrings(np.stack([self._start, self._end], 1)))

    def fractions(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N, 4) boxes x0, y0, x1, y1 in level-0 pixels -> (N,) fractions."""
        chunks = [boxes[at : at + _CHUNK_BOXES] for at in range(0, len(boxes), _CHUNK_BOXES)]
        area = np.concatenate([self._area(chunk) for chunk in chunks])
        x0, y0, x1, y1 = boxes.T
        return _as_fraction(area, (x1 - x0) * (y1 - y0))

    def _area(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        import shapely

        x0, _, x1, _ = boxes.T
        area: NDArray[np.float64] = (x1 - x0) * self._right_side(boxes)
        at_box, at_edge = self._tree.query(shapely.box(*boxes.T))
        inner = self._under_edges(boxes[at_box], self._start[at_edge], self._end[at_edge])
        area += np.bincount(at_box, weights=inner, minlength=len(boxes))
        return area

    def _right_side(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) length of each box's right side that lies inside the polygons."""
        lines, line_of_box = np.unique(boxes[:, 2], return_inverse=True)
        (xa, ya), (xb, yb) = self._start.T, self._end.T
        first = np.searchsorted(lines, np.minimum(xa, xb), side="left")
        count = np.searchsorted(lines, np.maximum(xa, xb), side="left") - first
        edge = np.repeat(np.arange(len(count)), count)
        line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        along = (lines[line] - xa[edge]) / (xb[edge] - xa[edge])
        y = ya[edge] + along * (yb[edge] - ya[edge])
        order = np.lexsort((y, line))
        line, y = line[order], y[order]
        # Crossings of a closed ring come in pairs: odd gaps lie inside.
        begin, end = y[0::2], y[1::2]
        before = np.concatenate([[0.0], np.cumsum(end - begin)])
        # One sorted key for all lines; a search that rounding moves by one gives the same length.
        span = 4 * (1 + np.abs(boxes[:, [1, 3]]).max() + (np.abs(y).max() if len(y) else 0))
        key = line[0::2] * span + begin

        def below(limit: NDArray[np.float64]) -> NDArray[np.float64]:
            base = line_of_box * span
            at = np.searchsorted(key, base + limit, side="right")
            previous = np.maximum(at - 1, 0)
            if len(key) == 0:
                return np.zeros(len(limit))
            own = (at > 0) & (line[0::2][previous] == line_of_box)
            over = np.where(own, np.clip(end[previous] - limit, 0, None), 0)
            result: NDArray[np.float64] = before[at] - over
            return result

        return below(boxes[:, 3]) - below(boxes[:, 1])

    @staticmethod
    def _under_edges(
        boxes: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(M,) integral of (x - x0) dy over the part of each edge that lies in its box."""
        x0, y0, x1, y1 = boxes.T
        (xa, ya), (dx, dy) = start.T, (end - start).T
        # The edge at t in [0, 1] lies within the box's columns and rows for t in [low, high].
        low, high = np.zeros(len(boxes)), np.ones(len(boxes))
        for origin, step, lower, upper in ((xa, dx, x0, x1), (ya, dy, y0, y1)):
            still = step == 0
            with np.errstate(divide="ignore", invalid="ignore"):
                ta, tb = (lower - origin) / step, (upper - origin) / step
            outside = still & ((origin < lower) | (origin > upper))
            low = np.maximum(low, np.where(still, 0, np.minimum(ta, tb)))
            high = np.minimum(high, np.where(still, 1, np.maximum(ta, tb)))
            high = np.where(outside, low, high)
        share = np.clip(high - low, 0, None)
        middle = xa + dx * (low + high) / 2
        result: NDArray[np.float64] = np.where(share > 0, (middle - x0) * dy * share, 0)
        return result


def _as_fraction(area: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float32]:
    share = np.divide(area, of, out=np.zeros_like(area), where=of > 0)
    share[share < _NOISE] = 0
    return np.clip(share, 0, 1).astype(np.float32)
