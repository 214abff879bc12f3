"""Reused pixel buffers under one budget: what keeps memory flat and decoding from running ahead."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.slide.memory import SPARE_BYTES, pixels_in

__all__ = ["Buffer", "BufferPool"]

_STEP = 1 << 20


@dataclass(eq=False)
class Buffer:
    """Bytes on loan: `memory` (capacity,) uint8; pinned where a GPU reads it asynchronously."""

    memory: NDArray[np.uint8]

    def tiles(self, count: int, tile_px: int) -> NDArray[np.uint8]:
        """The head of the buffer as (count, tile_px, tile_px, 3)."""
        return pixels_in(self.memory, (count, tile_px, tile_px, 3))


class BufferPool:
    """Lends buffers until `budget_bytes` are out, then lets the caller wait.

    A fresh 30 MB array costs a page fault for each 4 KB of it, about as much as decoding a tenth
    of its tiles; buffers that come back are therefore kept and lent again.
    """

    def __init__(self, budget_bytes: int, *, pinned: bool = False) -> None:
        self._budget = budget_bytes
        self._pinned = pinned
        self._free: list[Buffer] = []
        self._bytes = 0  # of all buffers, lent and free
        self._lent = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> Buffer | None:
        """A buffer for `nbytes` of tiles; waits for one; None once the pool is closed.

        A request above the whole budget is granted when nothing else is out: slower, never stuck.
        """
        nbytes += SPARE_BYTES
        with self._changed:
            while not self._closed:
                fitting = [b for b in self._free if nbytes <= b.memory.size <= 2 * nbytes + _STEP]
                if fitting:
                    best = min(fitting, key=lambda buffer: buffer.memory.size)
                    self._free.remove(best)
                    self._lent += 1
                    return best
                capacity = -(-nbytes // _STEP) * _STEP
                while self._free and self._bytes + capacity > self._budget:
                    self._bytes -= self._free.pop(0).memory.size
                if self._bytes + capacity <= self._budget or not self._lent:
                    self._bytes += capacity
                    self._lent += 1
                    return Buffer(self._allocate(capacity))
                self._changed.wait()
        return None

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._lent -= 1
            self._changed.notify_all()

    def forget(self, buffer: Buffer) -> None:
        """Give up on a buffer that a hanging read may still write into."""
        with self._changed:
            self._bytes -= buffer.memory.size
            self._lent -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Wake all who wait; nothing is lent from now on."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._changed.notify_all()

    def _allocate(self, capacity: int) -> NDArray[np.uint8]:
        if not self._pinned:
            return np.empty(capacity, np.uint8)
        import torch

        pinned: NDArray[np.uint8] = torch.empty(
            capacity, dtype=torch.uint8, pin_memory=True
        ).numpy()
        return pinned
