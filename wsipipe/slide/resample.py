"""Resampling on an exact lattice: area averaging, or linear interpolation of a coarser level.

Output pixel i of an axis covers [start + i·step, start + (i + 1)·step) in source pixels, a source
pixel covers a unit interval. For step >= 1 an output pixel is the average over its footprint with
fractional weights at both ends; for step < 1 it is interpolated linearly at its centre. Axes are
separable, so each is a sparse matrix.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import TileArray

__all__ = ["axis_span", "axis_weights", "resample"]

_Pair: TypeAlias = tuple[Fraction, Fraction]


def axis_span(start: Fraction, step: Fraction, count: int) -> tuple[int, int]:
    """First and one past the last source pixel that `count` output pixels need."""
    if step >= 1:
        low, high = start, start + count * step
        return low.numerator // low.denominator, -(-high.numerator // high.denominator)
    half = Fraction(1, 2)
    low, high = start + step / 2 - half, start + (count - half) * step - half
    return (
        low.numerator // low.denominator,
        high.numerator // high.denominator + 2,
    )


def axis_weights(start: float, step: float, count: int, size: int) -> Any:
    """Sparse (count, size) float32 matrix whose rows sum to 1.

    Args:
        start: Left edge of output pixel 0, in source pixels relative to source pixel 0.
        step: Source pixels per output pixel.
        count: Number of output pixels.
        size: Number of source pixels; footprints beyond them see the nearest one.
    """
    from scipy.sparse import csr_array

    left = start + step * np.arange(count, dtype=np.float64)
    if step >= 1:
        first = np.floor(left + 1e-9).astype(np.int64)
        taps = int(np.ceil(step)) + 1
        index = first[:, None] + np.arange(taps)
        weight = np.minimum(index + 1, (left + step)[:, None]) - np.maximum(index, left[:, None])
        weight = np.clip(weight, 0, None) / step
    else:
        centre = left + step / 2 - 0.5
        first = np.floor(centre).astype(np.int64)
        index = first[:, None] + np.arange(2)
        right = centre - first
        weight = np.stack([1 - right, right], axis=1)
    weight[weight < 1e-7] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    columns = np.clip(index, 0, size - 1)
    row_ends = np.arange(0, columns.size + 1, columns.shape[1])
    matrix = csr_array(
        (weight.astype(np.float32).ravel(), columns.ravel(), row_ends), shape=(count, size)
    )
    matrix.eliminate_zeros()
    return matrix


def resample(source: TileArray, start: _Pair, step: _Pair, size: tuple[int, int]) -> TileArray:
    """Resample a source region onto a lattice.

    Args:
        source: (h, w, 3) uint8.
        start: Left and top edge of output pixel (0, 0), in pixels of `source`, exact (x, y).
        step: Source pixels per output pixel, exact (x, y).
        size: Output (width, height).

    Returns:
        (height, width, 3) uint8, rounded to nearest.
    """
    height, width = source.shape[:2]
    if step[0] == 1 == step[1] and start[0].denominator == start[1].denominator == 1:
        x, y = int(start[0]), int(start[1])
        return np.ascontiguousarray(source[y : y + size[1], x : x + size[0]])
    if all(value.denominator == 1 for value in (*start, *step)):
        x, y = int(start[0]), int(start[1])
        right, bottom = x + size[0] * int(step[0]), y + size[1] * int(step[1])
        if x >= 0 and y >= 0 and right <= width and bottom <= height:
            return _whole_steps(source[y:bottom, x:right], size)
    across = axis_weights(float(start[0]), float(step[0]), size[0], width)
    down = axis_weights(float(start[1]), float(step[1]), size[1], height)
    return _apply(source, across, down)


def _whole_steps(source: TileArray, size: tuple[int, int]) -> TileArray:
    import cv2

    return np.asarray(cv2.resize(source, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _apply(source: TileArray, across: Any, down: Any) -> TileArray:
    """Rows first (contiguous sums), then columns on the transposed image."""
    height, width = source.shape[:2]
    rows: NDArray[np.float32] = down @ source.reshape(height, width * 3).astype(np.float32)
    count = rows.shape[0]
    columns = np.ascontiguousarray(rows.reshape(count, width, 3).transpose(1, 0, 2))
    summed = across @ columns.reshape(width, count * 3)
    result = summed.reshape(across.shape[0], count, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(result + np.float32(0.5), 0, 255).astype(np.uint8))
