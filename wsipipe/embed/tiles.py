"""Tiles out of a slide: jobs of consecutive tiles, read by threads, handed on in order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, ReadError
from wsipipe.slide.blocks import fill_region, repeat_edge
from wsipipe.slide.resample import resample_from
from wsipipe.slide.slide import Slide
from wsipipe.tiling import TileGrid, TileJob, plan_jobs
from wsipipe.types import Rows, TileArray

__all__ = ["BAD", "GOOD", "TileJob", "iter_tiles", "plan_jobs", "read_job"]

GOOD: Final = 0
BAD: Final = 1
# Width of a run of tiles that is reduced together: enough to amortise a call, and narrow enough
# for the cache.
_RUN_PX: Final = 1024
_RUN_SOURCE_PX: Final = 4096
_Status: TypeAlias = NDArray[np.uint8]


def read_job(
    slide: Slide, grid: TileGrid, job: TileJob, out: TileArray | None = None
) -> tuple[TileArray, _Status]:
    """Read the tiles of a job. Safe from many threads at once.

    Args:
        out: (n, tile_px, tile_px, 3) uint8, C-contiguous, to fill; made if not given.

    Returns:
        The tiles, and (n,) uint8: 0 good, 1 the tile could not be decoded by any reader (its
        pixels are background where they are missing).
    """
    count = len(job.rows)
    if out is None:
        out = np.empty((count, grid.tile_px, grid.tile_px, 3), np.uint8)
    status = np.zeros(count, np.uint8)
    if grid.read.mode == "native":
        _read_native(slide, grid, job, out, status)
    else:
        _read_scaled(slide, grid, job, out, status)
    return out, status


# -- native: blocks are cut into tiles ----------------------------------------------------------


def _read_native(
    slide: Slide, grid: TileGrid, job: TileJob, out: TileArray, status: _Status
) -> None:
    """Decode each block once and copy its parts to the tiles above it.

    Where a block and a tile coincide the block is decoded into the tile: no copy at all.
    """
    level = grid.read.level
    block_w, block_h = slide.block_sizes[level]
    pairs = _pairs(grid, job, block_w, block_h)
    scratch = np.empty((block_h, block_w, 3), np.uint8)
    coincide = grid.tile_px == block_w == block_h
    for block, shared, parts in pairs.blocks():
        row, col = divmod(block, job.plan.block_columns)
        place, ty, tx, by, bx, height, width = parts[0]
        whole = coincide and len(parts) == 1 and height == width == block_w
        try:
            if shared:
                pixels = job.plan.shared.get(
                    block,
                    job.index,
                    lambda col=col, row=row: slide.read_block(level, col, row),  # type: ignore[misc]
                )
            else:
                target = out[place] if whole else scratch
                pixels = slide.read_block(level, col, row, target)
                if whole and pixels is target:
                    continue
        except ReadError:
            for part in parts:
                status[part[0]] = BAD
            pixels = None
        for place, ty, tx, by, bx, height, width in parts:
            out[place, ty : ty + height, tx : tx + width] = (
                slide.background if pixels is None else pixels[by : by + height, bx : bx + width]
            )


_Part: TypeAlias = tuple[int, int, int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """(tile, block) pairs of a job, sorted by block.

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


def _pairs(grid: TileGrid, job: TileJob, block_w: int, block_h: int) -> _Pairs:
    plan, px = job.plan, grid.tile_px
    col, row = grid.col_row[job.rows].T.astype(np.int64)
    # Native reads are whole pixels of the level.
    x = int(plan.x.start[0]) + col * int(plan.x.start[1])
    y = int(plan.y.start[0]) + row * int(plan.y.start[1])
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


# -- resampled: runs of neighbouring tiles are reduced together ---------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring tiles of one grid row, and the blocks beneath (inclusive ranges)."""

    place: int
    col: int
    row: int
    count: int
    block_cols: tuple[int, int]
    block_rows: tuple[int, int]


def _read_scaled(
    slide: Slide, grid: TileGrid, job: TileJob, out: TileArray, status: _Status
) -> None:
    """Put the blocks beneath a run of tiles together, reduce them, cut the tiles out."""
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
        self.bad: set[int] = set()

    def __call__(self, col: int, row: int) -> TileArray | None:
        block = row * self._job.plan.block_columns + col
        self._left[block] -= 1
        if block in self._held:
            held = self._held[block]
            if self._left[block] <= 0:
                del self._held[block]
            return held
        try:
            if block in self._shared:
                pixels = self._job.plan.shared.get(
                    block, self._job.index, lambda: self._slide.read_block(self._level, col, row)
                )
            else:
                pixels = self._slide.read_block(self._level, col, row)
        except ReadError:
            self.bad.add(block)
            pixels = None
        if self._left[block] > 0:
            self._held[block] = pixels
        return pixels


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
        source = np.empty((down, across, 3), np.uint8)
        block = slide.block_sizes[level.index]
        fill_region(source, (left, top), blocks, block, size, slide.background)
        # A tile never leaves the slide; a level that was rounded down may end before it does.
        repeat_edge(source, (left, top), size)
        return source

    return resample_from(fetch, (x, y), plan.step, (width, grid.tile_px))


def _mark_bad(grid: TileGrid, job: TileJob, bad: set[int], status: _Status) -> None:
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


# -- in order -----------------------------------------------------------------------------------


def iter_tiles(
    slide: Slide,
    grid: TileGrid,
    batch_size: int = 256,
    workers: int = 2,
    on_error: str = "raise",
) -> Iterator[tuple[Rows, TileArray]]:
    """Read all tiles of a grid, in order.

    Args:
        batch_size: Tiles in a batch; the last one may be smaller.
        workers: Threads that read.
        on_error: "raise" ends at the first tile that no reader can decode; "skip" leaves such
            tiles out (their rows are not among `rows`).

    Yields:
        rows (B,) int64, indices into the grid, and tiles (B, tile_px, tile_px, 3) uint8.

    Raises:
        ReadError: A tile cannot be decoded, with on_error="raise".
        ConfigError: A setting is out of range.
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"Unknown on_error {on_error!r}.", "Choose 'raise' or 'skip'.")
    if batch_size < 1 or workers < 1:
        raise ConfigError("batch_size and workers are at least 1.", "")
    jobs = plan_jobs(slide, grid, max_tiles=batch_size)
    return _in_order(slide, grid, jobs, workers, on_error)


def _in_order(
    slide: Slide, grid: TileGrid, jobs: list[TileJob], workers: int, on_error: str
) -> Iterator[tuple[Rows, TileArray]]:
    waiting: deque[tuple[TileJob, Future[tuple[TileArray, _Status]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="wsipipe-read") as pool:
        try:
            ahead = iter(jobs)
            for job in ahead:
                waiting.append((job, pool.submit(read_job, slide, grid, job)))
                if len(waiting) > workers:
                    break
            while waiting:
                job, future = waiting.popleft()
                tiles, status = future.result()
                for following in ahead:
                    waiting.append((following, pool.submit(read_job, slide, grid, following)))
                    break
                bad = np.flatnonzero(status)
                if len(bad) and on_error == "raise":
                    x, y = grid.coords[job.rows[bad[0]]].tolist()
                    raise ReadError(slide.path, f"the tile at ({x}, {y}) cannot be decoded")
                good = status == GOOD
                if len(bad) == 0:
                    yield job.rows, tiles
                elif good.any():
                    yield job.rows[good], tiles[good]
        finally:
            for _, future in waiting:
                future.cancel()
