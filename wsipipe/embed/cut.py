"""Blocks cut into tiles: native pixels, and reductions by a whole number of pixels.

Where every output pixel lies within one block, a block is decoded, reduced while it is in the cache
(22 µs for 256 px by 2; 30 µs out of an assembled strip that is not) and its parts are copied
straight into the tiles above it. Where a block and a tile coincide nothing is copied at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ReadError
from wsipipe.slide.memory import empty_pixels
from wsipipe.slide.resample import reduce_whole
from wsipipe.slide.shared import BUSY
from wsipipe.slide.slide import Slide
from wsipipe.tiling import TileGrid, TileJob
from wsipipe.types import TileArray

__all__ = ["BAD", "GOOD", "read_cut"]

GOOD: Final = 0
BAD: Final = 1


def read_cut(
    slide: Slide,
    grid: TileGrid,
    job: TileJob,
    factor: tuple[int, int],
    out: TileArray,
    status: NDArray[np.uint8],
) -> None:
    """Read the tiles of a job.

    Args:
        factor: That of the job's plan.
        out: (n, tile_px, tile_px, 3) uint8, filled.
        status: (n,) uint8, set to 1 where a block beneath the tile cannot be decoded.
    """
    level = grid.read.level
    full_w, full_h = slide.block_sizes[level]
    block_w, block_h = full_w // factor[0], full_h // factor[1]
    scratch = empty_pixels((full_h, full_w, 3))
    reduced = np.empty((block_h, block_w, 3), np.uint8) if factor != (1, 1) else None
    coincide = grid.tile_px == block_w == block_h
    columns, share, background = job.plan.block_columns, job.plan.shared.get, slide.background

    def cut(block: int, shared: bool, parts: list[_Part], *, wait: bool) -> bool:
        """Bring the block to its tiles; false if another job is just decoding it."""
        row, col = divmod(block, columns)
        place, ty, tx, by, bx, height, width = parts[0]
        whole = coincide and len(parts) == 1 and height == width == block_w
        target = out[place] if whole else None
        try:
            if shared:
                found = share(
                    block, job.index, lambda: slide.read_block(level, col, row), wait=wait
                )
                if found is BUSY:
                    return False
                pixels = found
            elif target is None or reduced is not None:
                pixels = slide.read_block(level, col, row, scratch)
            else:
                pixels = slide.read_block(level, col, row, target)
        except ReadError:
            status[[part[0] for part in parts]] = BAD
            pixels = None
        if pixels is None:
            for place, ty, tx, _, _, height, width in parts:
                out[place, ty : ty + height, tx : tx + width] = background
            return True
        if reduced is not None:
            # A shared block comes again for the tiles below: only the rows needed now.
            top, bottom = min(part[3] for part in parts), max(part[3] + part[5] for part in parts)
            pixels = reduce_whole(
                pixels, factor, (top, bottom), reduced if target is None else target
            )
        if pixels is not target:
            for place, ty, tx, by, bx, height, width in parts:
                out[place, ty : ty + height, tx : tx + width] = pixels[
                    by : by + height, bx : bx + width
                ]
        return True

    blocks = _pairs(grid, job, factor, (block_w, block_h)).blocks()
    put_off = [each for each in blocks if not cut(*each, wait=False)]
    for each in put_off:
        cut(*each, wait=True)


_Part: TypeAlias = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """(tile, block) pairs of a job, sorted by block; all in output pixels.

    `parts` is (P, 7): place of the tile in the job, y and x in the tile, y and x in the block,
    height, width.
    """

    block: NDArray[np.int64]
    shared: NDArray[np.bool_]
    parts: NDArray[np.int64]

    def blocks(self) -> Iterator[tuple[int, bool, list[_Part]]]:
        """Block id, whether other jobs need it too, and its parts."""
        starts = np.flatnonzero(np.diff(self.block, prepend=-1)).tolist()
        parts = list(map(tuple, self.parts.tolist()))
        ids, shared = self.block.tolist(), self.shared.tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield ids[start], shared[start], parts[start:end]


def _pairs(
    grid: TileGrid, job: TileJob, factor: tuple[int, int], block_size: tuple[int, int]
) -> _Pairs:
    plan, px = job.plan, grid.tile_px
    block_w, block_h = block_size
    col, row = grid.col_row[job.rows].T.astype(np.int64)
    x = (int(plan.x.start[0]) + col * int(plan.x.start[1])) // factor[0]
    y = (int(plan.y.start[0]) + row * int(plan.y.start[1])) // factor[1]
    place = np.arange(len(col))
    found, parts = [], []
    for down in range(int((plan.y.last - plan.y.first)[row].max()) + 1):
        for across in range(int((plan.x.last - plan.x.first)[col].max()) + 1):
            at_col, at_row = plan.x.first[col] + across, plan.y.first[row] + down
            inside = (at_col <= plan.x.last[col]) & (at_row <= plan.y.last[row])
            left, top = at_col * block_w, at_row * block_h
            x0, y0 = np.maximum(x, left), np.maximum(y, top)
            width = np.minimum(x + px, left + block_w) - x0
            height = np.minimum(y + px, top + block_h) - y0
            columns = (place, y0 - y, x0 - x, y0 - top, x0 - left, height, width)
            found.append((at_row * plan.block_columns + at_col)[inside])
            parts.append(np.stack(columns, axis=1)[inside])
    block = np.concatenate(found)
    order = np.argsort(block, kind="stable")
    block = block[order]
    return _Pairs(block, plan.shared.among(block), np.concatenate(parts)[order])
