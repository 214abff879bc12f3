"""The main job: slides in, feature files out, whatever was done before left as it is.

    find targets ─▶ output writable ─▶ find slides ─▶ weights ─▶ plan ─▶ engine ─▶ tables

Everything up to the plan can refuse the run, and nothing has started then.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsipipe.config import ExtractSettings, Shard
from wsipipe.embed.drain import Drain
from wsipipe.errors import ConfigError, WeightsError
from wsipipe.pipeline.planning import SlidePlan, plan_slides
from wsipipe.pipeline.privacy import Privacy, hide_names, prepare_key
from wsipipe.pipeline.reporter import Reporter
from wsipipe.pipeline.result import RunDrained, RunResult
from wsipipe.pipeline.targets import Target, find_targets, identify_targets
from wsipipe.slide.discover import SlideEntry, find_slides
from wsipipe.store import (
    remove_range_records,
    remove_stale_partials,
    remove_stale_temporaries,
    write_run_yaml,
    write_tables,
)
from wsipipe.store.publish import make_folder, output_error
from wsipipe.tissue import roi_settings, tissue_settings
from wsipipe.tissue.registry import licence_line as tissue_licence

__all__ = ["ExtractPlan", "extract", "plan_extract", "run_extract"]

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class UnfitWeightsError(WeightsError):
    """The checkpoint that was named is not one of the encoder: the command is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class ExtractPlan:
    """What a run would do.

    Attributes:
        targets: Encoders with their resolution, tile size and identity.
        slides: Each with what is done and what is to do.
        privacy: What is hidden of their names.
    """

    settings: ExtractSettings
    targets: Sequence[Target]
    slides: Sequence[SlidePlan]
    privacy: Privacy

    def shown(self, slide: SlidePlan) -> tuple[str, str]:
        """Id and path of a slide as tables and messages may bear them."""
        entry = slide.entry
        return entry.slide_id, self.privacy.texts.path_of(entry.slide_id, str(entry.path))


def extract(
    slides: Inputs,
    *,
    encoder: str | Sequence[str] = "texture",
    out: str | os.PathLike[str] = "wsipipe-out",
    **settings: Any,
) -> RunResult:
    """Extract features of slides: tissue, tiles, features. Run again, it does only what is missing.

    Args:
        slides: Files, folders, a manifest .csv, URLs, or a list of these.
        encoder: Name, or names that share one pass over the pixels.
        out: Folder of the run.
        settings: As `wsipipe.config.ExtractSettings` names them: `mpp`, `overlap`, `tissue`, ...

    Returns:
        `.done`, `.empty`, `.failed`: ids of slides. A failed slide raises nothing; see `.reasons`.

    Raises:
        ConfigError, UnknownEncoderError, OffCardError: What was asked for makes no sense.
        WeightsError, GatedEncoderError, MissingExtraError: Something has to be fetched first.
        IdentityMismatchError: `out` holds files of other settings, and `recompute` is off.
        OutputError: `out` cannot be written, or its disk is full.
    """
    names = (encoder,) if isinstance(encoder, str) else tuple(encoder)
    return run_extract(
        ExtractSettings.of(encoders=names, out=Path(out), **settings), slides, reporter=Reporter()
    )


def plan_extract(settings: ExtractSettings, inputs: Inputs) -> ExtractPlan:
    """Check everything that can be checked before work starts; writes nothing.

    Raises:
        As `extract`.
    """
    targets = find_targets(settings)
    # A misspelt method or path is one mistake, not one a slide.
    tissue_settings(settings.tissue)
    if settings.roi is not None:
        roi_settings(settings.roi, classes=settings.roi_class or ())
    check_devices(settings)
    check_writable(settings.out)
    entries, privacy = hide_names(settings, find_slides(inputs))
    if settings.shard is not None:
        entries = _share(entries, settings.shard)
    targets = identify_targets(targets, settings)
    slides = plan_slides(settings, targets, entries)
    if any(slide.todo for slide in slides):
        check_weights(settings, targets)
    return ExtractPlan(settings, targets, slides, privacy)


def run_extract(
    settings: ExtractSettings,
    inputs: Inputs,
    *,
    drain: Drain | None = None,
    reporter: Reporter | None = None,
    ranges: Mapping[str, int] | None = None,
) -> RunResult:
    """`extract` with settings, a way to stop it and somebody who watches.

    Args:
        ranges: See `RunState`; for one of several processes.

    Raises:
        As `extract`; and Drained: a stop was requested and slides are left.
    """
    begun = time.monotonic()
    drain, reporter = drain or Drain(), reporter or Reporter()
    prepare_key(settings)
    plan = plan_extract(settings, inputs)
    from wsipipe.pipeline.running import RunState
    from wsipipe.pipeline.slide_task import PARTIAL_FOLDER
    from wsipipe.pipeline.workers import Crew

    make_folder(settings.out)
    plan.privacy.publish(settings)
    remove_stale_temporaries(settings.out)
    remove_stale_partials(settings.out / PARTIAL_FOLDER)
    for target in plan.targets:
        reporter.say(licence_line(target))
    if (tissue_terms := tissue_licence(settings.tissue)) is not None:
        reporter.say(tissue_terms)
    reporter.planned(plan.slides)
    if settings.executor != "local":
        return _run_elsewhere(plan, inputs, drain, reporter)
    state: RunState | Crew
    if len(settings.devices) > 1:
        state = Crew(plan, _absolute(inputs), drain, reporter)
    else:
        texts = plan.privacy.texts
        state = RunState(plan.settings, plan.targets, plan.slides, drain, reporter, texts, ranges)
    try:
        state.run()
    finally:
        reporter.closed()
        if ranges is None:
            _tidy(plan)
        _write_tables(plan, state.facts())
    result = state.result(time.monotonic() - begun)
    if drain.requested and result.pending:
        raise RunDrained(str(drain.signal_name), result)
    return result


def _tidy(plan: ExtractPlan) -> None:
    """Remove what processes that shared slides, of this run or of a killed one, have left."""
    from wsipipe.pipeline.slide_task import PARTIAL_FOLDER

    out = plan.settings.out
    remove_range_records(out, {slide.entry.slide_id for slide in plan.slides})
    remove_stale_partials(out / PARTIAL_FOLDER)


def _run_elsewhere(
    plan: ExtractPlan, inputs: Inputs, drain: Drain, reporter: Reporter
) -> RunResult:
    from wsipipe.pipeline.ray_executor import run_on_ray

    try:
        return run_on_ray(plan.settings, _absolute(inputs), plan, drain=drain, reporter=reporter)
    finally:
        reporter.closed()
        _write_tables(plan, {})


def _absolute(inputs: Inputs) -> list[str]:
    """Paths as any process understands them; URLs as they are."""
    texts = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    plain = [os.fspath(text) for text in texts]
    return [text if "://" in text else str(Path(text).absolute()) for text in plain]


def _write_tables(plan: ExtractPlan, facts: Mapping[str, Any]) -> None:
    settings, privacy = plan.settings, plan.privacy
    content = settings.model_dump(mode="json")
    if privacy.key is not None:
        content |= {"pseudonymize": f"key {privacy.key.key_id}", "pseudonym_map": None}
    write_run_yaml(
        settings.out,
        content,
        texts=privacy.texts,
        encoders=[_described(target) for target in plan.targets],
        **facts,
    )
    expected = [plan.shown(slide) for slide in plan.slides]
    write_tables(settings.out, expected, [target.folder for target in plan.targets])


def _described(target: Target) -> dict[str, Any]:
    card = target.card
    return {
        "name": target.name,
        "folder": target.folder,
        "mpp": target.mpp,
        "tile_px": target.tile_px,
        "licence": card.licence,
        "commercial": card.commercial,
        "identity": target.identity,
    }


def licence_line(target: Target) -> str:
    """The terms of an encoder's weights, in one sentence."""
    card = target.card
    terms = "commercial use allowed" if card.commercial else "no commercial use without asking"
    page = f", see {card.terms_page}" if card.terms_page else ""
    return f"{target.name}: licence of the weights {card.licence} ({terms}{page})."


def _share(entries: list[SlideEntry], shard: Shard) -> list[SlideEntry]:
    """Every N-th slide by id: the same on any machine; may be none where slides are few."""
    ordered = sorted(entries, key=lambda entry: entry.slide_id)
    return ordered[shard.index - 1 :: shard.count]


def check_devices(settings: ExtractSettings) -> None:
    """Find out before anything is written whether the devices are there.

    Raises:
        ConfigError: A device is unknown, or not in this machine.
        MissingExtraError: OpenVINO is asked for and not installed.
    """
    asked = {name for name in settings.devices if name not in ("auto", "cpu")}
    if not asked or settings.executor != "local":
        return
    from wsipipe.encoders.create import pick_device
    from wsipipe.encoders.openvino import check_place, openvino_place

    for name in sorted(asked):
        if (place := openvino_place(name)) is not None:
            check_place(place)
        else:
            pick_device(name)


def check_weights(settings: ExtractSettings, targets: Sequence[Target]) -> None:
    """Try checkpoints of one's own now: published ones are known to fit.

    Raises:
        UnfitWeightsError: They do not fit, or cannot be read.
    """
    for target in targets:
        if settings.weights is None and not Path(target.name).is_dir():
            continue
        from wsipipe.encoders import create_encoder

        try:
            create_encoder(target.name, weights=settings.weights, precision="fp32")
        except WeightsError as error:
            raise UnfitWeightsError(error.name, error.problem, error.remedy) from error


def check_writable(out: Path) -> None:
    """Find out now, not after an hour of work, whether `out` can be written.

    Raises:
        OutputError: It cannot.
        ConfigError: It is a file.
    """
    folder = out
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a folder.", "Choose another --out.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise output_error(out, error) from error
