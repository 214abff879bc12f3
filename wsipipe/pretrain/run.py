"""`pretrain`: from slides or tiles and the name of a recipe to a folder that `extract` takes."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wsipipe.errors import ConfigError, MissingExtraError, OutputError
from wsipipe.pretrain.recipe import Recipe, load_recipe
from wsipipe.store import publish_text

if TYPE_CHECKING:
    from wsipipe.pretrain.initial import Start
    from wsipipe.pretrain.source import Source
    from wsipipe.pretrain.trainer import Trainer, TrainResult

__all__ = ["Pretrained", "pretrain"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """What a run left.

    Attributes:
        encoder: Folder for `wsipipe extract --encoder`.
        steps: Updates.
        tiles: Tiles seen.
        slides: Slides used.
        skipped: (slide_id, reason) of slides that were not.
        loss: Last loss, or None if nothing was left to do.
        health: Last monitor values.
        data_wait: Share of the time spent waiting for data.
    """

    encoder: Path
    steps: int
    tiles: int
    slides: int
    skipped: tuple[tuple[str, str], ...]
    loss: float | None
    health: dict[str, float]
    data_wait: float


def pretrain(
    recipe: str,
    *,
    out: str | Path,
    scale: str = "smoke",
    slides: Sequence[str | Path] = (),
    tiles: str | Path | None = None,
    init: str | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    tissue: str = "auto",
    labelled: str | Path | None = None,
    clusters: str | Path | None = None,
    stop_signal: Callable[[], str | None] = lambda: None,
) -> Pretrained:
    """Train an encoder.

    Args:
        recipe: Name of a recipe, or path of a YAML file.
        out: Folder of the run.
        scale: smoke (CPU, minutes), small (one GPU, a day) or paper.
        slides: Slides, folders or manifests to stream from.
        tiles: Tiles instead: a folder, a .csv or an .h5 file.
        init: Encoder to start from, as `create_encoder` names it.
        changes: {"optim.steps": 100, ...} on top of the recipe.
        resume: A run is expected in `out`: say so if training starts anew. A run that is there
            goes on in any case, if it has the same settings.
        device: auto, cpu, cuda, cuda:1, ...
        workers: Threads that read; None = as many as this process has cores.
        tissue: Tissue method, or a folder of masks.
        labelled: Tiles with labels for an online k-NN, as `tiles`.
        clusters: Clusters of tiles for `sampler.balance: clusters`, or a folder of features.
        stop_signal: Returns the name of a signal that asks to stop, or None.

    Raises:
        ConfigError: Recipe, data or checkpoint do not fit.
        TrainingError: The loss diverged or the features collapsed.
        Drained: A signal asked to stop; run again to go on.
    """
    _require()
    resolved = load_recipe(recipe, scale, changes)
    out = Path(out)
    if bool(slides) == (tiles is not None):
        raise ConfigError(
            "either slides or tiles must be given.", "Use --slides DIR or --tiles DIR."
        )
    place = _join_processes(device)
    start = _start(init)
    if start is not None:
        resolved = start.applied(resolved, frozenset(changes or {}))
    _make_out(out)
    source = _source(resolved, out, slides, tiles, workers, tissue, clusters)
    try:
        trainer = _trainer(resolved, source, out, place, start, labelled, stop_signal)
        if not trainer.resume() and resume:
            log.warning("%s holds no checkpoint to go on from: training starts anew", out)
        _write_settings(out, resolved, source)
        result = trainer.train()
        return _finish(trainer, result, source, start)
    finally:
        source.close()
        _leave_processes()


def _require() -> None:
    try:
        import kornia  # noqa: F401
        import lightly  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pretrain", "Pretraining", [str(error.name)]) from None


def _join_processes(device: str) -> Any:
    """Under torchrun: one process a device, NCCL on GPUs, gloo on CPUs."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}.", "auto, cpu, cuda or cuda:N.") from None
    if place.type == "cuda":
        here = torch.cuda.device_count()
        if (place.index or 0) >= here:
            raise ConfigError(f"device {device!r}: torch sees {here} GPUs.", "Use --device cpu.")
        torch.cuda.set_device(place)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return place


def _leave_processes() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _start(init: str | None) -> Start | None:
    if init is None:
        return None
    from wsipipe.pretrain.initial import start_from

    return start_from(init)


def _make_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file.", "--out names the folder of the run.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(out, f"cannot be made ({error}).") from error


def _source(
    recipe: Recipe,
    out: Path,
    slides: Sequence[str | Path],
    tiles: str | Path | None,
    workers: int | None,
    tissue: str,
    clusters: str | Path | None,
) -> Source:
    from wsipipe.pretrain.source import Region, open_tiles

    region = recipe.sampler.region
    if tiles is not None:
        cut = Region(region.factor, region.px) if region else None
        return open_tiles(Path(tiles), recipe.sampler.px, recipe.seed, cut)
    from wsipipe.embed.resources import available_cpus
    from wsipipe.pretrain.stream import SlideSource
    from wsipipe.slide import find_slides

    source = SlideSource(
        find_slides([str(s) for s in slides]),
        recipe.sampler,
        seed=recipe.seed,
        tissue=tissue,
        cache=out / "tissue",
        workers=workers or available_cpus(),
    )
    if recipe.sampler.balance == "clusters":
        from wsipipe.pretrain.cluster import find_anchors

        source.anchors = find_anchors(source, clusters, out, seed=recipe.seed)
    return source


def _trainer(
    recipe: Recipe,
    source: Source,
    out: Path,
    place: Any,
    start: Start | None,
    labelled: str | Path | None,
    stop_signal: Callable[[], str | None],
) -> Trainer:
    from wsipipe.pretrain.source import open_tiles
    from wsipipe.pretrain.trainer import Trainer

    probe = open_tiles(Path(labelled), recipe.views.global_.px) if labelled is not None else None
    if probe is not None and "label" not in probe.labels:
        raise ConfigError(f"{labelled}: these tiles have no labels.", "One subfolder a class.")
    return Trainer(
        recipe,
        source,
        out,
        device=place,
        initial=None if start is None else start.state,
        labelled=probe,
        stop_signal=stop_signal,
    )


def _write_settings(out: Path, recipe: Recipe, source: Source) -> None:
    from wsipipe.pretrain.distributed import rank

    if rank() != 0:
        return
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    publish_text(out / "recipe.yaml", text)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["slide_id", "status", "reason"])
    writer.writerows([name, "used", ""] for name in source.names)
    writer.writerows([s, "left out", why] for s, why in getattr(source, "skipped", ()))
    publish_text(out / "slides.csv", table.getvalue())


def _finish(
    trainer: Trainer, result: TrainResult, source: Source, start: Start | None
) -> Pretrained:
    from wsipipe.pretrain.distributed import rank
    from wsipipe.pretrain.export import export_encoder

    folder = trainer.out / "encoder"
    kept = not result.losses and (folder / "manifest.json").is_file()
    if rank() == 0 and not kept:
        history = {
            "steps": result.steps,
            "tiles_seen": result.tiles,
            "slides_seen": result.slides,
            "initial": None if start is None else start.identity,
            "initial_licence": None if start is None else start.card.licence,
            "health": result.health,
        }
        method = trainer.method
        try:
            export_encoder(method.exported(), trainer.recipe, folder, history, method.head_state())
        except OSError as error:
            raise OutputError(
                folder, f"cannot be written ({error}).", "Free some space, and run again to go on."
            ) from error
    return Pretrained(
        encoder=folder,
        steps=result.steps,
        tiles=result.tiles,
        slides=len(source.names),
        skipped=tuple(getattr(source, "skipped", ())),
        loss=result.losses[-1] if result.losses else None,
        health=result.health,
        data_wait=result.data_wait,
    )
