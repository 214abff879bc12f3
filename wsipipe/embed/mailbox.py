"""What the threads tell the caller's thread, which alone keeps the books."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass

from wsipipe.embed.outcome import Status
from wsipipe.embed.work import Progress
from wsipipe.errors import ModelError, OutputError, WsipipeError

__all__ = ["Began", "Exhausted", "Mailbox", "Over"]


@dataclass(frozen=True)
class Began:
    """A task was taken up."""

    progress: Progress


@dataclass(frozen=True)
class Over:
    """A task seems to be over; the first such message counts."""

    progress: Progress
    status: Status
    stage: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Exhausted:
    """A preparing thread has ended: there are no more tasks."""


class Mailbox:
    """Messages from any thread to one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Began | Over | Exhausted | Exception] = queue.SimpleQueue()

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()

    def put(self, message: Began | Over | Exhausted) -> None:
        """Tell the caller's thread."""
        self._queue.put(message)

    def failed(self, progress: Progress, stage: str, error: Exception) -> None:
        """One slide's exception fails that slide; where nothing can be written, the run ends."""
        if isinstance(error, OutputError):
            self.fatal(error)
        else:
            self.put(Over(progress, "failed", stage, error))

    def fatal(self, error: Exception) -> None:
        """End the run."""
        if not isinstance(error, WsipipeError):
            wrapped = ModelError(
                "",
                f"the model failed: {type(error).__name__}: {error}",
                "Finished slides are whole; after mending the model the same command goes on.",
            )
            wrapped.__cause__ = error
            error = wrapped
        self._queue.put(error)

    def within(self, seconds: float) -> Iterator[Began | Over | Exhausted]:
        """Messages as they come, until none waits or the time is over.

        Raises:
            WsipipeError: The one given to `fatal`.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._queue.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(message, Exception):
                raise message
            yield message
            if self._queue.empty():
                return

    def rest(self) -> Iterator[Began | Over | Exhausted | Exception]:
        """What still waits, now that nobody writes."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._queue.get_nowait()
