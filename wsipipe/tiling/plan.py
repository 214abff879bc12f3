"""The read plan: which consecutive tiles are read together, and which blocks lie beneath them.

A block that several tiles of a job touch is decoded once. A block that several jobs touch (a row
of blocks lies under two rows of tiles) is handed from one job to the next through `SharedBlocks`,
so that small jobs cost no second decoding. No pixels are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.slide.resample import axis_span
from wsipipe.slide.shared import SharedBlocks
from wsipipe.slide.slide import Slide
from wsipipe.tiling.grid import TileGrid
from wsipipe.types import Rows

__all__ = ["Beneath", "JobPlan", "TileJob", "plan_jobs"]

_MAX_TILES: Final = 256
_SHARED_BYTES: Final = 128 * 1024 * 1024
_Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Beneath:
    """Which blocks lie beneath tiles, per column and per row of the grid.

    Attributes:
        start: Left (top) edge of tile column (row) i in pixels of the level, exact, as
            (first, step): first + i·step.
        first, last: (n,) first and last block column (row) of each grid column (row).
    """

    start: tuple[Fraction, Fraction]
    first: _Ints
    last: _Ints


@dataclass(frozen=True, eq=False)
class JobPlan:
    """What the jobs of one grid have in common.

    Attributes:
        x, y: Blocks beneath each grid column and row.
        block_columns: Blocks in a row of the level; block (col, row) has the id
            row·block_columns + col.
        step: Level pixels per output pixel (x, y), exact.
        factor: `step` where every output pixel lies within one block, (1, 1) for native reads;
            None where some do not, and blocks must be put together.
        shared: Blocks handed from job to job.
    """

    x: Beneath
    y: Beneath
    block_columns: int
    step: tuple[Fraction, Fraction]
    factor: tuple[int, int] | None
    shared: SharedBlocks


@dataclass(frozen=True, eq=False)
class TileJob:
    """Consecutive tiles of a grid that are read together.

    Attributes:
        index: Place of the job in the plan.
        rows: (n,) int64, indices into the grid, ascending.
        plan: What the jobs of the grid have in common.
    """

    index: int
    rows: Rows
    plan: JobPlan


def plan_jobs(slide: Slide, grid: TileGrid, *, max_tiles: int = _MAX_TILES) -> list[TileJob]:
    """Cut a grid into jobs of consecutive rows, in order.

    Jobs may be read in any order and by any thread; read in about this order, each block is
    decoded once.

    Args:
        max_tiles: Tiles in a job, at most.
    """
    if len(grid) == 0:
        return []
    level = slide.levels[grid.read.level]
    block_w, block_h = slide.block_sizes[grid.read.level]
    step_x, step_y = (
        scale / ratio for scale, ratio in zip(grid.read.scale, level.downsample, strict=True)
    )
    first_x, first_y = (
        origin / ratio for origin, ratio in zip(grid.read.origin, level.downsample, strict=True)
    )
    cols, rows = int(grid.col_row[:, 0].max()) + 1, int(grid.col_row[:, 1].max()) + 1
    stride = grid.read.stride_px
    x = _beneath(first_x, step_x, stride, grid.tile_px, cols, block_w, level.width)
    y = _beneath(first_y, step_y, stride, grid.tile_px, rows, block_h, level.height)
    columns = -(-level.width // block_w)
    shared = SharedBlocks(*_shared(grid, x, y, columns, max_tiles), max_bytes=_SHARED_BYTES)
    factor: tuple[int, int] | None = (1, 1)
    if grid.read.mode != "native":
        reach_x, reach_y = (cols - 1) * stride + grid.tile_px, (rows - 1) * stride + grid.tile_px
        factor_x = _whole_factor(first_x, step_x, reach_x, block_w, level.width)
        factor_y = _whole_factor(first_y, step_y, reach_y, block_h, level.height)
        factor = (factor_x, factor_y) if factor_x and factor_y else None
    plan = JobPlan(x, y, columns, (step_x, step_y), factor, shared)
    return [
        TileJob(index, np.arange(start, min(start + max_tiles, len(grid)), dtype=np.int64), plan)
        for index, start in enumerate(range(0, len(grid), max_tiles))
    ]


def _beneath(
    first: Fraction, step: Fraction, stride: int, tile_px: int, count: int, block: int, size: int
) -> Beneath:
    advance = stride * step
    low = np.empty(count, np.int64)
    high = np.empty(count, np.int64)
    for index in range(count):
        low[index], high[index] = axis_span(first + index * advance, step, tile_px)
    # A footprint may reach beyond the last pixel of a level that was rounded down.
    low, high = np.clip(low, 0, size - 1), np.clip(high - 1, 0, size - 1)
    return Beneath((first, advance), low // block, high // block)


def _whole_factor(first: Fraction, step: Fraction, reach_px: int, block: int, size: int) -> int:
    """Pixels of an axis per output pixel; 0 where an output pixel straddles blocks or the edge."""
    if step.denominator != 1 or first.denominator != 1:
        return 0
    factor = int(step)
    aligned = int(first) % factor == 0 and block % factor == 0
    return factor if aligned and first >= 0 and first + reach_px * factor <= size else 0


def _shared(
    grid: TileGrid, x: Beneath, y: Beneath, columns: int, max_tiles: int
) -> tuple[_Ints, _Ints, _Ints]:
    """Ids of blocks that more than one job needs, how many jobs do, and the last of them."""
    col, row = grid.col_row[:, 0], grid.col_row[:, 1]
    job = np.arange(len(grid), dtype=np.int64) // max_tiles
    jobs = int(job[-1]) + 1
    keys = []
    for down in range(int((y.last - y.first).max()) + 1):
        for across in range(int((x.last - x.first).max()) + 1):
            at_col, at_row = x.first[col] + across, y.first[row] + down
            inside = (at_col <= x.last[col]) & (at_row <= y.last[row])
            keys.append(((at_row * columns + at_col) * jobs + job)[inside])
    each = np.unique(np.concatenate(keys))
    block, its_job = each // jobs, each % jobs
    ids, begin, uses = np.unique(block, return_index=True, return_counts=True)
    several = uses > 1
    last = its_job[begin + uses - 1]
    return ids[several], uses[several], last[several]
