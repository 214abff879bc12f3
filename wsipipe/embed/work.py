"""What travels through the engine: a task is a slide, a view is the slide through one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.buffers import Buffer, BufferPool
from wsipipe.types import Rows, TileArray

__all__ = ["Batch", "Chunk", "Part", "Sink", "Task", "View"]

Status = NDArray[np.uint8]  # (n,), 0 good, 1 unreadable


class Sink(Protocol):
    """Where one encoder's rows of one slide go."""

    def put(self, rows: Rows, features: NDArray[np.float32], status: Status) -> None:
        """Keep features (n, D) of `rows` (n,); called from several threads, each row once."""


@dataclass(eq=False)
class View:
    """A slide through one grid, for the encoders that share its tile size and mpp.

    Attributes:
        sinks: Encoder's index -> where its rows go.
        jobs: Read jobs still to be done, in row order; `index` orders all of a slide's.
        missing: (N,) bool, rows that are wanted; None = all. A job is read whole, but only its
            missing rows are embedded.
    """

    slide: Any
    grid: Any
    jobs: Sequence[Any]
    sinks: Mapping[int, Sink]
    missing: NDArray[np.bool_] | None = None

    @property
    def tile_px(self) -> int:
        """Edge of the tiles in pixels."""
        return int(self.grid.tile_px)

    def wanted(self, rows: Rows) -> Rows:
        """Those of `rows` that are missing."""
        return rows if self.missing is None else rows[self.missing[rows]]

    @property
    def encoders(self) -> tuple[int, ...]:
        """The encoders that want these tiles."""
        return tuple(self.sinks)


class Task(Protocol):
    """One slide on its way. The engine calls the methods in this order, each from one thread."""

    slide_id: str
    path: str
    stage: str  # which step of `prepare` it is at
    step_since: float  # when that step began, time.monotonic(); 0 = with `prepare`

    def prepare(self) -> Sequence[View]:
        """Open, find tissue, lay the grid, plan. Runs ahead in a thread."""

    def accompany(self) -> None:
        """What reading need not wait for: pictures. In the thread of `prepare`, right after it;
        `finish` comes when this is over and all rows are in."""

    def saw(
        self, view: View, rows: Rows, tiles: TileArray, status: Status
    ) -> NDArray[np.bool_] | None:
        """Called after each read; raises when too many tiles are unreadable. Any thread.

        Returns:
            (n,) bool, the tiles that are to be embedded; None = all.
        """

    def finish(self) -> None:
        """All rows are in: publish."""

    def abandon(self, *, keep: bool) -> None:
        """Not finished. With `keep`, save the rows that are in for a later run, else drop them."""

    def close(self) -> None:
        """Let go of the slide; nobody reads it any more."""


@dataclass(eq=False)
class Progress:
    """The engine's own account of a task; guarded by the engine's lock."""

    task: Task
    rows_left: int = 0  # not yet in their sinks
    jobs_left: int = 0  # not yet issued
    reading: int = 0  # threads inside the slide: preparing it or reading
    accompanied: bool = False  # `Task.accompany` has come back
    begun: bool = False
    over: bool = False  # finished, failed or abandoned: what still arrives is dropped
    queue: list[tuple[View, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Chunk:
    """Tiles of one read job, in a lent buffer, waiting to be embedded."""

    progress: Progress
    view: View
    rows: Rows
    tiles: TileArray
    status: Status
    buffer: Buffer
    pool: BufferPool
    taken: int = 0  # tiles already cut off for a batch
    held: int = 0  # batches that still look into the buffer

    @property
    def left(self) -> int:
        """Tiles not yet in any batch."""
        return len(self.rows) - self.taken


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of a batch that belongs to one slide: tiles [start, stop) are `rows`."""

    progress: Progress
    view: View
    rows: Rows
    status: Status
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Tiles (B, tile_px, tile_px, 3) of one or more slides, for the same encoders."""

    tiles: TileArray
    parts: Sequence[Part]
    encoders: tuple[int, ...]
    chunks: Sequence[Chunk]  # whose buffers `tiles` looks into
