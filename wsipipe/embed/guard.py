"""An exception in a thread becomes a message, and the thread lives on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

__all__ = ["Guard"]


class Guard:
    """`with Guard(report):` hands anything raised inside to `report`, once, and goes on.

    The one place where everything is caught: a bug in a reader or a plugin may cost a slide, which
    is recorded with its traceback, but never a thread that others wait for. Not for the main
    thread: what is no `Exception` (`sys.exit` in a plugin, a panic in a Rust extension) is handed
    on as a `RuntimeError`.
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
        if error is None:
            return False
        if not isinstance(error, Exception):
            stranger, error = error, RuntimeError(f"{type(error).__name__}: {error}")
            error.__cause__ = stranger
        self._report(error)
        return True
