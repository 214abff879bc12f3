"""Train many models from one stream of bags.

All runs (folds, inner splits, seeds, grid points) walk the same order of bags; each takes the bags
of its own training part. So a bag is read once an epoch however many models learn from it. A run
gives the same numbers alone or among others: its random state is its own, and it holds the labels
of its own training and validation bags only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.errors import ConfigError
from wsipipe.mil.base import MILOutput
from wsipipe.mil.losses import total_loss
from wsipipe.mil.packing import Segments, pack
from wsipipe.mil.runs import BagSet, Run
from wsipipe.processor import cpu_has_bf16

__all__ = ["fit_runs", "pick_device", "predict_logits", "resolve_precision"]

_GAIN = 1e-3


@contextmanager
def _own_random(run: Run) -> Iterator[None]:
    """The run's random state around a step, the caller's restored after."""
    outside = torch.get_rng_state()
    if run.rng is not None:
        torch.set_rng_state(run.rng)
    try:
        yield
    finally:
        run.rng = torch.get_rng_state()
        torch.set_rng_state(outside)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def pick_device(name: str) -> torch.device:
    """ "auto": a GPU where there is one.

    Raises:
        ConfigError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no GPU is usable here.", "Use --device cpu.")
    return device


def resolve_precision(asked: str, device: torch.device, mean_tiles: float) -> str:
    """ "auto": bf16 where the hardware multiplies it fast and bags are long enough to gain."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if cpu_has_bf16() and mean_tiles >= 256 else "fp32"


def fit_runs(
    runs: Sequence[Run],
    bags: BagSet,
    *,
    device: torch.device,
    precision: str = "fp32",
    order_seed: int = 0,
    on_epoch: Callable[[int, Sequence[Run]], None] | None = None,
) -> None:
    """Train all runs to their end; each keeps the weights of its best inner validation loss.

    Args:
        runs: Prepared; possibly restored from an earlier state.
        on_epoch: Called after each epoch with its number: progress, saving, stopping.
    """
    last = max((r.settings.epochs for r in runs), default=0)
    _fill_risk_sets(runs, bags, device, precision)
    for epoch in range(min((r.epoch for r in runs), default=0), last):
        active = [r for r in runs if not r.done and r.epoch == epoch]
        if not active:
            continue
        _train_epoch(active, bags, epoch, device, precision, order_seed)
        _validate(active, bags, device, precision)
        for run in active:
            run.epoch += 1
            _judge(run)
        if on_epoch is not None:
            on_epoch(epoch, runs)
    for run in runs:
        if run.best:
            run.model.load_state_dict(run.best)
        run.model.eval()


def _judge(run: Run) -> None:
    loss = run.log[-1]["val_loss"]
    if not math.isfinite(loss) and len(run.val) == 0:
        loss = -float(run.epoch)  # nothing to choose by: the last epoch it is
    if loss < run.best_loss:
        # A gain of less than this keeps the weights but buys no further patience: separable data
        # would else creep towards zero for ever.
        if loss < run.best_loss - _GAIN:
            run.gain_epoch = run.epoch - 1
        run.best_loss, run.best_epoch = loss, run.epoch - 1
        run.best = {k: v.detach().cpu().clone() for k, v in run.model.state_dict().items()}
    stalled = run.epoch - 1 - run.gain_epoch >= run.settings.patience
    run.done = run.epoch >= run.settings.epochs or stalled


def _train_epoch(
    runs: Sequence[Run],
    bags: BagSet,
    epoch: int,
    device: torch.device,
    precision: str,
    order_seed: int,
) -> None:
    rng = np.random.default_rng([order_seed, epoch])
    order = rng.permutation(len(bags.members))
    takes = {r.key: _repeats(r, epoch) for r in runs}
    waiting: dict[str, list[tuple[int, Tensor]]] = {r.key: [] for r in runs}
    losses: dict[str, list[float]] = {r.key: [] for r in runs}
    for index in order.tolist():
        takers = [r for r in runs if takes[r.key][index]]
        if not takers:
            continue
        drawn = {
            tiles: bags.draw(index, tiles, np.random.default_rng([order_seed, epoch, index])).to(
                device
            )
            for tiles in {r.settings.bag_tiles for r in takers}
        }
        for run in takers:
            pending = waiting[run.key]
            pending += [(index, drawn[run.settings.bag_tiles])] * int(takes[run.key][index])
            if len(pending) >= run.batch:
                losses[run.key].append(_step(run, pending, device, precision))
                pending.clear()
    for run in runs:
        pending = waiting[run.key]
        if pending:
            losses[run.key].append(_step(run, pending, device, precision))
        run.log.append({"train_loss": float(np.mean(losses[run.key]))})


def _repeats(run: Run, epoch: int) -> NDArray[np.int64]:
    """How often the run takes each bag this epoch."""
    out = np.zeros(len(run.y), dtype=np.int64)
    if run.settings.class_weights != "sampler" or run.criteria[0].target.task != "classification":
        out[run.train] = 1
        return out
    first = run.y[torch.as_tensor(run.train), 0, 0].numpy()
    known = ~np.isnan(first)
    _, place, counts = np.unique(first[known], return_inverse=True, return_counts=True)
    p = 1 / (counts[place] * len(counts))
    rng = np.random.default_rng([run.seed, epoch])
    np.add.at(out, rng.choice(run.train[known], size=len(run.train), p=p), 1)
    return out


def _packs(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive bags whose tiles fit into `limit`; a longer bag stands alone."""
    out: list[list[int]] = []
    used = limit + 1
    for i, n in enumerate(sizes):
        if used + n > limit:
            out.append([])
            used = 0
        out[-1].append(i)
        used += n
    return out


def _step(run: Run, batch: list[tuple[int, Tensor]], device: torch.device, precision: str) -> float:
    assert run.optimizer is not None
    run.model.train()
    labels = run.y[torch.tensor([i for i, _ in batch])].to(device)
    with _own_random(run):
        inputs = [_thin(x, run.settings.instance_dropout) for _, x in batch]
        packs = _packs([len(x) for x in inputs], run.settings.pack_tiles)
        run.optimizer.zero_grad(set_to_none=True)
        if run.cox:
            _remember(run, batch, inputs, packs, device, precision)
        loss = 0.0
        for part in packs:
            value = _loss(run, batch, inputs, part, labels[part], device, precision)
            if value is not None:
                share = value * (len(part) / len(batch))
                share.backward()  # type: ignore[no-untyped-call]
                loss += share.item()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 5.0)
        run.optimizer.step()
        run.scheduler.step()
    return loss


def _thin(x: Tensor, share: float) -> Tensor:
    if share <= 0 or len(x) < 2:
        return x
    keep = max(1, round(len(x) * (1 - share)))
    return x[torch.randperm(len(x))[:keep].sort().values.to(x.device)]


def _loss(
    run: Run,
    batch: list[tuple[int, Tensor]],
    inputs: Sequence[Tensor],
    part: Sequence[int],
    labels: Tensor,
    device: torch.device,
    precision: str,
) -> Tensor | None:
    out, segments = _forward(run, [inputs[i] for i in part], device, precision)
    others = run.at_risk_beside([batch[i][0] for i in part])
    if run.hazards is not None:
        run.hazards[[batch[i][0] for i in part]] = out.logits[:, 0].detach().float()
    loss = total_loss(out, labels, run.criteria, run.model.bag_weight, others)
    if len(run.criteria) == 1 and run.criteria[0].target.task == "classification":
        classes = torch.nan_to_num(labels[:, 0, 0], nan=-1.0).long()
        extra = run.model.instance_loss(out, classes, segments)
        if extra is not None:
            loss = extra if loss is None else loss + extra
    return loss


def _forward(
    run: Run, inputs: Sequence[Tensor], device: torch.device, precision: str
) -> tuple[MILOutput, Segments]:
    x, segments = pack([run.normalise(v) for v in inputs])
    with autocast(device, precision):
        return run.model.forward_packed(run.model.cast(x), segments), segments


@torch.no_grad()
def _remember(
    run: Run,
    batch: list[tuple[int, Tensor]],
    inputs: Sequence[Tensor],
    packs: list[list[int]],
    device: torch.device,
    precision: str,
) -> None:
    """Log hazards of a step that takes several packs, with the random numbers it will draw.

    Each pack then finds all others of its step at their present hazards, so the gradients of the
    packs add up to that of one large pack (of the bags' own logits; auxiliary logits find the
    hazards of the bags).
    """
    if len(packs) == 1 or run.hazards is None:
        return
    state = torch.get_rng_state()
    for part in packs:
        out, _ = _forward(run, [inputs[i] for i in part], device, precision)
        run.hazards[[batch[i][0] for i in part]] = out.logits[:, 0].float()
    torch.set_rng_state(state)


def _fill_risk_sets(
    runs: Sequence[Run], bags: BagSet, device: torch.device, precision: str
) -> None:
    """Log hazards of the training part before the first step; each bag is read once."""
    fresh = [r for r in runs if r.cox and r.hazards is None and not r.done]
    if not fresh:
        return
    wanted = np.unique(np.concatenate([r.train for r in fresh]))
    logits = predict_logits(fresh, bags, wanted.tolist(), device=device, precision=precision)
    for run, z in zip(fresh, logits, strict=True):
        own = np.isin(wanted, run.train) & ~torch.isnan(run.y[wanted, 0, 0]).numpy()
        run.hazards = torch.full((len(run.y),), math.nan, device=device)
        run.hazards[torch.as_tensor(wanted[own])] = torch.from_numpy(z[own, 0]).float().to(device)


@torch.no_grad()
def _validate(runs: Sequence[Run], bags: BagSet, device: torch.device, precision: str) -> None:
    logits: dict[str, dict[int, Tensor]] = {r.key: {} for r in runs}
    wanted = {r.key: set(r.val.tolist()) for r in runs}
    limit = min(r.settings.pack_tiles for r in runs)
    for pack_ in _read_packs(bags, sorted(set().union(*wanted.values())), limit, device):
        for run in runs:
            mine = [(i, x) for i, x in pack_ if i in wanted[run.key]]
            if mine:
                z = _predict_pack(run, [x for _, x in mine], device, precision)
                logits[run.key].update(zip([i for i, _ in mine], z, strict=True))
    for run in runs:
        loss = math.nan
        if len(run.val):
            z = torch.stack([logits[run.key][int(i)] for i in run.val])
            y = run.y[torch.as_tensor(run.val)].to(device)
            terms = [c(z, y[:, t]) for t, c in enumerate(run.criteria)]
            known = [t for t in terms if t is not None]
            loss = float(torch.stack(known).sum()) if known else math.nan
        run.log[-1]["val_loss"] = loss


def _read_packs(
    bags: BagSet, indices: Sequence[int], limit: int, device: torch.device
) -> Iterator[list[tuple[int, Tensor]]]:
    """Bags in packs of at most `limit` tiles; a longer bag stands alone."""
    waiting: list[tuple[int, Tensor]] = []
    tiles = 0
    for index in indices:
        x = bags.get(index).to(device)
        if waiting and tiles + len(x) > limit:
            yield waiting
            waiting, tiles = [], 0
        waiting.append((index, x))
        tiles += len(x)
    if waiting:
        yield waiting


def _predict_pack(
    run: Run, inputs: Sequence[Tensor], device: torch.device, precision: str
) -> Tensor:
    run.model.eval()
    with autocast(device, precision):
        return run.model.forward_bags([run.normalise(x) for x in inputs]).logits.float()


@torch.no_grad()
def predict_logits(
    runs: Sequence[Run],
    bags: BagSet,
    indices: Sequence[int],
    *,
    device: torch.device,
    precision: str = "fp32",
) -> NDArray[np.float64]:
    """(runs, bags, columns) logits of the given bags; each bag is read once for all runs."""
    limit = min(r.settings.pack_tiles for r in runs)
    parts: list[list[Tensor]] = [[] for _ in runs]
    for pack_ in _read_packs(bags, [int(i) for i in indices], limit, device):
        for run, part in zip(runs, parts, strict=True):
            part.append(_predict_pack(run, [x for _, x in pack_], device, precision))
    return np.stack([torch.cat(p).double().cpu().numpy() for p in parts])
