"""Exact down-samples of a pyramid from its level sizes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from wsipipe.types import Level

__all__ = ["exact_levels", "round_half_up"]


def round_half_up(value: Fraction) -> int:
    """Nearest integer; halves go up (Python's `round` goes to even)."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def exact_levels(sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels with exact down-samples.

    Writers round level sizes, so the bare ratio of widths is off by up to a pixel over the whole
    width. Where an integer ratio explains both sizes, by floor or by ceiling, it is the ratio;
    otherwise the two ratios stand, one an axis.

    Args:
        sizes: (width, height) of each level, finest first.

    >>> [level.downsample[0] for level in exact_levels([(2220, 2967), (278, 371)])]
    [Fraction(1, 1), Fraction(8, 1)]
    """
    width0, height0 = sizes[0]
    levels = []
    for index, (width, height) in enumerate(sizes):
        ratio = max(1, round_half_up(Fraction(width0, width)))
        if _is_rounded(width0, ratio, width) and _is_rounded(height0, ratio, height):
            downsample = (Fraction(ratio), Fraction(ratio))
        else:
            downsample = (Fraction(width0, width), Fraction(height0, height))
        levels.append(Level(index, width, height, downsample))
    return tuple(levels)


def _is_rounded(full: int, ratio: int, size: int) -> bool:
    return size in (full // ratio, -(-full // ratio))
