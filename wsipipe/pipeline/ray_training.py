"""`wsipipe train --executor ray`: the folds of a cross-validation as tasks on a Ray cluster.

    driver: checks, folds, plan ─▶ one task a fold ─▶ models/fold-K in the shared folder ─▶ figures

A task is what a local run does with a fold, its saving and going on included: whatever process or
node dies costs only the epochs since the fold's last save, and Ray runs the fold again elsewhere.
Features and the output folder must lie at the same paths on all nodes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.errors import WsipipeError
from wsipipe.pipeline.ray_executor import connect

if TYPE_CHECKING:
    from wsipipe.mil.fold_training import FoldTrainer
    from wsipipe.mil.plan import Plan

__all__ = ["RayFolds"]

_RETRIES = 3  # of a fold whose process or node dies
_CPUS = 4  # of a task without a GPU, where the nodes have so many


class RayFolds:
    """Trains the folds of a plan on a cluster; see `wsipipe.mil.crossval.train`.

    Args:
        executor: "ray", or "ray://HOST[:PORT]".
    """

    def __init__(self, executor: str) -> None:
        self.executor = executor

    def __call__(self, trainer: FoldTrainer, todo: list[int]) -> dict[int, str]:
        """Leave `models/fold-K` of every fold in `todo`.

        Returns:
            Fold number -> why it could not be trained.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: The cluster cannot be reached.
        """
        ours = connect(self.executor)
        import ray

        try:
            return _train(trainer, todo)
        finally:
            if ours:
                ray.shutdown()


def _train(trainer: FoldTrainer, todo: list[int]) -> dict[int, str]:
    import ray

    remote = ray.remote(_fold).options(**_needs(trainer), max_retries=_RETRIES)
    plan, out = ray.put(trainer.plan), str(trainer.out.absolute())
    running = {
        remote.remote(plan, trainer.plan.identity, out, trainer.device.type, str(Path.cwd()), k): k
        for k in todo
    }
    total, failed = len(todo), {}
    trainer.say(f"Ray: {total} folds.")
    try:
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            k = running.pop(reference)
            reason = _outcome(reference)
            if reason:
                failed[k] = reason
            trainer.say(
                f"fold {k} {'failed' if reason else 'trained'}; {total - len(running)} of {total}"
            )
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return failed


def _needs(trainer: FoldTrainer) -> dict[str, Any]:
    import ray

    if trainer.device.type == "cuda":
        return {"num_gpus": 1}
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": min([_CPUS, *(n for n in cpus if n >= 1)])}


def _fold(plan: Plan, identity: str, out: str, device: str, folder: str, k: int) -> str:
    """In a worker: train fold k unless it is whole; why it failed, or nothing."""
    with suppress(OSError):
        os.chdir(folder)  # relative paths mean what they meant to the driver
    _plans[identity] = plan
    return _trainer(identity, out, device).train_fold(k)


# Ray keeps a process for the tasks of one kind: the features are read once, not once a fold.
_plans: dict[str, Plan] = {}


@lru_cache(maxsize=1)
def _trainer(identity: str, out: str, device: str) -> FoldTrainer:
    import torch

    from wsipipe.mil.bank import FeatureBank
    from wsipipe.mil.fold_training import FoldTrainer

    plan, place = _plans.pop(identity), torch.device(device)
    bank = FeatureBank(plan.cohort.files, device=place, cache=Path(out) / "cache")
    return FoldTrainer(plan, bank, Path(out), place, lambda _text: None)


def _outcome(reference: Any) -> str:
    import ray

    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WsipipeError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        return f"its process died {_RETRIES + 1} times ({type(error).__name__})"
