"""Resampling on an exact lattice: area averaging, or linear interpolation of a coarser level.

Output pixel i of an axis covers [start + i·step, start + (i + 1)·step) in source pixels, a source
pixel covers a unit interval. For step >= 1 an output pixel is the average over its footprint with
fractional weights at both ends; for step < 1 it is interpolated linearly at its centre. Axes are
separable, so each is a sparse matrix.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import TileArray

__all__ = [
    "axis_span",
    "axis_weights",
    "is_whole",
    "opencv",
    "reduce_whole",
    "resample",
    "resample_from",
]

_Pair: TypeAlias = tuple[Fraction, Fraction]
_Floats: TypeAlias = NDArray[np.float32]

# Matrices of this many source pixels or fewer are kept: the columns of a grid recur in every row.
_KEPT_SIZE: Final = 4096
# Floats are four times the pixels: wide regions are reduced in parts that stay in the cache
# (0.42 ms for a 224 px tile out of 443 px; in parts of 448, 0.55 ms a tile).
_PART_PX: Final = 224
# Source pixels that are put together at once: 48 MB.
_SOURCE_PIXELS: Final = 2**24


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


def is_whole(start: _Pair, step: _Pair) -> bool:
    """True where every output pixel is made of whole source pixels."""
    return all(value.denominator == 1 for value in (*start, *step))


def axis_weights(start: float, step: float, count: int, size: int, channels: int = 1) -> Any:
    """Sparse (count·channels, size·channels) float32 matrix whose rows sum to 1.

    Args:
        start: Left edge of output pixel 0, in source pixels relative to source pixel 0.
        step: Source pixels per output pixel.
        count: Number of output pixels.
        size: Number of source pixels; footprints beyond them see the nearest one.
        channels: Interleaved values a pixel, each resampled alike.
    """
    from scipy.sparse import csr_array

    left = start + step * np.arange(count, dtype=np.float64)
    if step >= 1:
        first = np.floor(left + 1e-9).astype(np.int64)
        index = first[:, None] + np.arange(int(np.ceil(step)) + 1)
        weight = np.minimum(index + 1, (left + step)[:, None]) - np.maximum(index, left[:, None])
    else:
        centre = left + step / 2 - 0.5
        first = np.floor(centre).astype(np.int64)
        index = first[:, None] + np.arange(2)
        right = centre - first
        weight = np.stack([1 - right, right], axis=1)
    weight[weight < 1e-7] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    keep = weight > 0
    columns = np.clip(index, 0, size - 1)[keep]
    ends = np.cumsum(keep.sum(axis=1))
    values = weight[keep].astype(np.float32)
    if channels > 1:
        # Row i·channels + c holds the taps of row i, shifted by c: the same taps, interleaved.
        lengths = keep.sum(axis=1)
        begin = np.repeat(ends - lengths, channels)
        run = np.repeat(lengths, channels)
        ends = np.cumsum(run)
        taps = np.arange(ends[-1]) - np.repeat(ends - run - begin, run)
        channel = np.repeat(np.tile(np.arange(channels), count), run)
        columns, values = columns[taps] * channels + channel, values[taps]
    return csr_array(
        (values, columns.astype(np.int32), np.concatenate([[0], ends]).astype(np.int32)),
        shape=(count * channels, size * channels),
    )


_kept_weights = functools.lru_cache(maxsize=1024)(axis_weights)


def _weights(start: float, step: float, count: int, size: int, channels: int) -> Any:
    make = _kept_weights if size <= _KEPT_SIZE else axis_weights
    return make(start, step, count, size, channels)


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
    if is_whole(start, step):
        x, y = int(start[0]), int(start[1])
        right, bottom = x + size[0] * int(step[0]), y + size[1] * int(step[1])
        if x >= 0 and y >= 0 and right <= width and bottom <= height:
            region = source[y:bottom, x:right]
            if step[0] == 1 == step[1]:
                return np.ascontiguousarray(region)
            return _whole_steps(region, size)
    down = _weights(float(start[1]), float(step[1]), size[1], height, 1)
    out = np.empty((size[1], size[0], 3), np.uint8)
    for left in range(0, size[0], _PART_PX):
        count = min(_PART_PX, size[0] - left)
        at = start[0] + left * step[0]
        x0, x1 = axis_span(at, step[0], count)
        x0, x1 = min(max(x0, 0), width - 1), max(min(x1, width), 1)
        across = _weights(float(at - x0), float(step[0]), count, x1 - x0, 3)
        out[:, left : left + count] = _apply(source[:, x0:x1], across, down)
    return out


def resample_from(
    fetch: Callable[[int, int, int, int], TileArray],
    start: _Pair,
    step: _Pair,
    size: tuple[int, int],
) -> TileArray:
    """Resample from a source that is fetched in parts, so that memory stays bounded.

    Args:
        fetch: (x, y, width, height) in source pixels -> (height, width, 3) uint8.
        start, step, size: As for `resample`, in source pixels.
    """
    if 0 in size:
        return np.empty((size[1], size[0], 3), np.uint8)
    x0, x1 = axis_span(start[0], step[0], size[0])
    y0, y1 = axis_span(start[1], step[1], size[1])
    if (x1 - x0) * (y1 - y0) > _SOURCE_PIXELS and max(size) > 1:
        out = np.empty((size[1], size[0], 3), np.uint8)
        if size[0] * step[0] >= size[1] * step[1] and size[0] > 1:
            half = size[0] // 2
            there = (start[0] + half * step[0], start[1])
            out[:, :half] = resample_from(fetch, start, step, (half, size[1]))
            out[:, half:] = resample_from(fetch, there, step, (size[0] - half, size[1]))
        else:
            half = size[1] // 2
            there = (start[0], start[1] + half * step[1])
            out[:half] = resample_from(fetch, start, step, (size[0], half))
            out[half:] = resample_from(fetch, there, step, (size[0], size[1] - half))
        return out
    source = fetch(x0, y0, x1 - x0, y1 - y0)
    return resample(source, (start[0] - x0, start[1] - y0), step, size)


@functools.cache
def opencv() -> Any:
    """OpenCV on one thread: tiles are read by threads of our own, one a core."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def reduce_whole(
    block: TileArray, factor: tuple[int, int], rows: tuple[int, int], out: TileArray
) -> TileArray:
    """Area average over whole pixels of one block.

    Args:
        block: (h, w, 3) uint8; what is left over at its right and bottom edge is not read.
        factor: Pixels per output pixel (x, y).
        rows: First and one past the last output row that is wanted.
        out: (h', w', 3) uint8, C-contiguous, with room for `rows`.

    Returns:
        View of `out`, or `out` itself where all of it is filled; rows outside `rows` are undefined.
    """
    columns = block.shape[1] // factor[0]
    top, bottom = rows
    source = block[top * factor[1] : bottom * factor[1], : columns * factor[0]]
    cv2 = opencv()
    size = (columns, bottom - top)
    if columns == out.shape[1]:
        cv2.resize(source, size, dst=out[top:bottom], interpolation=cv2.INTER_AREA)
        return out
    out[top:bottom, :columns] = cv2.resize(source, size, interpolation=cv2.INTER_AREA)
    return out


def _whole_steps(source: TileArray, size: tuple[int, int]) -> TileArray:
    cv2 = opencv()
    return np.asarray(cv2.resize(source, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _apply(source: TileArray, across: Any, down: Any) -> TileArray:
    """Sum over rows, transpose, sum over columns (interleaved channels), transpose back."""
    cv2 = opencv()
    height, width = source.shape[:2]
    values = _workspace("values", (height, width * 3))
    values[:] = source.reshape(height, width * 3)
    rows: _Floats = down @ values
    columns = _workspace("columns", (width * 3, len(rows)))
    cv2.transpose(rows, dst=columns)
    summed: _Floats = across @ columns
    result = _workspace("result", (len(rows), len(summed)))
    cv2.transpose(summed, dst=result)
    pixels = cv2.convertScaleAbs(result)
    return np.asarray(pixels, np.uint8).reshape(len(rows), -1, 3)


_thread = threading.local()


def _workspace(name: str, shape: tuple[int, int]) -> _Floats:
    """A float array that the thread uses again: fresh pages cost more than the sums do."""
    need = shape[0] * shape[1]
    buffer: _Floats | None = getattr(_thread, name, None)
    if buffer is None or buffer.size < need:
        buffer = np.empty(need, np.float32)
        setattr(_thread, name, buffer)
    return buffer[:need].reshape(shape)
