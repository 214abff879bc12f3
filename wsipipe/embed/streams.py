"""The model's side of the engine: threads that launch forwards and hand the rows back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.batcher import Batcher
from wsipipe.embed.forward import Forward, Pending
from wsipipe.embed.guard import Guard
from wsipipe.embed.trace import Trace
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import Batch, Part

__all__ = ["Clock", "Streams"]

# Features (n, D) float32 of a part, encoder index -> rows.
Land = Callable[[Part, dict[int, NDArray[np.float32]]], None]


@dataclass(eq=False)
class Clock:
    """What one stream did with its time, in seconds; written by that stream alone."""

    busy: float = 0.0
    waiting: float = 0.0
    tiles: int = 0


class Streams:
    """`count` threads between the batcher and `land`.

    Args:
        ahead: Forwards that are launched before the oldest one's rows are fetched: 1 on a GPU,
            where launching returns at once; 0 on CPU, where the call is the work.
        fatal: Told of what a model raises; the thread then ends.
    """

    def __init__(
        self,
        batcher: Batcher,
        forward: Forward,
        tuner: BatchTuner,
        *,
        count: int,
        ahead: int,
        land: Land,
        fatal: Callable[[Exception], None],
        trace: Trace,
    ) -> None:
        self._batcher, self._forward, self._tuner = batcher, forward, tuner
        self._ahead, self._land, self._fatal, self._trace = ahead, land, fatal, trace
        self.clocks = [Clock() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._loop, args=(clock,), daemon=True, name=f"stream {i}")
            for i, clock in enumerate(self.clocks, 1)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, each for at most `timeout` seconds."""
        for thread in self._threads:
            thread.join(timeout)

    @property
    def tiles(self) -> int:
        """Tiles embedded so far."""
        return sum(clock.tiles for clock in self.clocks)

    @property
    def rate(self) -> float:
        """Tiles a second over the streams' lives so far; 0 when nothing was embedded."""
        seconds = sum(clock.busy + clock.waiting for clock in self.clocks) / len(self.clocks)
        return self.tiles / seconds if seconds else 0.0

    def _loop(self, clock: Clock) -> None:
        with Guard(self._fatal):
            pending: deque[tuple[Batch, list[Pending], float]] = deque()
            while True:
                asked = time.monotonic()
                with self._trace.span("wait for tiles"):
                    batch = self._batcher.take(wait=not pending)
                begun = time.monotonic()
                clock.waiting += begun - asked
                if batch is None and not pending:
                    return
                if batch is not None:
                    launched = [self._launch(i, batch) for i in batch.encoders]
                    pending.append((batch, launched, begun))
                if len(pending) > self._ahead or batch is None:
                    self._fetch(*pending.popleft(), clock)
                clock.busy += time.monotonic() - begun

    def _launch(self, index: int, batch: Batch) -> Pending:
        name = self._forward.name(index)
        with self._trace.span("forward", encoder=name, tiles=len(batch.tiles)):
            return self._forward.launch(index, batch.tiles)

    def _fetch(self, batch: Batch, launched: list[Pending], begun: float, clock: Clock) -> None:
        with self._trace.span("fetch", tiles=len(batch.tiles)):
            results = [pending.fetch() for pending in launched]
        self._tuner.timed(len(batch.tiles), time.monotonic() - begun)
        self._batcher.settle(batch)
        clock.tiles += len(batch.tiles)
        for part in batch.parts:
            cut = slice(part.start, part.stop)
            rows = {i: r[cut] for i, r in zip(batch.encoders, results, strict=True)}
            self._land(part, rows)
