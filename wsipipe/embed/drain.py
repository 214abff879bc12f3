"""Stopping on request: the first signal drains, a Ctrl-C after it ends at once.

A batch scheduler sends SIGTERM (preemption, `docker stop`) or SIGUSR1 (time limit ahead); a person
presses Ctrl-C. Each means: begin nothing new, finish what fits into the grace time, publish only
what is whole, end with code 75 so that the scheduler runs the same command again.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

__all__ = ["Drain"]

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


class Drain:
    """Remembers the first request to stop.

    Installing handlers is the first act of a command, before heavy imports: a signal that arrives
    while torch loads must not be lost, and as process 1 of a container an unhandled SIGTERM is
    ignored by the kernel.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.since = 0.0
        self._former: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once something asked to stop."""
        return self.signal_name is not None

    def request(self, name: str) -> None:
        """Ask to stop; the first request counts."""
        if self.signal_name is None:
            self.signal_name, self.since = name, time.monotonic()

    def install(self) -> Drain:
        """Handle the signals from now on (main thread only); returns itself."""
        for name in _SIGNALS:
            number = getattr(signal, name)
            self._former[number] = signal.signal(number, self._handle)
        return self

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def __enter__(self) -> Drain:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.requested:
            # Nothing under a final name is ever partial, so there is nothing to tidy up first.
            os._exit(130)
        self.request(name)
