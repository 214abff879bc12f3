"""Prepared slides waiting to be read, a few ahead, and their read jobs in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wsipipe.embed.work import Progress, Task, View

__all__ = ["Feed", "Job"]


@dataclass(frozen=True, eq=False)
class Job:
    """One read: `job` of `view` of the slide that `progress` accounts for."""

    progress: Progress
    view: View
    job: Any


class Feed:
    """Between preparers and decoders.

    Args:
        look_ahead: Slides that may be prepared, or in preparation, before their last read job is
            handed out. Small slides need several, or decoders would wait for tissue detection.
    """

    source: Iterator[Task]

    def __init__(self, look_ahead: int) -> None:
        self._slots = look_ahead
        self._ready: deque[Progress] = deque()
        self._changed = threading.Condition()
        self._taking = threading.Lock()
        self._stopped = False
        self._preparing = 0
        self._closed = False

    def take_task(self) -> Task | None:
        """The next task; waits for a free slot; None when there is none or the run is stopping."""
        with self._changed:
            while self._slots <= 0 and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return None
            self._slots -= 1
            self._preparing += 1
        with self._taking:
            task = None if self._stopped else next(self.source, None)
        if task is None:
            self.stop_taking()
            self.release()
        return task

    def add(self, progress: Progress) -> None:
        """A prepared slide with read jobs."""
        with self._changed:
            self._preparing -= 1
            self._ready.append(progress)
            self._changed.notify_all()

    def release(self) -> None:
        """A taken task needs no reading: its slot is free."""
        with self._changed:
            self._preparing -= 1
            self._slots += 1
            self._changed.notify_all()

    def next_job(self) -> Job | None:
        """The next read job; waits for one; None when no more will come."""
        with self._changed:
            while True:
                while self._ready:
                    progress = self._ready[0]
                    if progress.over or not progress.jobs_left:
                        self._ready.popleft()
                        self._slots += 1
                        self._changed.notify_all()
                        continue
                    view, job = progress.queue[len(progress.queue) - progress.jobs_left]
                    progress.jobs_left -= 1
                    return Job(progress, view, job)
                if self._closed or (self._stopped and not self._preparing):
                    return None
                self._changed.wait()

    def wake(self) -> None:
        """A slide was dropped (its `over` is set): its slot is free."""
        with self._changed:
            self._changed.notify_all()

    def stop_taking(self) -> None:
        """Take no further task; what is prepared is still read."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """End at once."""
        with self._changed:
            self._stopped = self._closed = True
            self._changed.notify_all()
