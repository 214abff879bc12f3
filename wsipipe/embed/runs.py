"""Resampled tiles: the blocks beneath a run of neighbouring tiles are put together and reduced.

For steps that are no whole number of pixels, and for interpolation of a coarser slide; the rest is
cut out of blocks one by one.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.cut import BAD
from wsipipe.errors import ReadError
from wsipipe.slide.blocks import fill_region, repeat_edge
from wsipipe.slide.resample import resample_from
from wsipipe.slide.shared import BUSY, Busy
from wsipipe.slide.slide import Slide
from wsipipe.tiling import TileGrid, TileJob
from wsipipe.types import TileArray

__all__ = ["read_runs"]

# Width of a run of tiles that is reduced together: enough to amortise a call, and narrow enough
# for the cache.
_RUN_PX: Final = 1024
_RUN_SOURCE_PX: Final = 4096
# What a thread keeps for the next run; a larger source is rare and made anew.
_KEPT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring tiles of one grid row, and the blocks beneath (inclusive ranges)."""

    place: int
    col: int
    row: int
    count: int
    block_cols: tuple[int, int]
    block_rows: tuple[int, int]


def read_runs(
    slide: Slide, grid: TileGrid, job: TileJob, out: TileArray, status: NDArray[np.uint8]
) -> None:
    """Read the tiles of a job, whatever its step (see `read_cut` for the arguments)."""
    runs = _runs(grid, job)
    columns = job.plan.block_columns
    needed = Counter(
        row * columns + col
        for run in runs
        for row in range(run.block_rows[0], run.block_rows[1] + 1)
        for col in range(run.block_cols[0], run.block_cols[1] + 1)
    )
    blocks = _JobBlocks(slide, grid, job, needed)
    for run in runs:
        strip = _reduce_run(slide, grid, job, run, blocks)
        px, stride = grid.tile_px, grid.read.stride_px
        for index in range(run.count):
            out[run.place + index] = strip[:, index * stride : index * stride + px]
    if blocks.bad:
        _mark_bad(grid, job, blocks.bad, status)


def _runs(grid: TileGrid, job: TileJob) -> list[_Run]:
    plan = job.plan
    source_px = grid.tile_px * max(1, int(plan.step[0]))
    longest = max(1, min(_RUN_PX // grid.tile_px, _RUN_SOURCE_PX // source_px))
    runs: list[_Run] = []
    place = 0
    col_row = grid.col_row[job.rows].tolist()
    while place < len(col_row):
        col, row = col_row[place]
        count = 1
        while (
            count < longest
            and place + count < len(col_row)
            and col_row[place + count] == [col + count, row]
        ):
            count += 1
        block_cols = (int(plan.x.first[col]), int(plan.x.last[col + count - 1]))
        block_rows = (int(plan.y.first[row]), int(plan.y.last[row]))
        runs.append(_Run(place, col, row, count, block_cols, block_rows))
        place += count
    return runs


class _JobBlocks:
    """Blocks of one job: each decoded once, kept until its last run, bad ones remembered."""

    def __init__(self, slide: Slide, grid: TileGrid, job: TileJob, needed: Counter[int]) -> None:
        self._slide, self._level, self._job = slide, grid.read.level, job
        self._left = needed
        self._held: dict[int, TileArray | None] = {}
        ids = np.fromiter(needed, np.int64, len(needed))
        self._shared = set(ids[job.plan.shared.among(ids)].tolist())
        self._put_off: set[int] = set()
        self.bad: set[int] = set()

    def __call__(self, col: int, row: int) -> TileArray | Busy | None:
        """Pixels of a block; BUSY, once, while another job is decoding it."""
        block = row * self._job.plan.block_columns + col
        if block not in self._held:
            pixels = self._read(block, col, row)
            if pixels is BUSY:
                self._put_off.add(block)
                return BUSY
            self._held[block] = pixels
        self._left[block] -= 1
        return self._held[block] if self._left[block] > 0 else self._held.pop(block)

    def _read(self, block: int, col: int, row: int) -> TileArray | Busy | None:
        slide, level, job = self._slide, self._level, self._job
        try:
            if block not in self._shared:
                return slide.read_block(level, col, row)
            wait = block in self._put_off
            return job.plan.shared.get(
                block, job.index, lambda: slide.read_block(level, col, row), wait=wait
            )
        except ReadError:
            self.bad.add(block)
            return None


def _reduce_run(
    slide: Slide, grid: TileGrid, job: TileJob, run: _Run, blocks: _JobBlocks
) -> TileArray:
    plan = job.plan
    level = slide.levels[grid.read.level]
    width = (run.count - 1) * grid.read.stride_px + grid.tile_px
    x = plan.x.start[0] + run.col * plan.x.start[1]
    y = plan.y.start[0] + run.row * plan.y.start[1]
    size = (level.width, level.height)

    def fetch(left: int, top: int, across: int, down: int) -> TileArray:
        source = _source(down, across)
        block = slide.block_sizes[level.index]
        fill_region(source, (left, top), blocks, block, size, slide.background)
        # A tile never leaves the slide; a level that was rounded down may end before it does.
        repeat_edge(source, (left, top), size)
        return source

    return resample_from(fetch, (x, y), plan.step, (width, grid.tile_px))


def _mark_bad(grid: TileGrid, job: TileJob, bad: set[int], status: NDArray[np.uint8]) -> None:
    plan = job.plan
    col, row = grid.col_row[job.rows].T
    for block in bad:
        at_row, at_col = divmod(block, plan.block_columns)
        touched = (
            (plan.x.first[col] <= at_col)
            & (at_col <= plan.x.last[col])
            & (plan.y.first[row] <= at_row)
            & (at_row <= plan.y.last[row])
        )
        status[touched] = BAD


_thread = threading.local()


def _source(height: int, width: int) -> TileArray:
    """(height, width, 3) uint8 that the thread uses again: fresh pages cost a tenth of decoding."""
    need = height * width * 3
    if need > _KEPT_BYTES:
        return np.empty((height, width, 3), np.uint8)
    buffer: TileArray | None = getattr(_thread, "source", None)
    if buffer is None or buffer.size < need:
        buffer = _thread.source = np.empty(need, np.uint8)
    return buffer[:need].reshape(height, width, 3)
