"""`wsipipe tile`: find the tissue and lay the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsipipe.cli._options import (
    MaxBlack,
    MaxBlood,
    MaxPen,
    MeasureQuality,
    MinFocus,
    MinSaturation,
    quiet_threads,
)


def command(
    slides: Annotated[
        list[str],
        typer.Argument(help="Slides, folders, a manifest .csv (path, slide_id, mpp), or URLs."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("wsipipe-out"),
    encoder: Annotated[
        str, typer.Option(help="Whose card gives tile size and mpp where they are not given.")
    ] = "texture",
    mpp: Annotated[float | None, typer.Option(help="µm per pixel; default: the card's.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Tile edge; default: the card's.")] = None,
    mpp_tolerance: Annotated[float, typer.Option(help="As for extract.")] = 0.05,
    max_upsample: Annotated[float, typer.Option(help="As for extract.")] = 1.10,
    overlap: Annotated[float, typer.Option(help="Fraction of a tile, 0 <= F < 1.")] = 0.0,
    min_tissue: Annotated[
        float, typer.Option(help="Fraction of a tile that must be tissue.")
    ] = 0.25,
    tissue: Annotated[str, typer.Option(help="As for `wsipipe tissue`.")] = "auto",
    roi: Annotated[
        Path | None,
        typer.Option(help="GeoJSON, or a folder of <slide_id>.geojson, to stay inside of."),
    ] = None,
    roi_class: Annotated[str | None, typer.Option(help="Only annotations of this class.")] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="As for extract.")] = None,
    quality: MeasureQuality = False,
    min_focus: MinFocus = None,
    min_saturation: MinSaturation = None,
    max_pen: MaxPen = None,
    max_blood: MaxBlood = None,
    max_black: MaxBlack = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Replace files of other settings.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Slides at a time.")] = 1,
    json_output: Annotated[
        bool, typer.Option("--json", help="Result as one JSON document.")
    ] = False,
) -> None:
    """Find the tissue and lay the grid: the coordinates of all tiles, without features.

    Writes OUT/tiles/<px>px-<mpp>mpp/<slide_id>.h5 (coords in level-0 pixels, tissue_fraction, and
    quality/<name> on request), besides the files of `wsipipe tissue`.

    [bold]Examples[/bold]

      wsipipe tile slides/ --encoder phikon
      wsipipe tile slides/ --tile-px 256 --mpp 1 --overlap 0.5
      wsipipe tile slides/ --roi annotations/ --roi-class Tumor
      wsipipe tile slides/ --quality --min-focus 100 --json

    Exit codes: as for `wsipipe tissue`.
    """
    from wsipipe.embed.drain import Drain

    drain = Drain().install()
    quiet_threads()
    from wsipipe.cli.tissue import run_and_report
    from wsipipe.encoders import resolve
    from wsipipe.errors import ConfigError
    from wsipipe.pipeline.tile_stage import TileSettings, TileStage
    from wsipipe.tissue.quality import QualityFilter

    if roi_class is not None and roi is None:
        raise ConfigError("--roi-class picks a class of --roi, and --roi is not given.", "Give it.")
    card = resolve(encoder) if mpp is None or tile_px is None else None
    mpp = mpp if mpp is not None or card is None else card.mpp
    tile_px = tile_px if tile_px is not None or card is None else card.tile_px
    if mpp is None or tile_px is None:
        raise ConfigError(f"The card of {encoder} names no mpp.", "Give --mpp.")
    settings = TileSettings(
        out=out,
        tissue=tissue,
        slide_mpp=slide_mpp,
        recompute=recompute,
        workers=workers,
        tile_px=tile_px,
        mpp=mpp,
        overlap=overlap,
        min_tissue=min_tissue,
        mpp_tolerance=mpp_tolerance,
        max_upsample=max_upsample,
        roi=roi,
        roi_class=roi_class,
        quality=quality,
        filter=QualityFilter.of(
            min_focus=min_focus,
            min_saturation=min_saturation,
            max_pen=max_pen,
            max_blood=max_blood,
            max_black=max_black,
        ),
    )
    run_and_report(TileStage(settings), slides, drain, json_output)
