"""What callers hand in, checked before it is computed with: odd values end in a sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real

from wsipipe.errors import ConfigError

__all__ = ["check_level", "check_mpp", "check_whole"]


def check_mpp(mpp: object) -> None:
    """Refuse what is no resolution.

    Raises:
        ConfigError: Not a finite number above 0.
    """
    if not isinstance(mpp, bool) and isinstance(mpp, Real):
        value = float(mpp)
        if math.isfinite(value) and value > 0:
            return
    raise ConfigError(f"mpp is {mpp!r}.", "Give µm per pixel, a number above 0.")


def check_whole(**values: object) -> None:
    """Refuse coordinates and sizes that are no whole numbers.

    Raises:
        ConfigError: One is not an integer.
    """
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{name} is {value!r}.", "Give a whole number of pixels.")


def check_level(level: object, count: int) -> None:
    """Refuse a level that the slide has not.

    Raises:
        ConfigError: Not an index in [0, count).
    """
    if not isinstance(level, Integral) or not 0 <= int(level) < count:
        raise ConfigError(
            f"level {level!r} of a slide with {count}.", f"Choose one from 0 to {count - 1}."
        )
