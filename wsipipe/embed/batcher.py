"""Cuts decoded chunks into full batches that may mix slides; copies only at the seams."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np

from wsipipe.embed.work import Batch, Chunk, Part

__all__ = ["Batcher"]

_Group = tuple[int, tuple[int, ...]]  # tile_px and the encoders that want the tiles


class Batcher:
    """Chunks in from the decoding threads, batches out to the model's streams.

    A batch that lies within one chunk is a view of its buffer. One that spans chunks is gathered
    into a new array. A batch that is not full leaves only when nothing is being decoded: then
    waiting for more would idle the device, or (when the buffers are all out) never end.

    Args:
        batch_size: Asked at each cut, so that tuning and back-off take effect at once.
    """

    def __init__(self, batch_size: Callable[[], int]) -> None:
        self._batch_size = batch_size
        self._groups: defaultdict[_Group, deque[Chunk]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._decoding = 0
        self._closed = False

    def decoding(self, change: int) -> None:
        """A decoding thread has begun (+1) or stopped (-1) working towards a chunk."""
        with self._changed:
            self._decoding += change
            if self._decoding == 0:
                self._changed.notify_all()

    def put(self, chunk: Chunk) -> None:
        """Hand in a decoded chunk."""
        with self._changed:
            self._groups[chunk.view.tile_px, chunk.view.encoders].append(chunk)
            self._changed.notify_all()

    def close(self) -> None:
        """No more chunks will come; `take` ends when the rest is out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, *, wait: bool = True) -> Batch | None:
        """The next batch; waits for one.

        Returns:
            None at the end, or, with `wait` false, when there is none right now.
        """
        with self._changed:
            while True:
                flush = self._closed or self._decoding == 0
                for group, chunks in self._groups.items():
                    batch = self._cut(group, chunks, flush)
                    if batch is not None:
                        return batch
                if self._closed or not wait:
                    return None
                self._changed.wait()

    def settle(self, batch: Batch) -> None:
        """The device has read the batch: its chunks may let go of their buffers."""
        with self._changed:
            for chunk in batch.chunks:
                chunk.held -= 1
                self._release(chunk)

    def _cut(self, group: _Group, chunks: deque[Chunk], flush: bool) -> Batch | None:
        while chunks and chunks[0].progress.over:
            dropped = chunks.popleft()
            dropped.taken = len(dropped.rows)
            self._release(dropped)
        size = self._batch_size()
        if not chunks:
            return None
        if chunks[0].left >= size:
            return self._from_one(chunks, size, group)
        wanted, available = size, sum(chunk.left for chunk in chunks)
        if available < size:
            if not flush:
                return None
            wanted = available
        if chunks[0].left >= wanted:
            return self._from_one(chunks, wanted, group)
        return self._from_several(chunks, wanted, group)

    def _from_one(self, chunks: deque[Chunk], count: int, group: _Group) -> Batch:
        chunk = chunks[0]
        start = chunk.taken
        part = self._part(chunk, count, 0)
        chunk.held += 1
        if not chunk.left:
            chunks.popleft()
        return Batch(chunk.tiles[start : start + count], (part,), group[1], (chunk,))

    def _from_several(self, chunks: deque[Chunk], count: int, group: _Group) -> Batch:
        tiles = np.empty((count, group[0], group[0], 3), np.uint8)
        parts: list[Part] = []
        filled = 0
        while filled < count:
            chunk = chunks[0]
            start, take = chunk.taken, min(chunk.left, count - filled)
            tiles[filled : filled + take] = chunk.tiles[start : start + take]
            parts.append(self._part(chunk, take, filled))
            filled += take
            if not chunk.left:
                chunks.popleft()
                self._release(chunk)
        return Batch(tiles, parts, group[1], ())

    @staticmethod
    def _part(chunk: Chunk, count: int, offset: int) -> Part:
        cut = slice(chunk.taken, chunk.taken + count)
        chunk.taken += count
        return Part(
            chunk.progress,
            chunk.view,
            chunk.rows[cut],
            chunk.status[cut],
            offset,
            offset + count,
        )

    @staticmethod
    def _release(chunk: Chunk) -> None:
        if not chunk.left and not chunk.held:
            chunk.pool.give(chunk.buffer)
