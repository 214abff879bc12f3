"""Reads ahead: batches are made in threads while the device trains, and come in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from wsipipe.pretrain.source import Source, TileBatch

__all__ = ["Loader"]


class Loader:
    """Iterates over the joined batches from `first` on, this process's rows of each.

    Args:
        source: Where tiles come from.
        n: Tiles of a joined batch.
        rows: This process's rows.
        first: Number of the first batch.
        last: One past the last batch.
        ahead: Batches in flight.

    Attributes:
        waited_s: Seconds that `next` has spent waiting for data.
    """

    def __init__(
        self, source: Source, n: int, rows: slice, first: int, last: int, ahead: int = 2
    ) -> None:
        self.source, self.n, self.rows = source, n, rows
        self.first, self.last, self.ahead = first, last, max(1, ahead)
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[TileBatch]:
        waiting: deque[Future[TileBatch]] = deque()
        with ThreadPoolExecutor(self.ahead, thread_name_prefix="pretrain-read") as pool:
            try:
                upcoming = iter(range(self.first, self.last))
                for index in upcoming:
                    waiting.append(pool.submit(self.source.batch, index, self.n, self.rows))
                    if len(waiting) > self.ahead:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for future in waiting:
                    future.cancel()

    def _next(self, waiting: deque[Future[TileBatch]]) -> TileBatch:
        started = time.perf_counter()
        batch = waiting.popleft().result()
        self.waited_s += time.perf_counter() - started
        return batch
