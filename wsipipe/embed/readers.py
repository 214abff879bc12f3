"""The reading side of the engine: threads that prepare slides and decode tiles, and may hang.

A read that takes longer than the time-out fails its slide; a thread cannot be ended in Python, so
it is left behind with its buffer and replaced.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.batcher import Batcher
from wsipipe.embed.buffers import Buffer, BufferPool
from wsipipe.embed.feed import Feed, Job
from wsipipe.embed.guard import Guard
from wsipipe.embed.mailbox import Began, Exhausted, Mailbox, Over
from wsipipe.embed.results import Results
from wsipipe.embed.trace import Trace
from wsipipe.embed.work import Chunk, Progress, View
from wsipipe.errors import ReadError

__all__ = ["PREPARERS", "Readers"]

PREPARERS = 2  # slides that are opened and segmented at the same time

_Kind = Literal["prepare", "decode"]


@dataclass(eq=False)
class _Worker:
    """A thread that may hang in foreign code, and what it is at; guarded by the lock."""

    kind: _Kind
    progress: Progress | None = None
    buffer: Buffer | None = None
    since: float = 0.0
    fed: bool = False  # what it prepared is in the feed
    left_behind: bool = False
    thread: threading.Thread | None = None


class Readers:
    """Tasks from the feed become views, read jobs become chunks in the batcher.

    Args:
        read_job: As `wsipipe.embed.tiles.read_job`.
        lock: Guards every `Progress`.
        timeout_s: Longest time that one read, or one step of a preparation, may take.
    """

    def __init__(
        self,
        read_job: Callable[..., tuple[Any, Any]],
        feed: Feed,
        pool: BufferPool,
        batcher: Batcher,
        results: Results,
        mailbox: Mailbox,
        lock: threading.Lock,
        *,
        timeout_s: float,
        trace: Trace,
    ) -> None:
        self._read_job, self._feed, self._pool = read_job, feed, pool
        self._batcher, self._results, self._mailbox = batcher, results, mailbox
        self._lock, self._timeout_s, self._trace = lock, timeout_s, trace
        self._workers: list[_Worker] = []
        self._numbers = {"prepare": itertools.count(1), "decode": itertools.count(1)}

    def start(self, decoders: int) -> None:
        """Begin."""
        for _ in range(PREPARERS):
            self._launch("prepare")
        for _ in range(decoders):
            self._launch("decode")

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, at most `timeout` seconds: some may hang."""
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, deadline - time.monotonic()))

    def watch(self) -> None:
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
                if now - since < self._timeout_s:
                    continue
                worker.left_behind = True
            self._workers.remove(worker)
            if worker.kind == "decode":
                self._batcher.decoding(-1)
            elif not worker.fed:
                self._feed.release()
            if worker.buffer is not None:
                self._pool.forget(worker.buffer)
            self._launch(worker.kind)
            stage = progress.task.stage if worker.kind == "prepare" else "read"
            error = ReadError(
                progress.task.path,
                f"{stage} did not come to an end within {self._timeout_s:g} s.",
                "Check the disk or network it lies on, copy it to a local disk first with "
                "--stage DIR, or allow more with --slide-timeout S.",
            )
            self._mailbox.put(Over(progress, "failed", stage, error))

    def _launch(self, kind: _Kind) -> None:
        loop = self._prepare_loop if kind == "prepare" else self._decode_loop
        worker = _Worker(kind)
        name = f"{kind} {next(self._numbers[kind])}"
        worker.thread = threading.Thread(target=loop, args=(worker,), daemon=True, name=name)
        self._workers.append(worker)
        worker.thread.start()

    # ---- preparing -----------------------------------------------------------------------------

    def _prepare_loop(self, worker: _Worker) -> None:
        while True:
            task = None
            with Guard(self._mailbox.fatal), self._trace.span("wait for a free place"):
                task = self._feed.take_task()
            if task is None:
                self._mailbox.put(Exhausted())
                return
            progress = Progress(task, reading=1)
            self._mailbox.put(Began(progress))
            views = None
            self._at(worker, progress)
            with (
                Guard(lambda error, p=progress: self._mailbox.failed(p, p.task.stage, error)),  # type: ignore[misc]
                self._trace.span("prepare", slide=task.slide_id),
            ):
                views = task.prepare()
            if views is None:
                if self._away(worker, progress):
                    return
                self._feed.release()
                continue
            if not self._hand_on(worker, progress, views):
                self._away(worker, progress)
                return
            done = False
            with (
                Guard(lambda error, p=progress: self._mailbox.failed(p, p.task.stage, error)),  # type: ignore[misc]
                self._trace.span("accompany", slide=task.slide_id),
            ):
                task.accompany()
                done = True
            if self._away(worker, progress):
                return
            if done:
                self._results.accompanied(progress)

    def _hand_on(self, worker: _Worker, progress: Progress, views: Sequence[View]) -> bool:
        """Decoders may read the slide from now on; false if the worker was given up meanwhile."""
        progress.queue = [(view, job) for view in views for job in view.jobs]
        # Views that share what they decode are read together, down the slide.
        progress.queue.sort(key=lambda pair: pair[1].index)
        progress.jobs_left = len(progress.queue)
        progress.rows_left = sum(len(view.wanted(job.rows)) for view, job in progress.queue)
        progress.begun = not progress.queue
        with self._lock:
            if worker.left_behind:
                return False
            worker.fed = True
        if progress.queue:
            self._feed.add(progress)
        else:
            self._feed.release()
        return True

    # ---- decoding ------------------------------------------------------------------------------

    def _next(self) -> Job | None:
        with self._trace.span("wait for a slide"):
            return self._feed.next_job()

    def _decode_loop(self, worker: _Worker) -> None:
        while (job := self._next()) is not None:
            rows = np.asarray(job.job.rows, np.int64)
            with self._trace.span("wait for a buffer"):
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
            with (
                Guard(lambda error, p=job.progress: self._mailbox.failed(p, "read", error)),  # type: ignore[misc]
                self._trace.span("read", slide=job.progress.task.slide_id, tiles=len(rows)),
            ):
                chunk = self._decode(job, rows, buffer)
            if self._away(worker, job.progress):
                return
            if chunk is None or not chunk.left:
                self._pool.give(buffer)
            else:
                self._batcher.put(chunk)
            self._batcher.decoding(-1)
            if chunk is not None:
                left_out = len(job.view.wanted(rows)) - len(chunk.rows)
                with Guard(self._mailbox.fatal):
                    self._results.settle(job.progress, left_out)

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

    # ---- in foreign code -----------------------------------------------------------------------

    def _at(self, worker: _Worker, progress: Progress) -> None:
        with self._lock:
            worker.since, worker.progress, worker.fed = time.monotonic(), progress, False

    def _away(self, worker: _Worker, progress: Progress) -> bool:
        """The worker has come back from foreign code; true if it was given up meanwhile."""
        with self._lock:
            worker.progress = None
            progress.reading -= 1
            close = progress.over and progress.reading == 0
        if close:
            progress.task.close()
        return worker.left_behind
