"""An exception in a thread becomes a message, and the thread lives on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

__all__ = ["Guard"]


class Guard:
    """`with Guard(report):` hands any `Exception` raised inside to `report`, once, and goes on.

    The one place where everything is caught: a bug in a reader or a plugin may cost a slide, which
    is recorded with its traceback, but never a thread that others wait for.
    """

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            self._report(error)
            return True
        return False
