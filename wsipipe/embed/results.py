"""The far side of the engine: rows go to their slide's sinks, a whole slide is published.

Publishing has a thread of its own, so that compressing, fsync and rename stall nobody.
"""

from __future__ import annotations

import queue
import threading

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.guard import Guard
from wsipipe.embed.mailbox import Mailbox, Over
from wsipipe.embed.trace import Trace
from wsipipe.embed.work import Part, Progress

__all__ = ["Results"]


class Results:
    """Counts the rows that are in; runs `Task.finish` when a slide's last one is.

    Args:
        lock: Guards every `Progress`.
    """

    def __init__(self, mailbox: Mailbox, lock: threading.Lock, trace: Trace) -> None:
        self._mailbox, self._lock, self._trace = mailbox, lock, trace
        self._whole: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._publish_loop, daemon=True, name="publish")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Publish what is whole, then end."""
        self._whole.put(None)
        self._thread.join()

    def land(self, part: Part, features: dict[int, NDArray[np.float32]]) -> None:
        """Rows of one slide have come back from the device; called by its streams."""
        progress = part.progress
        if progress.over:
            return
        with (
            Guard(lambda error: self._mailbox.failed(progress, "embed", error)),
            self._trace.span("keep rows", slide=progress.task.slide_id, rows=len(part.rows)),
        ):
            for index, rows in features.items():
                part.view.sinks[index].put(part.rows, rows, part.status)
            self.settle(progress, len(part.rows))

    def settle(self, progress: Progress, rows: int) -> None:
        """So many rows are in their sinks, or were left out by the task."""
        with self._lock:
            progress.rows_left -= rows
            whole = rows > 0 and progress.rows_left == 0 and progress.accompanied
        if whole:
            self._whole.put(progress)

    def accompanied(self, progress: Progress) -> None:
        """`Task.accompany` has come back."""
        with self._lock:
            progress.accompanied = True
            whole = progress.rows_left == 0
        if whole:
            self._whole.put(progress)

    def _publish_loop(self) -> None:
        while (progress := self._whole.get()) is not None:
            if progress.over:
                continue
            with (
                Guard(lambda error, p=progress: self._mailbox.failed(p, "publish", error)),  # type: ignore[misc]
                self._trace.span("publish", slide=progress.task.slide_id),
            ):
                progress.task.finish()
                self._mailbox.put(Over(progress, "done"))
