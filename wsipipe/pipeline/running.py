"""A run in progress: encoders made, engine fed, every outcome recorded."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.embed.engine import Engine, EngineOptions, Listener, Outcome, Snapshot
from wsipipe.embed.forward import prepare_torch
from wsipipe.embed.resources import Threads, available_cpus, share_threads
from wsipipe.embed.tiles import read_job
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import Task
from wsipipe.encoders import Encoder, create_encoder
from wsipipe.errors import WsipipeError
from wsipipe.pipeline.planning import SlidePlan
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunResult
from wsipipe.pipeline.slide_task import RunContext, SlideTask
from wsipipe.pipeline.targets import Target
from wsipipe.store import EventLog, Records, SlideResult

__all__ = ["RunState"]

# Where the ramp of batch sizes starts and how far it may go.
_RAMP = {"cpu": (8, 64), "cuda": (64, 1024)}
_FLUSH_CHECK_S = 5.0


class _Strict(Exception):
    """`--strict`: the first failed slide ends the run."""


class RunState(Listener):
    """Runs the slides of a plan and keeps the account.

    Args:
        drain: Asked whether to stop.
        reporter: Told what happens.
    """

    def __init__(
        self,
        settings: ExtractSettings,
        targets: Sequence[Target],
        plans: Sequence[SlidePlan],
        drain: Drain,
        reporter: Reporter,
    ) -> None:
        self._settings, self._targets, self._plans = settings, targets, plans
        self._drain, self._reporter = drain, reporter
        self._records = Records(settings.out)
        self._status: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._open: dict[int, SlideTask] = {}
        self._encoders: list[Encoder] = []
        self._threads: Threads | None = None
        self._tuner = BatchTuner(1)
        self._tiles = 0
        self._flushed = time.monotonic()
        self._last: Snapshot | None = None

    # ---- running -------------------------------------------------------------------------------

    def run(self) -> None:
        """Take up what is to do.

        Raises:
            OutputError, EncoderError: The run cannot go on.
        """
        with EventLog(self._settings.out) as self._events:
            todo = self._take_stock()
            self._events.log("run_begun", slides=len(self._plans), todo=len(todo))
            try:
                if todo and not self._drain.requested:
                    self._make_encoders()
                    self._engine().run(self._tasks(todo), self)
            except _Strict:
                self._reporter.say("Stopped at the first failed slide (--strict).")
            finally:
                self._log_end()

    def _take_stock(self) -> list[SlidePlan]:
        """Settle what needs no work; returns the rest."""
        todo = []
        for plan in self._plans:
            slide_id = plan.entry.slide_id
            if plan.error is not None:
                record = self._records.begin(slide_id, plan.entry.path, [])
                self._record_failure(record, plan.todo, plan.error, "plan", 0.0)
                if self._settings.strict:
                    return []
            elif plan.todo:
                todo.append(plan)
            else:
                self._status[slide_id] = self._former_status(plan)
        return todo

    def _former_status(self, plan: SlidePlan) -> str:
        record = self._records.read(plan.entry.slide_id)
        results = record.results if record is not None else {}
        known = [results.get(target.folder) for target in plan.done]
        return "empty" if all(r is not None and r.status == "empty" for r in known) else "done"

    def _make_encoders(self) -> None:
        settings = self._settings
        precision: str = settings.precision
        if settings.deterministic and precision == "auto":
            precision = "fp32"
        self._encoders = [
            create_encoder(
                target.name, weights=settings.weights, device=settings.device, precision=precision
            )
            for target in self._targets
        ]
        kind = self._encoders[0].device.type
        workers = settings.workers if isinstance(settings.workers, int) else None
        self._threads = share_threads(available_cpus(), on_cpu=kind == "cpu", workers=workers)
        intra = 1 if settings.deterministic else self._threads.intra
        prepare_torch(intra, deterministic=settings.deterministic)
        first, limit = _RAMP.get(kind, _RAMP["cuda"])
        fixed = settings.batch_size
        self._tuner = BatchTuner(fixed) if isinstance(fixed, int) else BatchTuner(first, limit)

    def _engine(self) -> Engine:
        assert self._threads is not None
        settings = self._settings
        options = EngineOptions(
            threads=self._threads,
            read_timeout_s=settings.slide_timeout,
            grace_s=settings.grace,
            on_gpu=self._encoders[0].device.type == "cuda",
            one_by_one=settings.deterministic,
        )
        return Engine(self._encoders, read_job, self._tuner, options, self._drain)

    def _tasks(self, plans: Sequence[SlidePlan]) -> Iterator[Task]:
        context = RunContext(
            self._settings, self._targets, self._encoders, self._records, self._tuner
        )
        for plan in plans:
            yield SlideTask(plan, context)

    # ---- listening to the engine ---------------------------------------------------------------

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
        if outcome.status == "done":
            empty = all(result.status == "empty" for result in task.results)
            self._settle(task, "empty" if empty else "done")
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
            self._record_failure(record, left, outcome.error, outcome.stage, task.seconds)
            if self._settings.strict:
                raise _Strict

    def tick(self, snapshot: Snapshot) -> None:
        """Flush waiting rows, report."""
        self._last = snapshot
        if time.monotonic() - self._flushed > _FLUSH_CHECK_S:
            self._flushed = time.monotonic()
            for task in self._open.values():
                task.flush_if_due()
        self._reporter.tick(snapshot)

    def _settle(self, task: SlideTask, status: str) -> None:
        self._status[task.slide_id] = status
        self._tiles += task.tiles
        bad = sum(result.bad_tiles for result in task.results)
        self._events.log(
            "slide_done",
            slide_id=task.slide_id,
            status=status,
            tiles=task.tiles,
            bad_tiles=bad,
            seconds=round(task.seconds, 3),
            timings=task.timings,
        )
        detail = f"{task.tiles} tiles" + (f", {bad} unreadable" if bad else "")
        self._reporter.slide_over(task.slide_id, status, detail)

    def _record_failure(
        self,
        record: Any,
        targets: Sequence[Target],
        error: Exception,
        stage: str,
        seconds: float,
    ) -> None:
        results = [
            SlideResult.failure(target.folder, error, stage=stage, seconds=round(seconds, 3))
            for target in targets
        ]
        facts: dict[str, Any] = {}
        if not isinstance(error, WsipipeError):
            facts["traceback"] = "".join(traceback.format_exception(error))
        self._records.finish(record, results, state="failed", **facts)
        slide_id = record.slide_id
        self._status[slide_id] = "failed"
        known = isinstance(error, WsipipeError)
        self._reasons[slide_id] = str(error) if known else f"{type(error).__name__}: {error}"
        self._events.log("slide_failed", slide_id=slide_id, stage=stage, error=str(error))
        self._reporter.slide_over(slide_id, "failed", self._reasons[slide_id])

    def _log_end(self) -> None:
        last = self._last
        facts = {} if last is None else {
            "device_waited": round(last.waiting, 4),
            "batch_size": last.batch_size,
            "backed_off": self._tuner.backed_off,
        }  # fmt: skip
        self._events.log("run_over", tiles=self._tiles, signal=self._drain.signal_name, **facts)

    # ---- the account ---------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What `run.yaml` says beside the settings."""
        if not self._encoders:
            return {}
        threads = self._threads
        assert threads is not None
        return {
            "resolved": {
                "device": str(self._encoders[0].device),
                "precision": {e.card.name: e.precision for e in self._encoders},
                "batch_size": self._tuner.size,
                "decode_threads": threads.decode,
                "streams": threads.streams,
                "threads_per_stream": threads.intra,
            }
        }

    def result(self, seconds: float) -> RunResult:
        """How the run ended."""
        by: dict[str, list[str]] = {"done": [], "empty": [], "failed": [], "pending": []}
        for plan in self._plans:
            slide_id = plan.entry.slide_id
            by[self._status.get(slide_id, "pending")].append(slide_id)
        return RunResult(
            out=self._settings.out,
            reasons=dict(self._reasons),
            tiles=self._tiles,
            seconds=seconds,
            **{name: tuple(ids) for name, ids in by.items()},
        )
