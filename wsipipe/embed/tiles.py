"""Tiles out of a slide: jobs of consecutive tiles, read by threads, handed on in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, ReadError
from wsipipe.slide.resample import axis_span, resample
from wsipipe.slide.slide import Slide
from wsipipe.tiling import TileGrid, TileJob, plan_jobs
from wsipipe.types import Rows, TileArray

__all__ = ["TileJob", "iter_tiles", "plan_jobs", "read_job"]

GOOD, BAD = 0, 1


def read_job(
    slide: Slide, grid: TileGrid, job: TileJob, out: TileArray | None = None
) -> tuple[TileArray, NDArray[np.uint8]]:
    """Read the tiles of a job. Safe from many threads at once.

    Args:
        out: (n, tile_px, tile_px, 3) uint8 to fill; made if not given.

    Returns:
        The tiles, and (n,) uint8: 0 good, 1 the tile could not be decoded by any reader (its
        pixels are background).
    """
    count = len(job.rows)
    if out is None:
        out = np.empty((count, grid.tile_px, grid.tile_px, 3), np.uint8)
    status = np.zeros(count, np.uint8)
    level = slide.levels[grid.read.level]
    step = tuple(s / d for s, d in zip(grid.read.scale, level.downsample, strict=True))
    start = tuple(o / d for o, d in zip(grid.read.origin, level.downsample, strict=True))
    for place, (col, row) in enumerate(grid.col_row[job.rows].tolist()):
        at = (
            start[0] + col * grid.read.stride_px * step[0],
            start[1] + row * grid.read.stride_px * step[1],
        )
        try:
            out[place] = _read_tile(slide, grid, at, (step[0], step[1]))
        except ReadError:
            status[place] = BAD
            out[place] = slide.background
    return out, status


def _read_tile(
    slide: Slide, grid: TileGrid, at: tuple[Fraction, Fraction], step: tuple[Fraction, Fraction]
) -> TileArray:
    x0, x1 = axis_span(at[0], step[0], grid.tile_px)
    y0, y1 = axis_span(at[1], step[1], grid.tile_px)
    source = slide.read_level_padded(grid.read.level, x0, y0, x1 - x0, y1 - y0)
    return resample(source, (at[0] - x0, at[1] - y0), step, (grid.tile_px, grid.tile_px))


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
    waiting: deque[tuple[TileJob, Future[tuple[TileArray, NDArray[np.uint8]]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="wsipipe-read") as pool:
        try:
            ahead = iter(jobs)
            for job in ahead:
                waiting.append((job, pool.submit(read_job, slide, grid, job)))
                if len(waiting) > workers + 1:
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
