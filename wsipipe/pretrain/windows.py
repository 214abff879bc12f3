"""Values made once and asked for several times, from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Windows"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Windows(Generic[K, V]):
    """Keeps the last few values; the first thread that asks for one makes it, others wait.

    Args:
        keep: Values kept. Two are in use while batches are read ahead, and the monitor asks for
            the first one.
    """

    def __init__(self, keep: int = 3) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._values: OrderedDict[K, Future[V]] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`; `make()` if it is not kept. A failure is not kept."""
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if future is None:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
            while len(self._values) > self.keep:
                self._values.popitem(last=False)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._values.pop(key, None)
                future.set_exception(error)
                raise
        return future.result()
