"""The engine: slides in at one end, rows of features out at the other, the device never waits.

    tasks ─▶ preparers ─▶ Feed ─▶ decoders ─▶ Batcher ─▶ streams ─▶ sinks ─▶ publisher
             open, tissue,  read    uint8 in    batches    forward    rows      finish()
             grid, plan     jobs    lent        mix        launched   go to
             (run ahead)            buffers     slides     ahead      each slide

Every arrow is bounded. The feed holds a few prepared slides; decoders stop when the buffer pool is
lent out; so memory depends on neither the number nor the size of slides. Threads, not processes:
decoding and forwards release the interpreter lock, and nothing is pickled.

- *Preparers* take the next task and run `Task.prepare` while earlier slides are still embedded.
- *Decoders* take one read job at a time, across slides, into a buffer lent by the pool.
- *Streams* take batches. On a GPU there is one, which launches the next forward before it fetches
  the last one's rows. On CPU there are as many as processors, each with a thread of its own: no
  barriers, so a stolen core costs its share and no more.
- The *publisher* runs `Task.finish` when a slide's last row is in, so that compressing, fsync and
  rename stall nobody.
- The *caller's thread* keeps the books: it alone decides that a task is done, failed or abandoned,
  watches for reads that hang, for the request to stop, and reports progress.

One slide's exception fails that slide. `OutputError` (nothing can be written) and whatever a model
raises end the run, since the next slide would fare no better.
A read that takes longer than `read_timeout_s` fails its slide; a thread cannot be ended in Python,
so it is left behind with its buffer and replaced.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.batcher import Batcher
from wsipipe.embed.buffers import Buffer, BufferPool
from wsipipe.embed.drain import Drain
from wsipipe.embed.feed import Feed, Job
from wsipipe.embed.forward import Forward
from wsipipe.embed.guard import Guard
from wsipipe.embed.resources import Threads
from wsipipe.embed.streams import Streams
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import Chunk, Part, Progress, Task
from wsipipe.errors import EncoderError, OutputError, ReadError, WsipipeError

__all__ = ["Engine", "EngineOptions", "Listener", "Outcome", "Snapshot"]

_TICK_S = 0.2
_PREPARERS = 2  # slides that are opened and segmented at the same time
_PATIENCE_S = 5.0  # for threads to end

_Status = Literal["done", "failed", "abandoned"]


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


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` is what failed it, in `stage`; None otherwise."""

    task: Task
    status: _Status
    stage: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Snapshot:
    """Where the run stands; times are sums over streams, in seconds."""

    slides_over: int
    tiles: int
    tiles_ahead: int  # of prepared slides, not embedded yet
    busy_s: float
    waiting_s: float
    batch_size: int

    @property
    def waiting(self) -> float:
        """Share of its time that the device waited on reading, 0 to 1."""
        return self.waiting_s / ((self.waiting_s + self.busy_s) or 1.0)


class Listener:
    """Hears what happens, in the caller's thread. Override what is of interest."""

    def began(self, task: Task) -> None:
        """A task's preparation has begun."""

    def over(self, outcome: Outcome) -> None:
        """A task is over. May raise, which ends the run."""

    def tick(self, snapshot: Snapshot) -> None:
        """Several times a second."""


@dataclass(eq=False)
class _Worker:
    """A thread that may hang in foreign code, and what it is at; guarded by the engine's lock."""

    kind: Literal["prepare", "decode"]
    progress: Progress | None = None
    buffer: Buffer | None = None
    since: float = 0.0
    left_behind: bool = False
    thread: threading.Thread | None = None


class Engine:
    """See the module's docstring. An engine runs once.

    Args:
        encoders: Callables as `wsipipe.encoders.Encoder`; views name them by index.
        read_job: As `wsipipe.embed.tiles.read_job`.
        tuner: Batch size, and its back-off.
        drain: Asked whether to stop.
    """

    def __init__(
        self,
        encoders: Sequence[Any],
        read_job: Callable[..., tuple[Any, Any]],
        tuner: BatchTuner,
        options: EngineOptions,
        drain: Drain | None = None,
    ) -> None:
        self._read_job, self._tuner, self._options = read_job, tuner, options
        self._drain = drain or Drain()
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._to_publish: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: dict[int, Progress] = {}
        self._pool = BufferPool(options.buffer_bytes, pinned=options.on_gpu)
        self._batcher = Batcher(tuner)
        self._feed = Feed(look_ahead=_PREPARERS + options.threads.decode)
        self._workers: list[_Worker] = []
        self._draining = False
        self._streams = Streams(
            self._batcher,
            Forward(encoders, tuner, one_by_one=options.one_by_one),
            tuner,
            count=options.threads.streams,
            ahead=1 if options.on_gpu else 0,
            land=self._land,
            fatal=self._fatal,
        )
        self._publisher = threading.Thread(target=self._publish_loop, daemon=True, name="publish")

    # ---- the caller's thread -------------------------------------------------------------------

    def run(self, tasks: Iterator[Task], listener: Listener) -> None:
        """Run the tasks; each that is begun ends in one call of `listener.over`.

        After a request to stop, tasks that were not begun are left in `tasks`.

        Raises:
            OutputError, EncoderError: See the module's docstring.
        """
        self._feed.source = tasks
        for kind, count in (("prepare", _PREPARERS), ("decode", self._options.threads.decode)):
            for _ in range(count):
                self._launch(kind)  # type: ignore[arg-type]
        self._streams.start()
        self._publisher.start()
        over = exhausted = 0
        try:
            while exhausted < _PREPARERS or self._open or not self._inbox.empty():
                for kind, value in self._messages():
                    if kind == "began":
                        self._open[id(value)] = value
                        listener.began(value.task)
                    elif kind == "exhausted":
                        exhausted += 1
                    elif kind == "fatal":
                        raise value
                    elif (outcome := self._close_books(*value)) is not None:
                        over += 1
                        listener.over(outcome)
                self._watch()
                if self._drain.requested:
                    self._drain_step()
                listener.tick(self._snapshot(over))
        finally:
            self._shut_down()

    def _messages(self) -> Iterator[tuple[str, Any]]:
        deadline = time.monotonic() + _TICK_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                yield self._inbox.get(timeout=left)
            except queue.Empty:
                return
            if self._inbox.empty():
                return

    def _close_books(
        self, progress: Progress, status: _Status, stage: str, error: Exception | None
    ) -> Outcome | None:
        """A task is over, once; None when it was already."""
        with self._lock:
            if progress.over:
                return None
            progress.over = True
            idle = progress.reading == 0
        del self._open[id(progress)]
        self._feed.wake()
        if status != "done":
            progress.task.abandon(keep=status == "abandoned")
        if idle:
            progress.task.close()
        return Outcome(progress.task, status, stage, error)

    def _watch(self) -> None:
        """Leave hanging reads behind."""
        now = time.monotonic()
        for worker in list(self._workers):
            with self._lock:
                progress = worker.progress
                if progress is None:
                    continue
                since = worker.since
                if worker.kind == "prepare":
                    since = max(since, progress.task.step_since)
                if now - since < self._options.read_timeout_s:
                    continue
                worker.left_behind = True
            self._workers.remove(worker)
            if worker.kind == "prepare":
                self._feed.release()
            else:
                self._batcher.decoding(-1)
            if worker.buffer is not None:
                self._pool.forget(worker.buffer)
            self._launch(worker.kind)
            stage = progress.task.stage if worker.kind == "prepare" else "read"
            error = ReadError(
                progress.task.path,
                f"{stage} did not come to an end within {self._options.read_timeout_s:g} s.",
                "Check the disk or network it lies on, copy it to a local disk first with "
                "--stage DIR, or allow more with --slide-timeout S.",
            )
            self._inbox.put(("over", (progress, "failed", stage, error)))

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
                self._inbox.put(("over", (progress, "abandoned", "", None)))

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

    def _launch(self, kind: Literal["prepare", "decode"]) -> None:
        loop = self._prepare_loop if kind == "prepare" else self._decode_loop
        worker = _Worker(kind)
        worker.thread = threading.Thread(target=loop, args=(worker,), daemon=True, name=kind)
        self._workers.append(worker)
        worker.thread.start()

    def _shut_down(self) -> None:
        """End the threads; what is still open was cut short by an error and is abandoned."""
        left = list(self._open.values())
        with self._lock:
            for progress in left:
                progress.over = True
        self._feed.close()
        self._pool.close()
        self._batcher.close()
        self._to_publish.put(None)
        self._publisher.join()
        self._streams.join(_PATIENCE_S)
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(_PATIENCE_S)
        for progress in left:
            progress.task.abandon(keep=True)

    # ---- other threads -------------------------------------------------------------------------

    def _prepare_loop(self, worker: _Worker) -> None:
        while True:
            task = None
            with Guard(self._fatal):
                task = self._feed.take_task()
            if task is None:
                self._inbox.put(("exhausted", None))
                return
            progress = Progress(task, reading=1)
            self._inbox.put(("began", progress))
            views = None
            self._at(worker, progress)
            with Guard(lambda error, p=progress: self._failed(p, p.task.stage, error)):  # type: ignore[misc]
                views = task.prepare()
            if self._away(worker, progress):
                return
            if views is None:
                self._feed.release()
                continue
            progress.queue = [(view, job) for view in views for job in view.jobs]
            progress.jobs_left = len(progress.queue)
            progress.rows_left = sum(len(view.wanted(job.rows)) for view, job in progress.queue)
            if progress.queue:
                self._feed.add(progress)
            else:
                self._feed.release()
                progress.begun = True
                self._to_publish.put(progress)

    def _decode_loop(self, worker: _Worker) -> None:
        while (job := self._feed.next_job()) is not None:
            rows = np.asarray(job.job.rows, np.int64)
            buffer = self._pool.take(len(rows) * job.view.tile_px**2 * 3)
            if buffer is None:
                return
            with self._lock:
                dropped = job.progress.over
                if not dropped:
                    job.progress.begun = True
                    job.progress.reading += 1
            if dropped:
                self._pool.give(buffer)
                continue
            self._batcher.decoding(+1)
            worker.buffer = buffer
            chunk = None
            self._at(worker, job.progress)
            with Guard(lambda error, p=job.progress: self._failed(p, "read", error)):  # type: ignore[misc]
                chunk = self._decode(job, rows, buffer)
            if self._away(worker, job.progress):
                return
            if chunk is None or not chunk.left:
                self._pool.give(buffer)
            else:
                self._batcher.put(chunk)
            self._batcher.decoding(-1)
            if chunk is not None:
                self._settle(job.progress, len(job.view.wanted(rows)) - len(chunk.rows))

    def _decode(self, job: Job, rows: NDArray[np.int64], buffer: Buffer) -> Chunk:
        view = job.view
        out = buffer.tiles(len(rows), view.tile_px)
        tiles, status = self._read_job(view.slide, view.grid, job.job, out=out)
        wanted = job.progress.task.saw(view, rows, tiles, status)
        if view.missing is not None:
            wanted = view.missing[rows] if wanted is None else wanted & view.missing[rows]
        if wanted is not None:
            rows, status = rows[wanted], status[wanted]
            tiles[: len(rows)] = tiles[wanted]
            tiles = tiles[: len(rows)]
        return Chunk(job.progress, view, rows, tiles, status, buffer, self._pool)

    def _at(self, worker: _Worker, progress: Progress) -> None:
        with self._lock:
            worker.since, worker.progress = time.monotonic(), progress

    def _away(self, worker: _Worker, progress: Progress) -> bool:
        """The worker has come back from foreign code; true if it was given up meanwhile."""
        with self._lock:
            worker.progress = None
            progress.reading -= 1
            close = progress.over and progress.reading == 0
        if close:
            progress.task.close()
        return worker.left_behind

    def _land(self, part: Part, features: dict[int, NDArray[np.float32]]) -> None:
        """Rows of one slide have come back from the device."""
        progress = part.progress
        if progress.over:
            return
        with Guard(lambda error: self._failed(progress, "embed", error)):
            for index, rows in features.items():
                part.view.sinks[index].put(part.rows, rows, part.status)
            self._settle(progress, len(part.rows))

    def _settle(self, progress: Progress, rows: int) -> None:
        """So many rows are in their sinks, or were left out by the task."""
        with self._lock:
            progress.rows_left -= rows
            whole = rows > 0 and progress.rows_left == 0
        if whole:
            self._to_publish.put(progress)

    def _publish_loop(self) -> None:
        while (progress := self._to_publish.get()) is not None:
            if progress.over:
                continue
            with Guard(lambda error, p=progress: self._failed(p, "publish", error)):  # type: ignore[misc]
                progress.task.finish()
                self._inbox.put(("over", (progress, "done", "", None)))

    def _failed(self, progress: Progress, stage: str, error: Exception) -> None:
        if isinstance(error, OutputError):
            self._fatal(error)
        else:
            self._inbox.put(("over", (progress, "failed", stage, error)))

    def _fatal(self, error: Exception) -> None:
        if not isinstance(error, WsipipeError):
            wrapped = EncoderError(
                "",
                f"the model failed: {type(error).__name__}: {error}",
                "Finished slides are whole; after mending the model the same command goes on.",
            )
            wrapped.__cause__ = error
            error = wrapped
        self._inbox.put(("fatal", error))
