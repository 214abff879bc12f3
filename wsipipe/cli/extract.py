"""`wsipipe extract`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsipipe.cli._options import (
    MaxBlack,
    MaxBlood,
    MaxPen,
    MeasureQuality,
    MinFocus,
    MinSaturation,
    number_or_auto,
    quiet_threads,
)

if TYPE_CHECKING:
    from wsipipe.config import ExtractSettings
    from wsipipe.embed.drain import Drain
    from wsipipe.pipeline.extract import ExtractPlan
    from wsipipe.pipeline.result import RunResult

_GRID = "Tiles"
_TISSUE = "Tissue"
_MACHINE = "Machine"
_RUN = "Run"
_NAMES = "Names and paths"


def command(
    slides: Annotated[
        list[str],
        typer.Argument(help="Slides, folders, a manifest .csv (path, slide_id, mpp), or URLs."),
    ],
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Encoder; give it again for several in one pass. Default: texture."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("wsipipe-out"),
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel; default: the card's.", rich_help_panel=_GRID)
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Tile edge; default: the card's.", rich_help_panel=_GRID)
    ] = None,
    allow_off_card: Annotated[
        bool,
        typer.Option(
            "--allow-off-card",
            help="Permit another mpp or tile size than the card's.",
            rich_help_panel=_GRID,
        ),
    ] = False,
    mpp_tolerance: Annotated[
        float,
        typer.Option(
            help="Take a level's own pixels if its mpp is this close; 0: always resample.",
            rich_help_panel=_GRID,
        ),
    ] = 0.05,
    max_upsample: Annotated[
        float,
        typer.Option(help="How much coarser a slide may be than --mpp.", rich_help_panel=_GRID),
    ] = 1.10,
    overlap: Annotated[
        float, typer.Option(help="Fraction of a tile, 0 <= F < 1.", rich_help_panel=_GRID)
    ] = 0.0,
    slide_mpp: Annotated[
        float | None,
        typer.Option(
            help="µm per level-0 pixel, for slides without one or with a wrong one.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    icc: Annotated[
        str,
        typer.Option(help="srgb applies the slide's colour profile; none.", rich_help_panel=_GRID),
    ] = "none",
    min_tissue: Annotated[
        float,
        typer.Option(help="Fraction of a tile that must be tissue.", rich_help_panel=_TISSUE),
    ] = 0.25,
    tissue: Annotated[
        str,
        typer.Option(
            help="Detector, 'none' (whole slide), or a folder of GeoJSON masks.",
            rich_help_panel=_TISSUE,
        ),
    ] = "auto",
    roi: Annotated[
        Path | None,
        typer.Option(
            help="GeoJSON to stay inside of: a file, or a folder of <slide_id>.geojson.",
            rich_help_panel=_TISSUE,
        ),
    ] = None,
    roi_class: Annotated[
        str | None,
        typer.Option(help="Only annotations of this class.", rich_help_panel=_TISSUE),
    ] = None,
    quality: MeasureQuality = False,
    min_focus: MinFocus = None,
    min_saturation: MinSaturation = None,
    max_pen: MaxPen = None,
    max_blood: MaxBlood = None,
    max_black: MaxBlack = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda:1, openvino; several, cuda:0,cuda:1, get a process each and "
            "share very large slides.",
            rich_help_panel=_MACHINE,
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16, fp16.", rich_help_panel=_MACHINE)
    ] = "auto",
    batch_size: Annotated[
        str, typer.Option(help="auto: measured; or a number.", rich_help_panel=_MACHINE)
    ] = "auto",
    workers: Annotated[
        str, typer.Option(help="Threads that read; auto or a number.", rich_help_panel=_MACHINE)
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of stored features: float16, float32.", rich_help_panel=_MACHINE)
    ] = "float16",
    weights: Annotated[
        str | None,
        typer.Option(help="A checkpoint of your own for the encoder.", rich_help_panel=_MACHINE),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Bit-equal features on one machine's CPU, whatever batch size and threads.",
            rich_help_panel=_MACHINE,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: only this process's share, 1-based; for arrays of a scheduler.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    join: Annotated[
        bool,
        typer.Option(
            "--join",
            help="Share the folder with other processes on any host: slides go by lease.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    executor: Annotated[
        str,
        typer.Option(
            help="local; ray: one actor a device of a Ray cluster; ray://HOST[:PORT]: that one.",
            rich_help_panel=_RUN,
        ),
    ] = "local",
    stage: Annotated[
        Path | None,
        typer.Option(
            help="Local folder that slides are copied to before reading.", rich_help_panel=_RUN
        ),
    ] = None,
    slide_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that one read may hang before its slide fails.", rich_help_panel=_RUN
        ),
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option(
            help="Seconds after a signal in which begun slides may finish.", rich_help_panel=_RUN
        ),
    ] = 30.0,
    max_bad_tiles: Annotated[
        float,
        typer.Option(
            help="Share of unreadable tiles above which a slide fails.", rich_help_panel=_RUN
        ),
    ] = 0.01,
    pseudonymize: Annotated[
        Path | None,
        typer.Option(
            help="Key file: slides go by keyed hashes of their ids in every output.",
            rich_help_panel=_NAMES,
        ),
    ] = None,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key", help="Make that key file if it is not there.", rich_help_panel=_NAMES
        ),
    ] = False,
    pseudonym_map: Annotated[
        Path | None,
        typer.Option(
            help="Write who is who to this .csv, outside of --out.", rich_help_panel=_NAMES
        ),
    ] = None,
    hide_paths: Annotated[
        bool,
        typer.Option(
            "--hide-paths",
            help="Record only the last part of paths.",
            rich_help_panel=_NAMES,
        ),
    ] = False,
    compile_model: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model first (a minute or more); kept if the same and faster.",
            rich_help_panel=_MACHINE,
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write what each thread does and waits for; open it at ui.perfetto.dev.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Replace files of other settings.", rich_help_panel=_RUN),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at the first failed slide.", rich_help_panel=_RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done; write nothing.", rich_help_panel=_RUN
        ),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Result as one JSON document.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Tissue, tiles and features of all slides. Run it again: only what is missing is done.

    [bold]Examples[/bold]

    Try it, with the built-in encoder:
      wsipipe extract slides/ --out features

    A foundation model; its card decides mpp and tile size:
      wsipipe extract slides/ --encoder phikon --out features

    Two encoders in one pass over the pixels:
      wsipipe extract slides/ --encoder phikon --encoder texture

    Slides that do not say their resolution:
      wsipipe extract old/*.tif --slide-mpp 0.2527

    Start this on as many machines as you like; they share the work:
      wsipipe extract cohort.csv --encoder phikon --out /shared/features --join

    Names of slides that must not leave the hospital; the key must not, either:
      wsipipe extract slides/ --out features --pseudonymize keys/study.key --new-key

    One of eight tasks of a scheduler's array, where there is no shared folder:
      wsipipe extract cohort.csv --encoder phikon --shard 3/8

    Where does the time go? Reading, model, writing and waiting of each thread:
      wsipipe extract slides/ --encoder phikon --profile trace.json

    Exit codes: 0 all done, 1 some slides failed (see failures.csv), 2 the command is wrong,
    3 weights or a package are missing, 4 disk full or not writable, 75 stopped by a signal: run
    the same command again.
    """
    from wsipipe.embed.drain import Drain

    # First of all: a signal that comes while torch loads must not be lost.
    with Drain() as drain:
        quiet_threads()
        from wsipipe.config import ExtractSettings

        settings = ExtractSettings.of(
            encoders=tuple(encoder or ("texture",)),
            out=out,
            mpp=mpp,
            tile_px=tile_px,
            allow_off_card=allow_off_card,
            mpp_tolerance=mpp_tolerance,
            max_upsample=max_upsample,
            overlap=overlap,
            slide_mpp=slide_mpp,
            icc=icc,
            min_tissue=min_tissue,
            tissue=tissue,
            roi=roi,
            roi_class=roi_class,
            quality=quality,
            min_focus=min_focus,
            min_saturation=min_saturation,
            max_pen=max_pen,
            max_blood=max_blood,
            max_black=max_black,
            device=device,
            precision=precision,
            batch_size=number_or_auto("--batch-size", batch_size),
            workers=number_or_auto("--workers", workers),
            dtype=dtype,
            weights=weights,
            deterministic=deterministic,
            shard=shard,
            join=join,
            executor=executor,
            stage=stage,
            slide_timeout=slide_timeout,
            grace=grace,
            max_bad_tiles=max_bad_tiles,
            compile=compile_model,
            profile=profile,
            pseudonymize=pseudonymize,
            new_key=new_key,
            pseudonym_map=pseudonym_map,
            hide_paths=hide_paths,
            recompute=recompute,
            strict=strict,
        )
        if dry_run:
            from wsipipe.pipeline.extract import plan_extract

            _show_plan(plan_extract(settings, slides), json_output)
            return
        raise typer.Exit(_run(settings, slides, drain, json_output))


def _run(settings: ExtractSettings, slides: list[str], drain: Drain, as_json: bool) -> int:
    from wsipipe.cli._progress import make_reporter
    from wsipipe.pipeline.extract import run_extract
    from wsipipe.pipeline.result import RunDrained

    try:
        result = run_extract(settings, slides, drain=drain, reporter=make_reporter())
    except RunDrained as drained:
        if as_json and drained.result is not None:
            _print_json(_document(drained.result))
        raise
    if as_json:
        _print_json(_document(result))
    else:
        _say_result(result)
    return result.exit_code


def _document(result: RunResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "done": list(result.done),
        "empty": list(result.empty),
        "failed": list(result.failed),
        "pending": list(result.pending),
        "reasons": result.reasons,
        "tiles": result.tiles,
        "seconds": round(result.seconds, 2),
    }


def _say_result(result: Any) -> None:
    parts = [
        f"{len(ids)} {name}"
        for name, ids in (
            ("done", result.done),
            ("empty", result.empty),
            ("failed", result.failed),
            ("pending", result.pending),
        )
        if ids
    ]
    rate = f", {result.tiles / result.seconds:.0f} tiles/s" if result.tiles else ""
    typer.echo(
        f"{', '.join(parts) or 'Nothing to do'}; {result.tiles} tiles in "
        f"{result.seconds:.1f} s{rate}. Files in {result.out}",
        err=True,
    )
    if result.failed:
        typer.echo(f"Failures and remedies: {result.out / 'failures.csv'}", err=True)


def _show_plan(plan: ExtractPlan, as_json: bool) -> None:
    targets = [
        {"encoder": t.name, "folder": f"features/{t.folder}", "mpp": t.mpp, "tile_px": t.tile_px}
        for t in plan.targets
    ]
    slides = [
        {
            "slide_id": s.entry.slide_id,
            "path": plan.shown(s)[1],
            "todo": [t.folder for t in s.todo],
            "done": [t.folder for t in s.done],
            "error": s.error and plan.privacy.texts.about(s.entry.slide_id)(str(s.error)),
        }
        for s in plan.slides
    ]
    if as_json:
        _print_json({"targets": targets, "slides": slides})
        return
    for target in targets:
        typer.echo(
            f"{target['encoder']}: {target['tile_px']} px at {target['mpp']} µm/px "
            f"-> {target['folder']}"
        )
    for slide in slides:
        if slide["error"]:
            state = f"fails: {slide['error']}"
        else:
            state = f"to do: {', '.join(slide['todo'])}" if slide["todo"] else "done"
        typer.echo(f"  {slide['slide_id']}  {state}")


def _print_json(document: Any) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
