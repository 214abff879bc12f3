"""How a run is watched: a bar on a terminal, one line every few seconds elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsipipe.pipeline.planning import SlidePlan
from wsipipe.pipeline.reporter import Reporter

if TYPE_CHECKING:
    from rich.progress import TaskID

    from wsipipe.embed.engine import Snapshot

__all__ = ["make_reporter"]

_LINE_S = 5.0  # between lines where there is no terminal
_WINDOW_S = 20.0  # over which the shown rate is taken


def make_reporter() -> Reporter:
    """A bar where stderr is a terminal, else lines."""
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Rate:
    """Tiles a second over the last seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def at(self, tiles: int) -> float:
        now = time.monotonic()
        self._marks.append((now, tiles))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()
        seconds = now - self._marks[0][0]
        return (tiles - self._marks[0][1]) / seconds if seconds > 0.5 else 0.0


class _Counts:
    """Slides of a run, and how long it will still take."""

    def __init__(self, plans: Sequence[SlidePlan]) -> None:
        self.total = sum(1 for plan in plans if plan.todo and plan.error is None)
        self.before = sum(1 for plan in plans if plan.done and not plan.todo)
        self.over = self.failed = 0
        self._tiles_over = 0

    def first_line(self) -> str:
        done = f", {self.before} done already" if self.before else ""
        return f"{self.total} slide{'s' if self.total != 1 else ''} to do{done}."

    def seconds_left(self, snapshot: Snapshot, rate: float) -> float | None:
        """From the mean size of the slides seen so far; None while nothing is known."""
        known = snapshot.tiles + snapshot.tiles_ahead
        begun = max(1, self.over)
        if rate <= 0 or not known or not self.over:
            return None
        left = max(0, self.total - self.over)
        return max(snapshot.tiles_ahead, left * snapshot.tiles / begun) / rate


def _describe(snapshot: Snapshot, rate: float, left: float | None) -> str:
    text = f"{rate:.0f} tiles/s, device waits on reading {snapshot.waiting:.0%}"
    if left is not None:
        text += f", about {_clock(left)} left"
    return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines(Reporter):
    def __init__(self) -> None:
        self._rate = _Rate()
        self._counts = _Counts(())
        self._next = time.monotonic() + _LINE_S

    def planned(self, plans: Sequence[SlidePlan]) -> None:
        self._counts = _Counts(plans)
        self.say(self._counts.first_line())

    def say(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()

    def slide_over(self, slide_id: str, status: str, detail: str) -> None:
        self._counts.over += 1
        if status == "failed":
            self._counts.failed += 1
            self.say(f"FAILED {slide_id}: {detail}")

    def tick(self, snapshot: Snapshot) -> None:
        rate = self._rate.at(snapshot.tiles)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_S
        counts = self._counts
        left = counts.seconds_left(snapshot, rate)
        self.say(
            f"slides {counts.over}/{counts.total}"
            + (f" ({counts.failed} failed)" if counts.failed else "")
            + f", tiles {snapshot.tiles}: {_describe(snapshot, rate, left)}"
        )


class _Bar(Reporter):
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._rate = _Rate()
        self._counts = _Counts(())
        self._slides: TaskID | None = None
        self._tiles: TaskID | None = None

    def planned(self, plans: Sequence[SlidePlan]) -> None:
        self._counts = _Counts(plans)
        self.say(self._counts.first_line())
        if self._counts.total:
            self._slides = self._progress.add_task("slides", total=self._counts.total, note="")
            self._tiles = self._progress.add_task("tiles", total=None, note="starting")
            self._progress.start()

    def say(self, message: str) -> None:
        self._progress.console.print(message, markup=False, highlight=False)

    def slide_over(self, slide_id: str, status: str, detail: str) -> None:
        counts = self._counts
        counts.over += 1
        if status == "failed":
            counts.failed += 1
            self.say(f"FAILED {slide_id}: {detail}")
        note = f"{counts.failed} failed" if counts.failed else ""
        if self._slides is not None:
            self._progress.update(self._slides, completed=counts.over, note=note)

    def tick(self, snapshot: Snapshot) -> None:
        if self._tiles is None:
            return
        rate = self._rate.at(snapshot.tiles)
        note = _describe(snapshot, rate, self._counts.seconds_left(snapshot, rate))
        total = snapshot.tiles + snapshot.tiles_ahead
        self._progress.update(self._tiles, completed=snapshot.tiles, total=total, note=note)

    def closed(self) -> None:
        self._progress.stop()
