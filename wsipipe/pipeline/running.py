"""A run in progress: encoders made, slides claimed, the engine fed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.embed.engine import Engine, EngineOptions
from wsipipe.embed.forward import keep_freed_memory, prepare_torch
from wsipipe.embed.resources import Threads, available_cpus, share_threads
from wsipipe.embed.tiles import read_job
from wsipipe.embed.trace import Trace
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import Task
from wsipipe.errors import SlideError, WsipipeError
from wsipipe.pipeline.account import Account, StrictStop
from wsipipe.pipeline.claims import Claims, failed_meanwhile, in_order
from wsipipe.pipeline.crash import LIMIT, CrashTrace, QuarantinedError, crashes, orphaned
from wsipipe.pipeline.planning import SlidePlan, feature_path, plan_slides
from wsipipe.pipeline.range_task import RangeTask
from wsipipe.pipeline.ranges import cut_up
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunResult
from wsipipe.pipeline.slide_task import PARTIAL_FOLDER, RunContext, SlideTask
from wsipipe.pipeline.targets import Target, wanted_identity
from wsipipe.slide.files import fingerprint
from wsipipe.slide.staging import Stage
from wsipipe.store import (
    EventLog,
    Leases,
    Records,
    SlideRecord,
    TextFilter,
    is_whole,
    range_records,
)
from wsipipe.store.events import utc_now

if TYPE_CHECKING:
    from wsipipe.encoders import Encoder

__all__ = ["RunState"]

LEASE_FOLDER = ".leases"
# In which the parent of several processes sees that one of them is dead, and leaves its trace.
_PARENT_S = 2.0
# Where the ramp of batch sizes starts and how far it may go.
_RAMP = {"cpu": (8, 32), "cuda": (64, 1024)}


class RunState:
    """Runs the slides of a plan.

    Args:
        drain: Asked whether to stop.
        reporter: Told what happens.
        texts: What is recorded and told passes it.
        ranges: Slide id -> into how many ranges its rows are cut, for slides that are.
    """

    def __init__(
        self,
        settings: ExtractSettings,
        targets: Sequence[Target],
        plans: Sequence[SlidePlan],
        drain: Drain,
        reporter: Reporter,
        texts: TextFilter | None = None,
        ranges: Mapping[str, int] | None = None,
    ) -> None:
        self._settings, self._targets, self._plans = settings, targets, plans
        self._ranges = ranges or {}
        self._drain = drain
        self._begun_utc = utc_now()
        self._records = Records(settings.out, texts=texts)
        self._range_records = range_records(settings.out, texts=texts)
        self._events = EventLog(settings.out, texts=texts)
        self._leases = Leases(settings.out / LEASE_FOLDER) if settings.join else None
        self._stage = Stage(settings.stage) if settings.stage is not None else None
        self._claims: Claims | None = None
        self._encoders: list[Encoder] = []
        self._threads: Threads | None = None
        self._tuner = BatchTuner(1)
        self._trace = Trace(settings.profile, f"wsipipe {settings.device}")
        self._account = Account(
            self._records,
            self._events,
            reporter,
            strict=settings.strict,
            released=self._release,
            texts=texts,
        )

    def run(self) -> None:
        """Take up what is to do.

        Raises:
            OutputError, EncoderError: The run cannot go on.
        """
        self._events.log("run_begun", slides=len(self._plans))
        try:
            with CrashTrace(self._settings.out):
                self._run()
        except StrictStop:
            self._events.log("strict_stop")
        except WsipipeError:
            raise
        except Exception as error:
            self._account.broke(error)
            raise
        finally:
            self._log_end()
            self._events.close()
            if self._claims is not None:
                self._claims.close()
            if self._leases is not None:
                self._leases.close()
            if self._stage is not None:
                self._stage.close()
            self._trace.close()

    def _run(self) -> None:
        usual, suspects = self._take_stock()
        if not usual and not suspects:
            return
        with self._trace.span("load encoders"):
            self._make_encoders()
        self._embed(usual)
        if self._claims is not None:
            suspects += self._claims.put_off
        # Suspects one by one, after all others: what crashes then is to blame.
        for plan in suspects:
            self._embed([plan], alone=True)

    def _embed(self, plans: Sequence[SlidePlan], *, alone: bool = False) -> None:
        if plans and not self._drain.requested:
            self._engine().run(self._tasks(plans, alone=alone), self._account)

    def _take_stock(self) -> tuple[list[SlidePlan], list[SlidePlan]]:
        """Settle what needs no work; returns the rest, and what was in flight at a crash."""
        usual: list[SlidePlan] = []
        suspects: list[SlidePlan] = []
        for plan in self._plans:
            if plan.error is not None:
                self._refuse(plan, plan.error)
            elif not plan.todo:
                self._account.done_before(plan)
            else:
                died = self._crashes(plan)
                if died >= LIMIT:
                    self._refuse(plan, _quarantined(plan, died))
                else:
                    (suspects if died else usual).append(plan)
        return usual, suspects

    def _record(self, plan: SlidePlan) -> SlideRecord | None:
        records = self._records if plan.rows is None else self._range_records
        return records.read(plan.key)

    def _crashes(self, plan: SlidePlan) -> int:
        return crashes(self._settings.out, self._record(plan))

    def _refuse(self, plan: SlidePlan, error: Exception) -> None:
        self._account.refused(plan, error)
        if self._settings.strict:
            raise StrictStop

    # ---- the device ----------------------------------------------------------------------------

    def _make_encoders(self) -> None:
        if self._encoders:
            return
        # Only now: a run that finds all done needs no torch.
        from wsipipe.encoders import create_encoder

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
        keep_freed_memory()
        for encoder in self._encoders:
            encoder.run_side_by_side(self._threads.streams)
        first, limit = _RAMP.get(kind, _RAMP["cuda"])
        fixed = settings.batch_size
        if settings.compile:
            self._compile(fixed if isinstance(fixed, int) else first)
        self._tuner = BatchTuner(fixed) if isinstance(fixed, int) else BatchTuner(first, limit)

    def _compile(self, batch: int) -> None:
        from wsipipe.encoders.compiled import compile_encoder

        for encoder in self._encoders:
            with self._trace.span("compile", encoder=encoder.card.name):
                kept = compile_encoder(encoder, batch)
            self._events.log("compiled", encoder=encoder.card.name, kept=kept)

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
        return Engine(
            self._encoders, read_job, self._tuner, options, self._drain, trace=self._trace
        )

    # ---- the slides ----------------------------------------------------------------------------

    def _tasks(self, plans: Sequence[SlidePlan], *, alone: bool) -> Iterator[Task]:
        run = RunContext(
            self._settings,
            self._targets,
            self._encoders,
            self._records,
            self._tuner,
            self._stage,
            self._trace,
            self._range_records,
        )
        source: Iterator[SlidePlan] = iter(plans)
        if self._leases is not None:
            self._claims = Claims(
                self._leases,
                list(cut_up(in_order(plans), self._ranges)),
                replan=self._replan_alone if alone else self._replan,
                elsewhere=self._settled_elsewhere,
                suspect=lambda plan: not alone and self._is_suspect(plan),
                drain=self._drain,
            )
            source = iter(self._claims)
        for plan in source:
            yield SlideTask(plan, run) if plan.rows is None else RangeTask(plan, run)

    def _replan_alone(self, plan: SlidePlan) -> SlidePlan:
        """Taken over from the dead a second time: whether it crashed again is being written."""
        if orphaned(self._record(plan), self._begun_utc):
            time.sleep(_PARENT_S)
        return self._replan(plan)

    def _is_suspect(self, plan: SlidePlan) -> bool:
        record = self._record(plan)
        return crashes(self._settings.out, record) > 0 or orphaned(record, self._begun_utc)

    def _replan(self, plan: SlidePlan) -> SlidePlan:
        now = plan_slides(self._settings, self._targets, [plan.entry])[0]
        return replace(now, rows=plan.rows, ranges=plan.ranges)

    def _is_made(self, plan: SlidePlan) -> bool:
        """Whether a range lies ready, for every encoder."""
        if plan.rows is None:
            return False
        settings = self._settings
        try:
            found = fingerprint(plan.entry.path)
            return all(
                is_whole(
                    feature_path(settings.out, target, plan.entry.slide_id),
                    plan.rows,
                    folder=settings.out / PARTIAL_FOLDER,
                    identity=wanted_identity(settings, target, plan.entry, found),
                )
                for target in plan.todo
            )
        except SlideError:
            return False  # whoever opens the slide next will say what is wrong with it

    def _settled_elsewhere(self, plan: SlidePlan) -> bool:
        if failed_meanwhile(self._records, plan.entry.slide_id, self._begun_utc):
            self._account.failed_elsewhere(plan)
            return True
        if (died := self._crashes(plan)) >= LIMIT:
            record = self._record(plan) if plan.rows is not None else None
            attempts = record.attempts if record is not None else []
            self._account.refused(plan, _quarantined(plan, died), attempts)
            return True
        now = self._replan(plan)
        if now.todo:
            return self._is_made(now)
        self._account.done_before(now)
        return True

    def _release(self, key: str) -> None:
        if self._claims is not None:
            self._claims.release(key)

    # ---- the account ---------------------------------------------------------------------------

    def _log_end(self) -> None:
        last = self._account.last
        facts: dict[str, Any] = {}
        if last is not None:
            facts = {"device_waited": round(last.waiting, 4), "batch_size": last.batch_size}
        self._events.log(
            "run_over",
            tiles=self._account.tiles,
            signal=self._drain.signal_name,
            backed_off=self._tuner.backed_off,
            **facts,
        )

    def facts(self) -> dict[str, Any]:
        """What `run.yaml` says beside the settings; nothing where no slide was taken up."""
        if self._threads is None:
            return {}
        return {
            "resolved": {
                "device": str(self._encoders[0].device),
                "backend": self._encoders[0].backend,
                "precision": {e.card.name: e.precision for e in self._encoders},
                "batch_size": self._tuner.size,
                "decode_threads": self._threads.decode,
                "streams": self._threads.streams,
                "threads_per_stream": self._threads.intra,
            }
        }

    def result(self, seconds: float) -> RunResult:
        """How the run ended."""
        return self._account.result(self._settings.out, self._plans, seconds)


def _quarantined(plan: SlidePlan, died: int) -> QuarantinedError:
    return QuarantinedError(
        plan.entry.path, f"it has crashed its process {died} times; it is left out"
    )
