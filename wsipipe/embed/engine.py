"""The engine: slides in at one end, rows of features out at the other, the device never waits.

    tasks ─▶ preparers ─▶ Feed ─▶ decoders ─▶ Batcher ─▶ streams ─▶ sinks ─▶ publisher
             open, tissue,  read    uint8 in    batches    forward    rows      finish()
             grid, plan     jobs    lent        mix        launched   go to
             (run ahead)            buffers     slides     ahead      each slide

Every arrow is bounded. The feed holds a few prepared slides; decoders stop when the buffer pool is
lent out; so memory depends on neither the number nor the size of slides. Threads, not processes:
decoding and forwards release the interpreter lock, and nothing is pickled.

- *Preparers* take the next task and run `Task.prepare` while earlier slides are still embedded;
  then `Task.accompany` (pictures) while this one is read already.
- *Decoders* take one read job at a time, across slides, into a buffer lent by the pool.
- *Streams* take batches. On a GPU there is one, which launches the next forward before it fetches
  the last one's rows. On CPU there are as many as processors, each with a thread of its own: no
  barriers, so a stolen core costs its share and no more.
- The *publisher* runs `Task.finish` when a slide's last row and its pictures are in, so that
  compressing, fsync and rename stall nobody.
- The *caller's thread* keeps the books: it alone decides that a task is done, failed or abandoned,
  watches for reads that hang, for the request to stop, and reports progress.

One slide's exception fails that slide. `OutputError` (nothing can be written) and whatever a model
raises end the run, since the next slide would fare no better.
Preparers and decoders are in `readers.py`, streams in `streams.py`, sinks and publisher in
`results.py`; this file is the caller's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wsipipe.embed.batcher import Batcher
from wsipipe.embed.buffers import BufferPool
from wsipipe.embed.drain import Drain
from wsipipe.embed.feed import Feed
from wsipipe.embed.forward import Forward
from wsipipe.embed.mailbox import Began, Exhausted, Mailbox, Over
from wsipipe.embed.outcome import Listener, Outcome, Snapshot
from wsipipe.embed.readers import PREPARERS, Readers
from wsipipe.embed.resources import Threads
from wsipipe.embed.results import Results
from wsipipe.embed.streams import Streams
from wsipipe.embed.trace import NO_TRACE, Trace
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import Progress, Task

__all__ = ["Engine", "EngineOptions", "Listener", "Outcome", "Snapshot"]

_TICK_S = 0.2
_PATIENCE_S = 5.0  # for threads to end


@dataclass(frozen=True)
class EngineOptions:
    """How the engine runs; nothing here changes a number.

    Attributes:
        threads: Who gets how many threads.
        buffer_bytes: Budget of decoded pixels that wait for the device.
        read_timeout_s: Longest time that one read, or one step of a preparation, may take.
        grace_s: Time after a request to stop in which slides in flight may finish.
        on_gpu: Buffers are pinned and forwards overlap.
        one_by_one: See `Forward`.
    """

    threads: Threads
    buffer_bytes: int = 256 << 20
    read_timeout_s: float = 600.0
    grace_s: float = 30.0
    on_gpu: bool = False
    one_by_one: bool = False


class Engine:
    """See the module's docstring. An engine runs once.

    Args:
        encoders: Callables as `wsipipe.encoders.Encoder`; views name them by index.
        read_job: As `wsipipe.embed.tiles.read_job`.
        tuner: Batch size, and its back-off.
        drain: Asked whether to stop.
        trace: Told what each thread does.
    """

    def __init__(
        self,
        encoders: Sequence[Any],
        read_job: Callable[..., tuple[Any, Any]],
        tuner: BatchTuner,
        options: EngineOptions,
        drain: Drain | None = None,
        trace: Trace = NO_TRACE,
    ) -> None:
        self._tuner, self._options, self._trace = tuner, options, trace
        self._drain = drain or Drain()
        self._lock = threading.Lock()
        self._open: dict[int, Progress] = {}
        self._draining = False
        self._mailbox = Mailbox()
        self._pool = BufferPool(options.buffer_bytes, pinned=options.on_gpu)
        self._batcher = Batcher(tuner)
        self._feed = Feed(look_ahead=PREPARERS + options.threads.decode)
        self._results = Results(self._mailbox, self._lock, trace)
        self._readers = Readers(
            read_job,
            self._feed,
            self._pool,
            self._batcher,
            self._results,
            self._mailbox,
            self._lock,
            timeout_s=options.read_timeout_s,
            trace=trace,
        )
        self._streams = Streams(
            self._batcher,
            Forward(encoders, tuner, one_by_one=options.one_by_one),
            tuner,
            count=options.threads.streams,
            ahead=1 if options.on_gpu else 0,
            land=self._results.land,
            fatal=self._mailbox.fatal,
            trace=trace,
        )

    def run(self, tasks: Iterator[Task], listener: Listener) -> None:
        """Run the tasks; each that is begun ends in one call of `listener.over`.

        After a request to stop, tasks that were not begun are left in `tasks`.

        Raises:
            OutputError, EncoderError: See the module's docstring.
        """
        self._feed.source = tasks
        self._readers.start(self._options.threads.decode)
        self._streams.start()
        self._results.start()
        over = exhausted = 0
        try:
            while exhausted < PREPARERS or self._open or not self._mailbox.empty:
                for message in self._mailbox.within(_TICK_S):
                    if isinstance(message, Began):
                        self._open[id(message.progress)] = message.progress
                        listener.began(message.progress.task)
                    elif isinstance(message, Exhausted):
                        exhausted += 1
                    elif (outcome := self._close_books(message)) is not None:
                        over += 1
                        listener.over(outcome)
                self._readers.watch()
                if self._drain.requested:
                    self._drain_step()
                snapshot = self._snapshot(over)
                self._draw(snapshot)
                listener.tick(snapshot)
        finally:
            self._shut_down()

    def _close_books(self, message: Over) -> Outcome | None:
        """A task is over, once; None when it was already."""
        progress = message.progress
        with self._lock:
            if progress.over:
                return None
            progress.over = True
            idle = progress.reading == 0
        del self._open[id(progress)]
        self._feed.wake()
        if message.status != "done":
            progress.task.abandon(keep=message.status == "abandoned")
        if idle:
            progress.task.close()
        return Outcome(progress.task, message.status, message.stage, message.error)

    def _drain_step(self) -> None:
        """Keep only what can be finished within the grace time."""
        left = self._options.grace_s - (time.monotonic() - self._drain.since)
        if self._draining and left > 0:
            return
        if not self._draining:
            self._draining = True
            self._feed.stop_taking()
        rate, tiles = self._streams.rate, 0
        for progress in self._open.values():
            tiles += progress.rows_left
            fits = progress.begun and rate > 0 and tiles / rate <= left
            if not fits and not (progress.begun and progress.rows_left == 0 and left > 0):
                self._mailbox.put(Over(progress, "abandoned"))

    def _snapshot(self, over: int) -> Snapshot:
        clocks = self._streams.clocks
        return Snapshot(
            slides_over=over,
            tiles=self._streams.tiles,
            tiles_ahead=sum(progress.rows_left for progress in self._open.values()),
            busy_s=sum(clock.busy for clock in clocks),
            waiting_s=sum(clock.waiting for clock in clocks),
            batch_size=self._tuner.size,
        )

    def _draw(self, snapshot: Snapshot) -> None:
        self._trace.count("tiles embedded", tiles=snapshot.tiles)
        self._trace.count("tiles ahead", tiles=snapshot.tiles_ahead)
        self._trace.count("batch size", tiles=snapshot.batch_size)
        self._trace.write()

    def _shut_down(self) -> None:
        """End the threads; what is still open was cut short by an error and is abandoned."""
        idle = self._cut_short(list(self._open.values()))
        self._feed.close()
        self._pool.close()
        self._batcher.close()
        self._results.stop()
        self._streams.join(_PATIENCE_S)
        self._readers.join(_PATIENCE_S)
        # Some may have begun behind the error that ended the run.
        begun = [m.progress for m in self._mailbox.rest() if isinstance(m, Began)]
        idle += self._cut_short(begun)
        for progress in [*self._open.values(), *begun]:
            progress.task.abandon(keep=True)
        for progress in idle:
            progress.task.close()

    def _cut_short(self, tasks: list[Progress]) -> list[Progress]:
        """Nothing more is taken for these; those that no thread is inside of are to be closed by
        the caller, the rest by the last thread that comes out."""
        with self._lock:
            for progress in tasks:
                progress.over = True
            return [progress for progress in tasks if progress.reading == 0]
