"""The one training loop.

Everything random in update s is seeded by (seed, s): a run that is killed and resumed shows the
same losses as one that was not, and two processes show those of one with the joined batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from wsipipe.errors import ConfigError, Drained
from wsipipe.pretrain.checkpoint import latest, load_checkpoint, save_checkpoint
from wsipipe.pretrain.distributed import all_reduce_max, all_reduce_sum, rank, world_size
from wsipipe.pretrain.errors import CollapseError, DivergedError
from wsipipe.pretrain.loader import Loader
from wsipipe.pretrain.methods import Method, create_method
from wsipipe.pretrain.metrics import MetricsLog
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.source import ArrayTiles, Source
from wsipipe.pretrain.update import Updater
from wsipipe.pretrain.views import ViewBatch
from wsipipe.pretrain.watch import Watch
from wsipipe.types import TileArray

__all__ = ["TrainResult", "Trainer"]

log = logging.getLogger(__name__)

_FLUSH_EVERY = 10  # steps between looks at the losses: each look waits for the device


@dataclass
class TrainResult:
    """What a run came to.

    Attributes:
        steps: Updates done.
        tiles: Tiles seen.
        slides: Slides (or tiles) seen, name -> how often.
        losses: Loss of each update of this process's run.
        health: Last monitor values.
        data_wait: Share of the time spent waiting for data.
        method: The trained method.
    """

    steps: int
    tiles: int
    slides: dict[str, int]
    losses: list[float] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    data_wait: float = 0.0
    method: Method | None = None


class Trainer:
    """Trains a recipe's method on a source.

    Args:
        recipe: Resolved recipe.
        source: Where tiles come from.
        out: Folder of the run: metrics.jsonl, checkpoints/.
        device: Where to train.
        initial: Weights of the timm model to start from.
        labelled: Tiles with labels for the online k-NN, in two halves by row parity.
        stop_signal: Returns the name of a signal that asks to stop, or None.
        ahead: Batches to read ahead.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        out: Path,
        *,
        device: torch.device | str = "cpu",
        initial: dict[str, Tensor] | None = None,
        labelled: ArrayTiles | None = None,
        stop_signal: Callable[[], str | None] = lambda: None,
        ahead: int = 2,
    ) -> None:
        self.recipe, self.source, self.out = recipe, source, out
        self.device = torch.device(device)
        self.stop_signal, self.ahead = stop_signal, ahead
        torch.manual_seed(recipe.seed)
        self.method = create_method(recipe, source.classes)
        if initial is not None:
            self.method.initialise(initial)
        self.method.to(self.device)
        self.update = Updater(self.method, recipe, self.device)
        self.step, self.seen = 0, Counter[int]()
        self._pending: list[tuple[int, Tensor, dict[str, float]]] = []
        self._entropy: float | None = None
        self.checkpoints = out / "checkpoints"
        self.watch = Watch(self.method, recipe, source, labelled, self.device)

    def resume(self) -> bool:
        """Go on from the latest checkpoint; False if there is none."""
        path = latest(self.checkpoints)
        if path is None:
            return False
        state = load_checkpoint(path, self.recipe, self.device)
        if state["source"] != self._source_digest():
            raise ConfigError(
                f"{path} was trained on other slides or tiles than those given now.",
                "Give the former ones, or another --out.",
            )
        self.method.load_state_dict(state["method"])
        self.update.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self.seen = Counter({int(k): int(v) for k, v in state["seen"].items()})
        self.watch.alarm.bad = int(state["alarm_bad"])
        return True

    def _source_digest(self) -> str:
        """Batches are a function of which slides there are, in which order."""
        return hashlib.sha256("\n".join(self.source.names).encode()).hexdigest()

    def save(self) -> Path | None:
        """Write a checkpoint (the first process does; the others wait)."""
        path = None
        if rank() == 0:
            path = save_checkpoint(
                self.checkpoints,
                self.step,
                {
                    "recipe": json.dumps(self.recipe.identity()),
                    "step": self.step,
                    "source": self._source_digest(),
                    "seen": {str(k): v for k, v in self.seen.items()},
                    "alarm_bad": self.watch.alarm.bad,
                    "method": self.method.state_dict(),
                    "optimizer": self.update.optimizer.state_dict(),
                },
            )
        if world_size() > 1:
            torch.distributed.barrier()
        return path

    def train(self) -> TrainResult:
        """Train to the last step.

        Raises:
            DivergedError: The loss is not finite; the last good checkpoint stays.
            CollapseError: The features have collapsed and the recipe says to stop.
            Drained: A signal asked to stop; a checkpoint is written.
        """
        o = self.recipe.optim
        if self.step == 0:
            self.method.prepare(self._preview())
        model = self.update.distributed()
        metrics = MetricsLog(self.out, self.step) if rank() == 0 else None
        loader = Loader(
            self.source,
            self.update.n,
            self.update.rows,
            self.step * o.accumulate,
            o.steps * o.accumulate,
            # Tiles cut together come to as many batches at once.
            max(self.ahead, self.recipe.sampler.share),
        )
        result = TrainResult(self.step, 0, {})
        started = saved = time.monotonic()
        waited = 0.0
        try:
            batches = iter(loader)
            while self.step < o.steps:
                values = self.update(model, batches, self.step, self.seen)
                values["data_wait_s"], waited = loader.waited_s - waited, loader.waited_s
                self._pending.append((self.step, values.pop("losses"), values))
                self.step += 1
                last = self.step == o.steps
                check = self.step % self.recipe.monitor.every == 0 or last
                signalled = None
                if self.step % _FLUSH_EVERY == 0 or check:
                    self._look(metrics, result)
                    signalled = self._signalled()
                if check:
                    result.health = self._monitor(metrics, result.losses[-1])
                late = time.monotonic() - saved > self.recipe.monitor.minutes * 60
                # A state under suspicion must not push out the last good one.
                due = rank() == 0 and late and self.watch.alarm.bad == 0
                if self._agreed(due) or signalled or last:
                    self._look(metrics, result)
                    self.save()
                    saved = time.monotonic()
                if signalled and not last:
                    raise Drained(signalled)
        finally:
            batches.close()  # type: ignore[attr-defined]
            if metrics is not None:
                metrics.close()
        result.steps, result.tiles = self.step, self.step * o.batch
        result.slides = {self.source.names[i]: n for i, n in sorted(self.seen.items())}
        result.data_wait = loader.waited_s / max(1e-9, time.monotonic() - started)
        result.method = self.method
        return result

    def _preview(self) -> Iterator[ViewBatch]:
        """The first batches, for methods that must look before they start."""
        n = self.update.n
        for index in range(8):
            yield self.update.preview(self.source.batch(index, n, slice(0, n)), index)

    def _look(self, metrics: MetricsLog | None, result: TrainResult) -> None:
        """Read the losses that wait on the device; stop if one is not a number."""
        if not self._pending:
            return
        losses = torch.stack([loss for _, loss, _ in self._pending])
        means = (all_reduce_sum(losses) / world_size()).tolist()
        for (step, _, values), loss in zip(self._pending, means, strict=True):
            norm = float(values["grad_norm"])
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"at step {step} the loss is {loss} and the gradient's norm {norm}.",
                    "Lower optim.lr, raise optim.warmup or set optim.clip, in another --out.",
                    latest(self.checkpoints),
                )
            result.losses.append(loss)
            if metrics is not None:
                metrics.write(step, {"loss": loss, **{k: float(v) for k, v in values.items()}})
        share = self._pending[-1][2].get("teacher_entropy_share")
        self._entropy = None if share is None else float(share)
        self._pending.clear()
        if metrics is not None:
            metrics.flush()

    def features(self, tiles: TileArray) -> Tensor:
        """(N, D) float32 features of uint8 tiles by the encoder that would be exported."""
        return self.watch.features(tiles)

    def _monitor(self, metrics: MetricsLog | None, loss: float) -> dict[str, float]:
        """Judge the encoder on the first process; all stop together."""
        values: dict[str, float] = {}
        verdict = None
        if rank() == 0:
            values, verdict = self.watch.check(self.step, self._entropy)
            told = ", ".join(f"{k} {v:.3g}" for k, v in {"loss": loss, **values}.items())
            log.info("step %d of %d: %s", self.step, self.recipe.optim.steps, told)
            if metrics is not None:
                metrics.write(self.step - 1, {f"health/{k}": v for k, v in values.items()})
                metrics.flush()
        stop = self._agreed(verdict is not None)
        if stop and self.recipe.monitor.stop:
            raise CollapseError(
                verdict or f"collapsed at step {self.step}.",
                "Lower optim.lr or raise optim.warmup; compare health/ in metrics.jsonl. "
                "--set monitor.stop=false trains on.",
                latest(self.checkpoints),
            )
        if verdict:
            log.warning("%s", verdict)
        return values

    def _agreed(self, mine: bool) -> bool:
        """Whether any process says so: all do the same."""
        if world_size() == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.device)
        return bool(all_reduce_max(flag) > 0)

    def _signalled(self) -> str | None:
        name = self.stop_signal()
        return (name or "another process's signal") if self._agreed(name is not None) else None
