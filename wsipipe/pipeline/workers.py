"""Several devices of one machine: one process a device, all joined in the run's folder.

`--device cuda:0,cuda:1` starts one process each; slides go by lease, largest first, so a fast
device takes more of them; a slide above a device's share is cut, see `ranges`. A process that dies
is replaced and its slide goes back to the queue: the lease of a dead process of this host is free
at once. The parent computes nothing; it passes progress on, passes signals down, and reads the
result from the files.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.embed.engine import Snapshot
from wsipipe.embed.resources import available_cpus
from wsipipe.embed.trace import join_traces
from wsipipe.errors import WsipipeError
from wsipipe.pipeline.account import Account
from wsipipe.pipeline.claims import failed_meanwhile
from wsipipe.pipeline.crash import leave_trace
from wsipipe.pipeline.planning import plan_slides
from wsipipe.pipeline.ranges import count_ranges
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunResult
from wsipipe.store import EventLog, Records
from wsipipe.store.events import utc_now

if TYPE_CHECKING:
    from wsipipe.pipeline.extract import ExtractPlan

__all__ = ["Crew", "work"]

_RESTARTS = 3  # of one device's process
_POLL_S = 0.3
_FATAL = (
    *(signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT),
    *(signal.SIGBUS, signal.SIGILL, signal.SIGFPE),
)


class _Told(Reporter):
    """In the worker: sends what happens up the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._next = 0.0

    def slide_over(self, slide_id: str, status: str, detail: str) -> None:
        self._send("over", (slide_id, status, detail))

    def tick(self, snapshot: Snapshot) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._send("tick", snapshot)

    def _send(self, kind: str, value: Any) -> None:
        try:
            self._pipe.send((kind, value))
        except OSError:
            return  # The parent is gone; the work is still worth doing.


def work(
    settings: ExtractSettings,
    inputs: list[str],
    cpus: int,
    ranges: Mapping[str, int],
    pipe: Connection | None = None,
) -> int:
    """A worker's life: the same run, joined, on its own device; returns the exit code."""
    # Threads of all workers together must not outnumber the processors.
    os.environ["OMP_THREAD_LIMIT"] = str(cpus)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from wsipipe.pipeline.extract import run_extract

    reporter = _Told(pipe) if pipe is not None else Reporter()
    with Drain() as drain:
        try:
            result = run_extract(settings, inputs, drain=drain, reporter=reporter, ranges=ranges)
            if pipe is not None:
                pipe.send(("tiles", result.tiles))
            return result.exit_code
        except WsipipeError as error:
            if pipe is not None:
                pipe.send(("error", error))
            return error.exit_code


def _process(
    settings: ExtractSettings,
    inputs: list[str],
    cpus: int,
    ranges: Mapping[str, int],
    pipe: Connection,
) -> None:
    raise SystemExit(work(settings, inputs, cpus, ranges, pipe))


@dataclasses.dataclass(eq=False)
class _Worker:
    device: str
    process: SpawnProcess
    pipe: Connection
    restarts: int = 0
    silent: bool = False  # its end of the pipe is closed
    ended: bool = False  # it has told how its run ended
    snapshot: Snapshot | None = None


class Crew:
    """Stands where `RunState` stands when there are several devices.

    Args:
        inputs: As the user named them; each worker finds the slides itself.
    """

    def __init__(
        self,
        plan: ExtractPlan,
        inputs: list[str],
        drain: Drain,
        reporter: Reporter,
    ) -> None:
        self._plan, self._settings = plan, plan.settings
        self._drain, self._reporter, self._inputs = drain, reporter, inputs
        self._begun_utc = utc_now()
        self._context = multiprocessing.get_context("spawn")
        self._cpus = max(1, available_cpus() // len(plan.settings.devices))
        self._ranges = self._cut()
        self._tiles = 0
        self._workers: list[_Worker] = []
        self._traces: list[Path] = []
        self._told: set[str] = set()

    def run(self) -> None:
        """Start the workers and wait for them.

        Raises:
            WsipipeError: What a worker could not go on after; the others are stopped first.
        """
        self._workers = [self._start(device) for device in self._settings.devices]
        signalled = False
        try:
            while self._workers:
                self._listen()
                if self._drain.requested and not signalled:
                    signalled = True
                    self._stop_all()
                self._replace_the_dead()
        except BaseException:
            self._stop_all()
            raise
        finally:
            for worker in self._workers:
                worker.process.join()
            if self._settings.profile is not None:
                join_traces(self._traces, self._settings.profile)

    def _cut(self) -> dict[str, int]:
        """Slides whose rows are shared out. Not where other runs have joined, which would cut
        differently, nor between unlike devices, whose numbers differ."""
        kinds = {device.partition(":")[0] for device in self._settings.devices}
        if self._settings.join or len(kinds) > 1:
            return {}
        return count_ranges(self._plan.slides, len(self._settings.devices))

    def _start(self, device: str, restarts: int = 0) -> _Worker:
        ours, theirs = self._context.Pipe(duplex=False)
        own: dict[str, Any] = {"device": device, "join": True}
        if self._settings.profile is not None:
            name = f"{self._settings.profile.name}.{len(self._traces)}.part"
            own["profile"] = self._settings.profile.with_name(name)
            self._traces.append(own["profile"])
        settings = self._settings.model_copy(update=own)
        process = self._context.Process(
            target=_process,
            args=(settings, self._inputs, self._cpus, self._ranges, theirs),
            daemon=False,
        )
        process.start()
        theirs.close()
        return _Worker(device, process, ours, restarts)

    def _listen(self) -> None:
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe), timeout=_POLL_S):
            assert isinstance(pipe, Connection)
            worker = by_pipe[pipe]
            try:
                kind, value = pipe.recv()
            except EOFError:
                worker.silent = True
                worker.process.join(_POLL_S)
                continue
            worker.ended |= kind in ("error", "tiles")
            if kind == "error":
                if value.exit_code != 75:
                    raise value
            elif kind == "tiles":
                self._tiles += value
                worker.snapshot = None
            elif kind == "tick":
                worker.snapshot = value
                self._reporter.tick(self._together())
            else:
                # A replaced worker tells anew of slides that fail at once.
                if value[0] not in self._told:
                    self._told.add(value[0])
                    self._reporter.slide_over(*value)
                if self._settings.strict and value[1] == "failed":
                    self._stop_all()

    def _replace_the_dead(self) -> None:
        for worker in [w for w in self._workers if w.silent and not w.process.is_alive()]:
            self._workers.remove(worker)
            self._tiles += worker.snapshot.tiles if worker.snapshot is not None else 0
            by = -int(worker.process.exitcode or 0)
            broken = by < 0 and not worker.ended  # by a bug, which is on record
            if not (by in _FATAL or broken) or self._drain.requested:
                continue
            if by in _FATAL:
                # A slide in hand may be why: it is a suspect from now on.
                said = f"Killed by {signal.Signals(by).name}."
                leave_trace(self._settings.out, int(worker.process.pid or 0), said)
            if worker.restarts < _RESTARTS:
                self._reporter.say(f"The process on {worker.device} died; it is started again.")
                self._workers.append(self._start(worker.device, worker.restarts + 1))

    def _stop_all(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)

    def _together(self) -> Snapshot:
        seen = [worker.snapshot for worker in self._workers if worker.snapshot is not None]
        return Snapshot(
            slides_over=sum(s.slides_over for s in seen),
            tiles=self._tiles + sum(s.tiles for s in seen),
            tiles_ahead=sum(s.tiles_ahead for s in seen),
            busy_s=sum(s.busy_s for s in seen),
            waiting_s=sum(s.waiting_s for s in seen),
            batch_size=max(s.batch_size for s in seen),
        )

    def facts(self) -> dict[str, Any]:
        """What `run.yaml` says beside the settings."""
        return {"resolved": {"devices": list(self._settings.devices), "cpus_each": self._cpus}}

    def result(self, seconds: float) -> RunResult:
        """How the run ended, read from its files: the workers' own words may be lost."""
        settings, texts = self._settings, self._plan.privacy.texts
        records = Records(settings.out, texts=texts)
        with EventLog(settings.out, texts=texts) as events:
            account = Account(
                records, events, Reporter(), strict=False, released=lambda slide_id: None
            )
            for plan in self._plan.slides:
                now = plan_slides(settings, self._plan.targets, [plan.entry])[0]
                if not now.todo and now.error is None:
                    account.done_before(now)
                elif failed_meanwhile(records, plan.entry.slide_id, self._begun_utc):
                    account.failed_elsewhere(plan)
        result = account.result(settings.out, self._plan.slides, seconds)
        return dataclasses.replace(result, tiles=self._tiles)
