"""What callers hand in, checked before it is computed with: odd values end in a sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real

from wsipipe.errors import ConfigError

__all__ = ["as_whole", "check_level", "check_mpp", "check_ratios"]


def check_mpp(mpp: object) -> None:
    """Refuse what is no resolution.

    Raises:
        ConfigError: Not a finite number above 0.
    """
    if not _is_number(mpp, above=0):
        raise ConfigError(f"mpp is {mpp!r}.", "Give µm per pixel, a number above 0.")


def check_ratios(mpp_tolerance: object, max_upsample: object) -> None:
    """Refuse what says nothing about how far a level may be from the target resolution.

    Raises:
        ConfigError: Not a finite number in [0, 1), or not one of 1 or more.
    """
    if mpp_tolerance != 0 and not _is_number(mpp_tolerance, above=0, below=1):
        raise ConfigError(
            f"An mpp tolerance of {mpp_tolerance!r} is not possible.", "Give 0 <= tolerance < 1."
        )
    if max_upsample != 1 and not _is_number(max_upsample, above=1):
        raise ConfigError(
            f"A largest up-sampling of {max_upsample!r} is not possible.",
            "Give a number, 1 or more.",
        )


def _is_number(value: object, *, above: float, below: float = math.inf) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and above < float(value) < below


def as_whole(**values: object) -> tuple[int, ...]:
    """Coordinates and sizes as Python's own integers: NumPy's wrap around in exact arithmetic.

    Raises:
        ConfigError: One is not an integer.
    """
    found = []
    for name, value in values.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{name} is {value!r}.", "Give a whole number.")
        found.append(int(value))
    return tuple(found)


def check_level(level: object, count: int) -> None:
    """Refuse a level that the slide has not.

    Raises:
        ConfigError: Not an index in [0, count).
    """
    if not isinstance(level, Integral) or not 0 <= int(level) < count:
        raise ConfigError(
            f"level {level!r} of a slide with {count}.", f"Choose one from 0 to {count - 1}."
        )
