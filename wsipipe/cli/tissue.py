"""`wsipipe tissue`: only find the tissue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsipipe.errors import WsipipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsipipe.pipeline.stages import StageResult, TissueStage


def command(
    slides: Annotated[
        list[str],
        typer.Argument(help="Slides, folders, a manifest .csv (path, slide_id, mpp), or URLs."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("wsipipe-out"),
    tissue: Annotated[
        str,
        typer.Option(
            help="auto, otsu, hsv, entropy, none; hest, grandqc, grandqc-artefacts or a checkpoint "
            "folder; a plugin; a folder of GeoJSON masks. Settings: 'auto?min_tissue_mm2=0.1'."
        ),
    ] = "auto",
    slide_mpp: Annotated[
        float | None,
        typer.Option(help="µm per level-0 pixel, for slides without one or with a wrong one."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Replace masks of other settings and edited ones.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Slides at a time.")] = 1,
    json_output: Annotated[
        bool, typer.Option("--json", help="Result as one JSON document.")
    ] = False,
) -> None:
    """Find the tissue, leave the pen: outlines for QuPath and a picture to look at.

    Writes OUT/tissue/<slide_id>.geojson and OUT/thumbnails/<slide_id>.jpg. Run it again: only what
    is missing is done. Masks that you edit are never replaced; use them with --tissue OUT/tissue.

    [bold]Examples[/bold]

    Find tissue, open the outlines in QuPath, correct them, use them:
      wsipipe tissue slides/ --out masks
      wsipipe extract slides/ --tissue masks/tissue

    Small biopsies; keep what has the colour of pen:
      wsipipe tissue slides/ --tissue 'auto?min_tissue_mm2=0.005&pen=false'

    Exit codes: 0 all done, 1 some slides failed, 2 the command is wrong or other settings were
    used before (--recompute), 3 weights or a package are missing, 4 not writable, 75 stopped by a
    signal.
    """
    from wsipipe.cli._options import quiet_threads
    from wsipipe.embed.drain import Drain

    drain = Drain().install()
    quiet_threads()
    from wsipipe.pipeline.stages import StageSettings, TissueStage

    settings = StageSettings(out, tissue, slide_mpp, recompute, workers)
    run_and_report(TissueStage(settings), slides, drain, json_output)


def run_and_report(stage: TissueStage, slides: Sequence[str], drain: Any, as_json: bool) -> None:
    """Run a stage, say each result on stderr, end with the contract's exit code."""
    import json

    from wsipipe.pipeline.stages import run_stage
    from wsipipe.tissue.registry import licence_line

    licence = licence_line(stage.settings.tissue)
    if licence is not None:
        typer.echo(licence, err=True)
    results = run_stage(stage, slides, drain=drain, watch=_say)
    failed = sum(1 for result in results if result.status == "failed")
    if as_json:
        document = {
            "out": str(stage.settings.out),
            "slides": [result.as_dict for result in results],
            "outliers": _outliers(results),
        }
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        for slide_id, reasons in _outliers(results).items():
            typer.echo(f"unlike the others: {slide_id} ({', '.join(reasons)})", err=True)
        typer.echo(
            f"{len(results) - failed} done, {failed} failed. Files in {stage.settings.out}",
            err=True,
        )
    raise typer.Exit(1 if failed else 0)


def _say(result: StageResult) -> None:
    if result.status == "failed":
        told = WsipipeError(result.error, result.remedy)
        typer.echo(f"{result.slide_id}: FAILED: {told}", err=True)
        return
    numbers = ", ".join(
        f"{name} {value:g}" for name, value in result.numbers.items() if value is not None
    )
    known = " (was done)" if result.kept else ""
    typer.echo(f"{result.slide_id}: {result.status}{known}: {numbers}", err=True)


def _outliers(results: Sequence[StageResult]) -> dict[str, list[str]]:
    from wsipipe.tissue.quality import flag_outliers

    return flag_outliers(
        {
            r.slide_id: {k: float(v) for k, v in r.numbers.items() if v is not None}
            for r in results
            if r.status != "failed"
        }
    )
