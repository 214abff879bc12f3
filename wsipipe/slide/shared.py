"""Decoded blocks on their way from one job to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import TileArray

__all__ = ["BUSY", "Busy", "SharedBlocks"]

# Jobs run nearly in order; what a job so far back still waits for was skipped.
_STALE_JOBS: Final = 64
_PATIENCE_S: Final = 10.0


class Busy(Enum):
    """The type of `BUSY`."""

    BUSY = "being decoded by another job"


BUSY: Final = Busy.BUSY


@dataclass(slots=True, eq=False)
class _Flight:
    """A block that a job is decoding."""

    pixels: TileArray | None = None
    landed: bool = False


@dataclass(slots=True)
class _Entry:
    pixels: TileArray | None
    left: int
    last_job: int


class SharedBlocks:
    """A bounded store of blocks that several jobs need, each dropped after its last use.

    It never evicts what is still needed: where the slide is so wide that a row of blocks does not
    fit, the surplus is decoded again, and the rest still once. (An LRU store would, on such
    a slide, drop every block just before it is needed.)

    Two jobs side by side walk the same row of blocks in step, so a block that is wanted is often
    just being decoded by the other: a quarter of all blocks were decoded twice where nobody looked.

    Args:
        ids: (n,) int64 ascending, blocks that more than one job needs.
        uses: (n,) how many jobs need each.
        last: (n,) index of the last of them.
        max_bytes: Pixels held at once.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        uses: NDArray[np.int64],
        last: NDArray[np.int64],
        *,
        max_bytes: int,
    ) -> None:
        self._ids, self._uses, self._last = ids, uses, last
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[int, _Entry] = {}
        self._flights: dict[int, _Flight] = {}
        self._changed = threading.Condition()

    def among(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the blocks are shared, (n,) bool."""
        if len(self._ids) == 0:
            return np.zeros(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.equal(self._ids[at], ids)

    def get(
        self, block: int, job: int, decode: Callable[[], TileArray | None], *, wait: bool
    ) -> TileArray | Busy | None:
        """The block for one job, which asks once for each of its shared blocks.

        Args:
            block: Id of a shared block.
            job: Index of the job that asks.
            decode: Makes the pixels where they are not at hand; its array must be its own.
            wait: For another job that is decoding the block, though not for long: it may hang.
                Else BUSY is the answer, and the job asks again when it has nothing better to do.
        """
        with self._changed:
            entry, flight = self._entries.get(block), self._flights.get(block)
            if entry is None and flight is not None:
                if not wait:
                    return BUSY
                self._changed.wait_for(lambda: self._flights.get(block) is not flight, _PATIENCE_S)
                entry = self._entries.get(block)
                if entry is None and flight.landed:  # there was no room to keep it
                    return flight.pixels
            if entry is not None:
                self._use(block, entry)
                return entry.pixels
            own = self._flights[block] = _Flight()
        try:
            own.pixels = decode()
            own.landed = True
        finally:
            with self._changed:
                if self._flights.get(block) is own:
                    del self._flights[block]
                self._changed.notify_all()
                entry = self._entries.get(block)
                if entry is not None:  # somebody did not wait for so long
                    self._use(block, entry)
                elif own.landed:
                    self._keep(block, job, own.pixels)
        return own.pixels

    def _use(self, block: int, entry: _Entry) -> None:
        entry.left -= 1
        if entry.left <= 0:
            self._drop(block)

    def _keep(self, block: int, job: int, pixels: TileArray | None) -> None:
        at = int(np.searchsorted(self._ids, block))
        left = int(self._uses[at]) - 1
        size = 0 if pixels is None else pixels.nbytes
        if left <= 0 or size > self._max_bytes:
            return
        if self._bytes + size > self._max_bytes:
            for other in [
                key for key, e in self._entries.items() if e.last_job < job - _STALE_JOBS
            ]:
                self._drop(other)
            if self._bytes + size > self._max_bytes:
                return
        self._entries[block] = _Entry(pixels, left, int(self._last[at]))
        self._bytes += size

    def _drop(self, block: int) -> None:
        entry = self._entries.pop(block)
        self._bytes -= 0 if entry.pixels is None else entry.pixels.nbytes
