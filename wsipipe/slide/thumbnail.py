"""A whole slide, small: each block is decoded once and added where it belongs.

A block lies under output pixels that it shares with its neighbours, so sums are kept, band by
band, instead of reading with a margin. Memory is a cell of pixels and one band of sums, whatever
the size of the slide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np

from wsipipe.slide.resample import is_whole, opencv
from wsipipe.types import Level, Rgb, TileArray

__all__ = ["ThumbnailImage", "reduce_level"]

_CELL_PX: Final = 1024


@dataclass(frozen=True)
class ThumbnailImage:
    """A whole slide, small.

    Attributes:
        pixels: (h, w, 3) uint8. Pixel (i, j) covers level-0 x from i·downsample[0], y likewise;
            the last row and column may reach beyond the slide and average what is inside.
        downsample: Level-0 pixels per thumbnail pixel (x, y), exact.
        level: Level it was made of.
        bad_blocks: Blocks of that level that no reader decodes; background stands for them.
    """

    pixels: TileArray
    downsample: tuple[Fraction, Fraction]
    level: int = 0
    bad_blocks: int = 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.pixels, dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `pixels`."""
        return self.pixels.shape


def reduce_level(
    level: Level,
    block_size: tuple[int, int],
    step: tuple[Fraction, Fraction],
    size: tuple[int, int],
    read: Callable[[int, int, int, int], TileArray | None],
    background: Rgb,
) -> TileArray:
    """Area-average a whole level.

    Args:
        block_size: (width, height) of the level's blocks; cells are whole blocks.
        step: Pixels of the level per output pixel (x, y), exact, >= 1.
        size: Output (width, height).
        read: (x, y, width, height) in pixels of the level -> (h, w, 3) uint8, or None where
            nothing was scanned.
        background: Colour of what was not scanned.

    Returns:
        (height, width, 3) uint8; output pixels that the level covers in part average that part.
    """
    cell_w = max(1, _CELL_PX // block_size[0]) * block_size[0]
    high = min(_CELL_PX, _CELL_PX * _CELL_PX // cell_w)
    cell_h = max(1, high // block_size[1]) * block_size[1]
    out = np.empty((size[1], size[0], 3), np.uint8)
    carried: np.ndarray | None = None  # sums of a row that the next band completes
    for top in range(0, level.height, cell_h):
        bottom = min(top + cell_h, level.height)
        first, rows = _touched(top, bottom, step[1], size[1])
        sums = np.zeros((rows, size[0], 3), np.float32)
        down = _part_weights(first, rows, step[1], top, bottom, level.height)
        for left in range(0, level.width, cell_w):
            right = min(left + cell_w, level.width)
            cell = read(left, top, right - left, bottom - top)
            # A block may be as wide as the level; what is summed at once is not.
            for x in range(left, right, _CELL_PX):
                end = min(x + _CELL_PX, right)
                start, columns = _touched(x, end, step[0], size[0])
                target = sums[:, start : start + columns]
                if cell is None:
                    across = _part_weights(start, columns, step[0], x, end, level.width)
                    share = down.sum(axis=1)[:, None] * across.sum(axis=1)
                    target += share[..., None] * np.asarray(background, np.float32)
                    continue
                part = cell[:, x - left : end - left]
                target += _reduce_cell(
                    part, (x, top), (start, first), step, (columns, rows), down, level.width
                )
        if carried is not None:
            sums[0] += carried
        done = rows
        if bottom < level.height and (first + rows) * step[1] > bottom:
            done, carried = rows - 1, sums[-1]
        else:
            carried = None
        out[first : first + done] = np.clip(sums[:done] + np.float32(0.5), 0, 255)
        if bottom == level.height and first + rows < size[1]:
            out[first + rows :] = out[first + rows - 1]
    return out


def _reduce_cell(
    pixels: TileArray,
    corner: tuple[int, int],
    place: tuple[int, int],
    step: tuple[Fraction, Fraction],
    size: tuple[int, int],
    down: Any,
    width: int,
) -> Any:
    """What a cell adds to the output pixels it touches, (rows, columns, 3) float32."""
    offset = (place[0] * step[0] - corner[0], place[1] * step[1] - corner[1])
    height, across = pixels.shape[:2]
    if (
        is_whole(offset, step)
        and offset[0] == 0 == offset[1]
        and across == size[0] * step[0]
        and height == size[1] * step[1]
    ):
        cv2 = opencv()
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    rows = down @ pixels.reshape(height, across * 3).astype(np.float32)
    weights = _part_weights(place[0], size[0], step[0], corner[0], corner[0] + across, width)
    turned = np.ascontiguousarray(rows.reshape(size[1], across, 3).transpose(1, 0, 2))
    summed = weights @ turned.reshape(across, size[1] * 3)
    return summed.reshape(size[0], size[1], 3).transpose(1, 0, 2)


def _touched(low: int, high: int, step: Fraction, limit: int) -> tuple[int, int]:
    """First output pixel over [low, high) and how many there are."""
    first = int(low // step)
    end = min(int(-(-high // step)), limit)
    return min(first, limit - 1), max(end - first, 1)


def _part_weights(first: int, count: int, step: Fraction, low: int, high: int, size: int) -> Any:
    """Sparse (count, high - low): shares of source pixels low..high in `count` output pixels.

    Shares are of the part of an output pixel's footprint that lies within the level.
    """
    from scipy.sparse import csr_array

    left = (first + np.arange(count)) * float(step)
    right = np.minimum(left + float(step), size)
    begin = np.maximum(np.floor(left + 1e-9).astype(np.int64), low)
    index = begin[:, None] + np.arange(min(int(-(-step // 1)), high - low) + 1)
    weight = np.minimum(index + 1, right[:, None]) - np.maximum(index, left[:, None])
    weight = np.where((index < high) & (weight > 1e-7), weight, 0)
    weight /= np.maximum(right - left, 1e-9)[:, None]
    keep = weight > 0
    ends = np.concatenate([[0], np.cumsum(keep.sum(axis=1))])
    return csr_array(
        (weight[keep].astype(np.float32), (index - low)[keep], ends), shape=(count, high - low)
    )
