"""One update: tiles to views, views to a loss, gradients to weights.

Everything random in update s is seeded by (seed, s).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wsipipe.errors import ConfigError
from wsipipe.pretrain.distributed import rank, world_size
from wsipipe.pretrain.methods import At, Method
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.schedule import build_optimizer, set_schedule
from wsipipe.pretrain.source import TileBatch
from wsipipe.pretrain.views import ViewBatch, ViewMaker, normalise, resize, to_float

__all__ = ["Updater"]


class Updater:
    """Changes a method's weights, a batch at a time.

    Args:
        method: What is trained; on the device.
        recipe: Optimiser, views, seed.
        device: Where.

    Attributes:
        n: Tiles of a joined micro-batch.
        rows: This process's rows of it.
        optimizer: With the groups of `build_optimizer`.

    Raises:
        ConfigError: Batch, crops and processes do not fit each other.
    """

    def __init__(self, method: Method, recipe: Recipe, device: torch.device) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        self.n = recipe.optim.batch // recipe.optim.accumulate
        if self.n % world_size():
            raise ConfigError(
                f"a micro-batch of {self.n} cannot be shared by {world_size()} processes.",
                "Change optim.batch or optim.accumulate.",
            )
        share = self.n // world_size()
        self.rows = slice(rank() * share, (rank() + 1) * share)
        _check_batch(method, recipe, share)
        _check_crops(method, recipe)
        self.views = ViewMaker(recipe.views)
        self.optimizer = build_optimizer(method, recipe.optim)

    def distributed(self) -> nn.Module:
        """The method, or what joins its gradients over processes."""
        if world_size() == 1:
            return self.method
        cuda = self.device.type == "cuda"
        model: nn.Module = self.method
        if cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if cuda else None, broadcast_buffers=False
        )

    def preview(self, raw: TileBatch, index: int) -> ViewBatch:
        """Views of a whole joined batch, for methods that must look before they start."""
        return self._views(raw, self._generator(index, 3), slice(0, self.n))

    def __call__(
        self, model: nn.Module, batches: Iterator[TileBatch], step: int, seen: Counter[int]
    ) -> dict[str, Any]:
        """Update once.

        Args:
            model: What `distributed` gave.
            batches: Micro-batches in order.
            step: Number of the update.
            seen: Counts slides; added to.

        Returns:
            "losses" (mean over micro-batches, on the device), "lr", "wd", "grad_norm",
            "slides_in_batch", and what the method logs.
        """
        o = self.recipe.optim
        self.method.train()
        lr, decay = set_schedule(self.optimizer, o, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        extra: dict[str, Tensor] = {}
        for k in range(o.accumulate):
            micro = step * o.accumulate + k
            raw = next(batches)
            seen.update(raw.slides.tolist())
            # Dropout and stochastic depth: their own numbers on each process.
            torch.manual_seed(int(self._generator(micro, 10 + rank()).initial_seed()))
            views = self._views(raw, self._generator(micro, 0), self.rows)
            at = At(step, o.steps, self.rows, self.n, self._generator(micro, 1))
            sync: AbstractContextManager[Any] = nullcontext()
            if isinstance(model, DistributedDataParallel) and k < o.accumulate - 1:
                sync = model.no_sync()
            with sync:
                with self._autocast():
                    out = model(views, at)
                (out["loss"] / o.accumulate).backward()
            losses.append(out.pop("loss").detach())
            extra = {name: v.detach() for name, v in out.items()}
        self.method.before_update(at)
        norm = self._clip(o.clip)
        self.optimizer.step()
        self.method.after_update(at)
        return {
            "losses": torch.stack(losses).mean(),
            "lr": lr,
            "wd": decay,
            "grad_norm": norm,
            "slides_in_batch": float(len(np.unique(raw.slides))),
            **extra,
        }

    def _generator(self, micro: int, kind: int) -> torch.Generator:
        """Fresh, from (seed, micro-batch, what for); on the CPU."""
        seed = np.random.SeedSequence([self.recipe.seed, micro, kind]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0] >> np.uint64(1)))

    def _views(self, raw: TileBatch, generator: torch.Generator, rows: slice) -> ViewBatch:
        tiles = torch.from_numpy(raw.tiles)
        if self.device.type == "cuda":
            tiles = tiles.pin_memory().to(self.device, non_blocking=True)
        batch = self.views(
            tiles, generator=generator, rows=rows, total=self.n, plain=self.method.plain
        )
        spec, px = self.recipe.views, self.recipe.views.global_.px
        for name, values in raw.labels.items():
            array = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
            if array.dtype == torch.uint8:
                array = normalise(resize(to_float(array), px), spec)
            batch.labels[name] = array
        if raw.region is not None:
            region = to_float(torch.from_numpy(raw.region).to(self.device))
            batch.region = normalise(resize(region, px), spec)
        missing = [k for k in self.method.needs if k not in batch.labels]
        if missing:
            raise ConfigError(
                f"recipe {self.recipe.name} needs {', '.join(missing)} for its tiles.",
                "Give --tiles a CSV with that column.",
            )
        return batch

    def _clip(self, limit: float) -> Tensor:
        parameters = [p for p in self.method.parameters() if p.grad is not None]
        return nn.utils.clip_grad_norm_(parameters, limit or math.inf)

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted = self.recipe.optim.precision
        cuda = self.device.type == "cuda"
        if wanted == "auto":
            wanted = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted == "bf16")


def _check_batch(method: Method, recipe: Recipe, share: int) -> None:
    least = method.min_batch
    if share < least:
        raise ConfigError(
            f"recipe {recipe.name} ({recipe.method}) needs {least} tiles a process "
            f"in a micro-batch at least, not {share}.",
            "Raise optim.batch, lower optim.accumulate, or use fewer processes.",
        )


def _check_crops(method: Method, recipe: Recipe) -> None:
    """Crops must be whole patches."""
    if not method.student.is_vit:
        return
    views = recipe.views
    for patch in recipe.arch.patch_sizes or (method.student.patch,):
        for name, crop in (("global", views.global_), ("local", views.local)):
            if crop.n and crop.px % patch:
                near = max(patch, round(crop.px / patch) * patch)
                raise ConfigError(
                    f"views.{name}.px = {crop.px} is not a multiple of the patch of {patch}.",
                    f"For this network: --set views.{name}.px={near}",
                )
