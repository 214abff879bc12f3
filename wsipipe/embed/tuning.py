"""How many tiles go into one forward: a ramp measured on the run's own batches, and back-off.

The ramp wastes nothing: the batches it times are real ones. On CPU small batches win (ViT-S/16,
bf16, one thread: 54 tiles/s at 8, 39 at 128), on a GPU larger ones do until the device is full;
both are found by the same rule: go on while the rate grows.
"""

from __future__ import annotations

import threading

__all__ = ["BatchTuner"]

_GAIN = 1.1  # a larger batch must be this much faster; less is noise on a busy machine
_SAMPLES = 3  # timed batches at each size, after one that warms up


class BatchTuner:
    """The current batch size; called to learn it.

    Args:
        size: First (or, without `limit`, fixed) batch size.
        limit: Largest size the ramp may try.
    """

    def __init__(self, size: int, limit: int | None = None) -> None:
        self.size = size
        self.backed_off: list[int] = []
        self._limit = limit or size
        self._settled = self._limit <= size
        self._rates: list[float] = []
        self._best = (size, 0.0)
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """Tiles in the next batch."""
        return self.size

    def timed(self, count: int, seconds: float) -> None:
        """A forward of `count` tiles took `seconds`."""
        with self._lock:
            if self._settled or count != self.size or seconds <= 0:
                return
            self._rates.append(count / seconds)
            if len(self._rates) <= _SAMPLES:
                return
            rate = max(self._rates[1:])
            self._rates.clear()
            earned = rate > self._best[1] * _GAIN
            if earned:
                self._best = (self.size, rate)
            if earned and self.size * 2 <= self._limit:
                self.size *= 2
            else:
                self.size, self._settled = self._best[0], True

    def too_large(self, count: int) -> bool:
        """A forward of `count` tiles ran out of memory: use half from now on.

        Returns:
            False when there is nothing left to halve.
        """
        with self._lock:
            if count <= 1:
                return False
            if count // 2 < self.size:
                self.size, self._settled = count // 2, True
                self.backed_off.append(self.size)
            return True
