"""Tiles out of a slide: jobs of consecutive tiles, read by threads, handed on in order."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.cut import BAD, GOOD, read_cut
from wsipipe.embed.runs import read_runs
from wsipipe.errors import ConfigError, ReadError
from wsipipe.slide.arguments import as_whole
from wsipipe.slide.memory import SPARE_BYTES, empty_pixels, pixels_in
from wsipipe.slide.slide import Slide
from wsipipe.tiling import TileGrid, TileJob, plan_jobs
from wsipipe.types import Rows, TileArray

__all__ = ["BAD", "GOOD", "TileJob", "iter_tiles", "plan_jobs", "read_job"]

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
        out = empty_pixels((count, grid.tile_px, grid.tile_px, 3))
    status = np.zeros(count, np.uint8)
    if job.plan.factor is None:
        read_runs(slide, grid, job, out, status)
    else:
        read_cut(slide, grid, job, job.plan.factor, out, status)
    return out, status


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

    A batch is the caller's for as long as anything refers to it; its memory is used again after
    that.

    Yields:
        rows (B,) int64, indices into the grid, and tiles (B, tile_px, tile_px, 3) uint8.

    Raises:
        ReadError: A tile cannot be decoded, with on_error="raise".
        ConfigError: A setting is out of range.
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"Unknown on_error {on_error!r}.", "Choose 'raise' or 'skip'.")
    batch_size, workers = as_whole(batch_size=batch_size, workers=workers)
    if batch_size < 1 or workers < 1:
        raise ConfigError("batch_size and workers are at least 1.", "")
    jobs = plan_jobs(slide, grid, max_tiles=batch_size)
    return _in_order(slide, grid, jobs, workers, on_error)


def _in_order(
    slide: Slide, grid: TileGrid, jobs: list[TileJob], workers: int, on_error: str
) -> Iterator[tuple[Rows, TileArray]]:
    waiting: deque[tuple[TileJob, Future[tuple[TileArray, _Status]]]] = deque()
    buffers = _Recycled(len(jobs[0].rows) if jobs else 0, grid.tile_px, workers + 3)
    with ThreadPoolExecutor(workers, thread_name_prefix="wsipipe-read") as pool:
        try:
            ahead = iter(jobs)
            for job in ahead:
                waiting.append((job, pool.submit(read_job, slide, grid, job, buffers.take(job))))
                if len(waiting) > workers:
                    break
            while waiting:
                job, future = waiting.popleft()
                tiles, status = future.result()
                for following in ahead:
                    waiting.append(
                        (
                            following,
                            pool.submit(read_job, slide, grid, following, buffers.take(following)),
                        )
                    )
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
                del tiles, future
        finally:
            for _, future in waiting:
                future.cancel()


class _Recycled:
    """Batches whose memory is used again once nothing refers to it.

    Fresh pages cost a tenth of the decoding on one thread and more on two, which wait for each
    other when the kernel maps them. A view holds its buffer, so the buffer's reference count says
    whether a caller still looks at any part of it.
    """

    def __init__(self, tiles: int, tile_px: int, keep: int) -> None:
        self._shape = (tiles, tile_px, tile_px, 3)
        self._keep = keep
        self._buffers: list[TileArray] = []

    def take(self, job: TileJob) -> TileArray:
        """(n, tile_px, tile_px, 3) uint8 for the tiles of a job; called from one thread."""
        count = len(job.rows)
        for index in range(len(self._buffers)):
            if sys.getrefcount(self._buffers[index]) == _UNSEEN:
                return pixels_in(self._buffers[index], self._shape)[:count]
        memory = np.empty(math.prod(self._shape) + SPARE_BYTES, np.uint8)
        if len(self._buffers) < self._keep:
            self._buffers.append(memory)
        return pixels_in(memory, self._shape)[:count]


def _count_unseen() -> int:
    alone: list[object] = [object()]
    return sys.getrefcount(alone[0])


# References to what is held by one list only, as `sys.getrefcount` counts them.
_UNSEEN: Final = _count_unseen()
