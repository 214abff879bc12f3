"""The account of a run: every outcome recorded as it happens, folded into a result at the end."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wsipipe.embed.engine import Listener, Outcome, Snapshot
from wsipipe.embed.work import Task
from wsipipe.errors import WsipipeError
from wsipipe.pipeline.planning import SlidePlan, feature_path
from wsipipe.pipeline.range_task import RangeTask
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunResult
from wsipipe.pipeline.slide_task import SlideTask
from wsipipe.pipeline.targets import Target
from wsipipe.store import (
    EventLog,
    Records,
    SlideRecord,
    SlideResult,
    TextFilter,
    result_of_file,
)

__all__ = ["Account", "StrictStop"]

_FLUSH_CHECK_S = 5.0
# Tissue and picture take a second or two, unless a slide has no coarse level to see them on.
_LONG_STEP_S = 20.0


class StrictStop(Exception):
    """`--strict`: the first failed slide ends the run."""


class Account(Listener):
    """Listens to the engine.

    Args:
        released: Told the key of each plan whose work is over, done or not.
        strict: Raise `StrictStop` at the first failed slide.
        texts: What is told of a failure passes it.
    """

    def __init__(
        self,
        records: Records,
        events: EventLog,
        reporter: Reporter,
        *,
        strict: bool,
        released: Callable[[str], None],
        texts: TextFilter | None = None,
    ) -> None:
        self._texts = texts or TextFilter()
        self._records, self._events, self._reporter = records, events, reporter
        self._strict, self._released = strict, released
        self._status: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._open: dict[int, SlideTask] = {}
        self._flushed = time.monotonic()
        self._said_long: set[str] = set()
        self.tiles = 0
        self.last: Snapshot | None = None

    # ---- without work --------------------------------------------------------------------------

    def done_before(self, plan: SlidePlan) -> None:
        """Nothing to do: the files are there. What no record says of them is recorded."""
        slide_id = plan.entry.slide_id
        statuses: set[str] = {status for status in plan.statuses if status}
        found = [
            result_of_file(target.folder, feature_path(self._records.out, target, slide_id))
            for target, status in zip(plan.done, plan.statuses, strict=True)
            if not status
        ]
        if found:
            statuses |= {result.status for result in found}
            self._records.settle(slide_id, str(plan.entry.path), found)
        self._status[slide_id] = "empty" if statuses == {"empty"} else "done"

    def failed_elsewhere(self, plan: SlidePlan) -> None:
        """Another process has tried this slide during this run, and failed."""
        record = self._records.read(plan.entry.slide_id)
        results = record.results.values() if record is not None else ()
        said = [f"{r.error} {r.remedy}" for r in results if r.status == "failed"]
        self._status[plan.entry.slide_id] = "failed"
        self._reasons[plan.entry.slide_id] = next(iter(said), "failed in another process")

    def refused(
        self, plan: SlidePlan, error: Exception, attempts: Sequence[dict[str, Any]] = ()
    ) -> None:
        """The slide is not taken up; with `attempts` that are not on its own record yet."""
        record = self._records.begin(plan.entry.slide_id, plan.entry.path, [])
        record.attempts[-1:-1] = attempts
        self._fail(record, plan.todo, error, "plan", 0.0)

    # ---- listening -----------------------------------------------------------------------------

    def began(self, task: Task) -> None:
        """Keep the task for periodic flushes."""
        assert isinstance(task, SlideTask)
        self._open[id(task)] = task
        self._events.log("slide_begun", slide_id=task.slide_id)

    def over(self, outcome: Outcome) -> None:
        """Record how a slide ended."""
        task = outcome.task
        assert isinstance(task, SlideTask)
        self._open.pop(id(task), None)
        if isinstance(task, RangeTask):
            task.end_record(outcome.status)
        if isinstance(task, RangeTask) and outcome.status != "failed":
            self._events.log(
                f"range_{outcome.status}",
                slide_id=task.slide_id,
                rows=str(task.plan.rows),
                seconds=round(task.seconds, 3),
                timings=task.timings,
            )
        elif outcome.status == "done":
            self._done(task)
        elif outcome.status == "abandoned":
            if task.record is not None:
                self._records.finish(task.record, [], state="abandoned")
            self._events.log("slide_abandoned", slide_id=task.slide_id)
            self._reporter.slide_over(task.slide_id, "abandoned", "")
        else:
            assert outcome.error is not None
            record = task.record or self._records.begin(task.slide_id, task.path, [])
            made = {result.encoder for result in task.results}
            left = [target for target in task.plan.todo if target.folder not in made]
            error = task.said_of_the_slide(outcome.error)
            self._fail(record, left, error, outcome.stage, task.seconds)
        self._released(task.plan.key)
        if outcome.status == "failed" and self._strict:
            raise StrictStop

    def broke(self, error: Exception) -> None:
        """A bug ends the run: held against the slides in hand, so that it is on record."""
        for task in self._open.values():
            if isinstance(task, RangeTask):
                task.end_record("failed")
            record = task.record or self._records.begin(task.slide_id, task.path, [])
            made = {result.encoder for result in task.results}
            left = [target for target in task.plan.todo if target.folder not in made]
            self._fail(record, left, error, task.stage, task.seconds)
            self._released(task.plan.key)
        self._open.clear()

    def tick(self, snapshot: Snapshot) -> None:
        """Flush rows that have waited, report."""
        self.last = snapshot
        self._say_what_takes_long()
        if time.monotonic() - self._flushed > _FLUSH_CHECK_S:
            self._flushed = time.monotonic()
            for task in self._open.values():
                task.flush_if_due()
        self._reporter.tick(snapshot)

    def _say_what_takes_long(self) -> None:
        for task in self._open.values():
            if (
                task.stage in ("tissue", "thumbnail")
                and task.stage not in task.timings  # it is not over yet
                and task.slide_id not in self._said_long
                and time.monotonic() - task.step_since > _LONG_STEP_S
            ):
                self._said_long.add(task.slide_id)
                self._reporter.say(
                    f"{task.slide_id}: {task.stage} takes longer than {_LONG_STEP_S:g} s; a slide "
                    "without coarse levels is read whole for it."
                )

    def _done(self, task: SlideTask) -> None:
        status = "empty" if all(r.status == "empty" for r in task.results) else "done"
        self._status[task.slide_id] = status
        self.tiles += task.tiles
        bad = sum(result.bad_tiles for result in task.results)
        self._events.log(
            "slide_done",
            slide_id=task.slide_id,
            status=status,
            tiles=task.tiles,
            bad_tiles=bad,
            picture_bad_blocks=task.picture_bad,
            seconds=round(task.seconds, 3),
            timings=task.timings,
        )
        detail = f"{task.tiles} tiles" + (f", {bad} unreadable" if bad else "")
        self._reporter.slide_over(task.slide_id, status, detail)

    def _fail(
        self,
        record: SlideRecord,
        targets: Sequence[Target],
        error: Exception,
        stage: str,
        seconds: float,
    ) -> None:
        results = [
            SlideResult.failure(target.folder, error, stage=stage, seconds=round(seconds, 3))
            for target in targets
        ]
        known = isinstance(error, WsipipeError)
        facts = {} if known else {"traceback": "".join(traceback.format_exception(error))}
        self._records.finish(record, results, state="failed", **facts)
        slide_id = record.slide_id
        self._status[slide_id] = "failed"
        said = str(error) if known else f"{type(error).__name__}: {error}"
        self._reasons[slide_id] = self._texts.about(slide_id)(said)
        self._events.log("slide_failed", slide_id=slide_id, stage=stage, error=str(error))
        self._reporter.slide_over(slide_id, "failed", self._reasons[slide_id])

    # ---- the end -------------------------------------------------------------------------------

    def result(self, out: Path, plans: Sequence[SlidePlan], seconds: float) -> RunResult:
        """How the run ended."""
        by: dict[str, list[str]] = {"done": [], "empty": [], "failed": [], "pending": []}
        for plan in plans:
            slide_id = plan.entry.slide_id
            by[self._status.get(slide_id, "pending")].append(slide_id)
        ids: dict[str, Any] = {name: tuple(found) for name, found in by.items()}
        reasons = dict(self._reasons)
        return RunResult(out=out, reasons=reasons, tiles=self.tiles, seconds=seconds, **ids)
