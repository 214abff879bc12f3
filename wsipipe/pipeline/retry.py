"""Storage that fails for a moment is asked again; a slide that is bad is not."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from wsipipe.errors import SlideOpenError

__all__ = ["patiently"]

_T = TypeVar("_T")
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ECONNRESET,
    errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO,
}
_TRIES = 3


def patiently(work: Callable[[], _T], *, pause_s: float = 1.0) -> _T:
    """Do `work`; where the system reports a passing fault of storage, wait and try again.

    Args:
        pause_s: First wait in seconds; doubled each time, with jitter so that many processes do
            not return at once.

    Raises:
        What the last of three tries raises.
    """
    for attempt in range(_TRIES - 1):
        try:
            return work()
        except (SlideOpenError, OSError) as error:
            if not _passes(error):
                raise
        time.sleep(pause_s * 2**attempt * random.uniform(0.5, 1.5))
    return work()


def _passes(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False
