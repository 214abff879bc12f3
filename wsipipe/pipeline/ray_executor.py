"""`--executor ray`: the same engine as one actor a device, on all nodes of a Ray cluster.

    driver: plan ─▶ one actor a GPU (else one a node) ─▶ each joins the folder ─▶ tables
                            ▲ restarted when it dies; its slide goes back to the queue

The queue is the folder's leases, longest slides first: what an actor holds when it dies is taken
over by another one, and what is done is a property of the files, not of Ray's memory. So a node
that is removed costs only its slides in flight. Slides, weights and the output folder must lie at
the same paths on all nodes.

Ray opens ports on which whoever reaches them can run code: keep `RAY_AUTH_MODE=token` (its default
from 2.61 on) and run clusters inside a trusted network.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.errors import ConfigError, Drained, MissingExtraError, WsipipeError
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunDrained, RunResult
from wsipipe.store import fold

if TYPE_CHECKING:
    from wsipipe.pipeline.extract import ExtractPlan, Inputs

__all__ = ["connect", "run_on_ray"]

_TICK_S = 1.0
_SAY_EVERY_S = 10.0
_LEASES = ".leases"


@dataclass(frozen=True)
class _Place:
    """Where an actor's process lives."""

    node: str
    host: str
    pid: int


class _Worker:
    """One device. Joins the folder and works until no slide is left or it is told to stop."""

    def __init__(self, folder: str) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with suppress(OSError):
            os.chdir(folder)  # relative paths mean what they meant to the driver
        self._drain = Drain()

    def place(self) -> _Place:
        import ray

        from wsipipe.owner import this_process

        owner = this_process()
        return _Place(ray.get_runtime_context().get_node_id(), owner.host, owner.pid)

    def work(self, settings: ExtractSettings, inputs: Inputs) -> int:
        """Returns how many tiles this actor embedded."""
        from wsipipe.pipeline.extract import run_extract

        try:
            return run_extract(settings, inputs, drain=self._drain).tiles
        except Drained:
            return 0

    def stop(self, name: str) -> None:
        self._drain.request(name)


def run_on_ray(
    settings: ExtractSettings,
    inputs: Inputs,
    plan: ExtractPlan,
    *,
    drain: Drain,
    reporter: Reporter,
) -> RunResult:
    """Run a plan on a Ray cluster: the one at `settings.executor` ("ray://HOST[:PORT]"), the one
    that RAY_ADDRESS names or that this host belongs to, else one on this machine alone.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: The cluster cannot be reached, or the settings fix one process's share.
        OutputError, EncoderError: An actor met something that nobody gets past.
        Drained: A stop was requested and slides are left.
    """
    if settings.shard is not None:
        raise ConfigError("--executor ray and --shard exclude each other.", "Leave --shard out.")
    begun = time.monotonic()
    ours = connect(settings.executor)
    joined = settings.model_copy(
        update={"join": True, "executor": "local", "out": settings.out.absolute()}
    )
    try:
        tiles = _work(joined, inputs, drain, reporter)
    finally:
        if ours:
            import ray

            ray.shutdown()
    result = _result(plan, tiles, time.monotonic() - begun)
    if drain.requested and result.pending:
        raise RunDrained(str(drain.signal_name), result)
    return result


def connect(executor: str) -> bool:
    """Connect to a cluster; True if the connection is this run's to close."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "--executor ray", ["ray"]) from error
    if ray.is_initialized():
        return False
    _, _, host = executor.partition("://")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    try:
        if host:
            address = host if ":" in host else f"{host}:10001"
            ray.init(address=f"ray://{address}", **options)
            return True
        try:
            ray.init(address="auto", **options)
        except ConnectionError:
            ray.init(include_dashboard=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The Ray cluster {executor} cannot be reached: {error}.", "Try `ray status` there."
        ) from error
    return True


def _work(settings: ExtractSettings, inputs: Inputs, drain: Drain, reporter: Reporter) -> int:
    import ray

    workers = _start(settings)
    reporter.say(f"Ray: {len(workers)} actors, one a device.")
    places: dict[Any, _Place] = {}
    asked = {worker.place.remote(): worker for worker in workers}
    running = {worker.work.remote(settings, inputs): worker for worker in workers}
    tiles, told, said_at = 0, False, time.monotonic()
    try:
        while running:
            ready, _ = ray.wait([*running, *asked], num_returns=1, timeout=_TICK_S)
            for reference in ready:
                worker = asked.pop(reference, None)
                if worker is not None:
                    with suppress(ray.exceptions.RayActorError):
                        places[worker] = ray.get(reference)
                    continue
                worker = running.pop(reference)
                tiles += _outcome(reference)
            if drain.requested and not told:
                told = True
                for worker in running.values():
                    worker.stop.remote(str(drain.signal_name))
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            for worker, place in list(places.items()):
                if place.node not in alive:
                    _bury(settings.out / _LEASES, places.pop(worker))
                    # Ray starts the actor again elsewhere: ask where, once it is there.
                    asked[worker.place.remote()] = worker
            if (told or len(running) < len(workers)) and not places.keys() & set(running.values()):
                # Who returned saw every slide settled; the others have no node to be started on.
                break
            if time.monotonic() - said_at > _SAY_EVERY_S:
                said_at = time.monotonic()
                reporter.say(f"Ray: {len(running)} of {len(workers)} actors at work.")
    finally:
        for worker in workers:
            ray.kill(worker)
    return tiles


def _start(settings: ExtractSettings) -> list[Any]:
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0)) if settings.device in ("auto", "cuda") else 0
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1)
    needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    actor = ray.remote(_Worker).options(
        **needs,
        # `stop` and `place` are answered while `work` runs.
        max_concurrency=4,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy="SPREAD",
    )
    return [actor.remote(str(Path.cwd())) for _ in range(gpus or max(1, nodes))]


def _outcome(reference: Any) -> int:
    import ray

    try:
        return int(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WsipipeError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError:
        return 0  # beyond Ray's help; the files say what is left


def _bury(folder: Path, place: _Place) -> None:
    """Give back the leases of a process whose node is gone."""
    for path in folder.glob("*.lease"):
        with suppress(OSError, ValueError):
            content = json.loads(path.read_text())
            if (content.get("host"), content.get("pid")) == (place.host, place.pid):
                path.unlink(missing_ok=True)


def _result(plan: ExtractPlan, tiles: int, seconds: float) -> RunResult:
    """How the run ended, by the files."""
    folders = [target.folder for target in plan.targets]
    ids = [slide.entry.slide_id for slide in plan.slides]
    expected = [plan.shown(slide) for slide in plan.slides]
    rows, failures = fold(plan.settings.out, expected, folders)
    states: dict[str, set[str]] = {slide_id: set() for slide_id in ids}
    for row in rows:
        if row.slide_id in states and row.encoder in folders:
            states[row.slide_id].add(row.status)
    by_state: dict[str, list[str]] = {"failed": [], "pending": [], "done": [], "empty": []}
    for slide_id, found in states.items():
        by_state[next((s for s in by_state if s in found), "pending")].append(slide_id)
    reasons = {f["slide_id"]: f"{f['error']} {f['remedy']}".strip() for f in failures}
    return RunResult(
        out=plan.settings.out,
        **{name: tuple(slides) for name, slides in by_state.items()},
        reasons={k: v for k, v in reasons.items() if k in states},
        tiles=tiles,
        seconds=seconds,
    )
