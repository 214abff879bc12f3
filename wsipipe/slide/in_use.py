"""Closing what other threads may be using: the last of them lets go."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["InUse"]


class InUse:
    """Counts who is inside, and calls `release` once, when it is closed and nobody is.

    Args:
        release: Lets go of what is used; called by whoever is the last.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._closed = self._released = False
        self._lock = threading.Lock()
        # One entry for each who is inside. It grows and shrinks without the lock, as both are
        # atomic: this happens for every block that is read.
        self._inside: deque[None] = deque()

    def enter(self) -> bool:
        """Go in, to come out by `leave`; false if it is closed."""
        self._inside.append(None)  # before the look, so that `close` sees it or is seen
        if self._closed:
            self.leave()
            return False
        return True

    def leave(self) -> None:
        """Come out."""
        self._inside.pop()
        if self._closed:
            self._release_when_idle()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True
        self._release_when_idle()

    def _release_when_idle(self) -> None:
        with self._lock:
            if self._inside or self._released:
                return
            self._released = True
        self._release()
