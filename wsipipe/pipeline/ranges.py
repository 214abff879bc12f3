"""One slide over several devices, by ranges of its rows.

    slide ─┬─▶ rows 1 of 3 ─▶ .partial/…-1-3.whole.part ─┐
           ├─▶ rows 2 of 3 ─▶ .partial/…-2-3.whole.part ─┼─▶ the slide itself: no row is
           └─▶ rows 3 of 3 ─▶ .partial/…-3-3.whole.part ─┘   missing, it is published

Each range is a piece of work with a lease of its own, so any process takes any of them, a killed
one's is taken over, and whoever finds all of them made takes the slide, whose partial file gathers
what lies there. Each process finds the tissue and lays the grid for itself: they come out the same,
and to wait for one another would take longer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from wsipipe.errors import SlideError
from wsipipe.pipeline.planning import SlidePlan
from wsipipe.slide.files import is_url, slide_files
from wsipipe.store import RowRange

__all__ = ["MIN_RANGE_BYTES", "count_ranges", "cut_up", "ranges_of", "size_on_disk"]

# Less (some 5,000 tiles of a scan at 40x) is embedded before another process has found the tissue.
MIN_RANGE_BYTES = 256 << 20
# A slide is cut where it is more than this part of a device's share of the run.
_OF_A_SHARE = 0.5


def count_ranges(plans: Sequence[SlidePlan], devices: int) -> dict[str, int]:
    """Slide id -> into how many ranges it is cut, for slides that are.

    Cut are those so large that a device would still be at one when the others are out of work.
    """
    sizes = {p.entry.slide_id: size_on_disk(p.entry.path) for p in plans if p.todo}
    enough = max(1.0, _OF_A_SHARE * sum(sizes.values()) / devices)
    counts = {
        slide_id: min(devices, math.ceil(size / enough), size // MIN_RANGE_BYTES)
        for slide_id, size in sizes.items()
    }
    return {slide_id: count for slide_id, count in counts.items() if count > 1}


def cut_up(plans: Sequence[SlidePlan], counts: Mapping[str, int]) -> Iterator[SlidePlan]:
    """The plans, before each slide that is cut those of its ranges."""
    for plan in plans:
        count = counts.get(plan.entry.slide_id, 1)
        if count == 1 or plan.ranges > 1:
            yield plan
            continue
        yield from ranges_of(plan, count)
        yield replace(plan, ranges=count)


def ranges_of(plan: SlidePlan, count: int) -> list[SlidePlan]:
    """The plans of a slide's `count` ranges."""
    numbers = range(1, count + 1)
    return [replace(plan, rows=RowRange(number, count), ranges=count) for number in numbers]


def size_on_disk(path: str | Path) -> int:
    """Bytes of a slide's files; 0 where it is not on a disk or cannot be looked at."""
    if is_url(path):
        return 0
    path = Path(path)
    with suppress(OSError, SlideError):
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        if path.suffix.lower() == ".mrxs":
            return sum(file.stat().st_size for file in slide_files(path))
        return path.stat().st_size
    return 0
