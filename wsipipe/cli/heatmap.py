"""`wsipipe heatmap`: attention over the slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsipipe.errors import ConfigError, WsipipeError


def command(
    model: Annotated[
        Path, typer.Option(help="OUT of `wsipipe train`, or one fold.", show_default=False)
    ],
    features: Annotated[Path, typer.Option(help="Folder of feature files.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("heatmaps"),
    slides: Annotated[
        Path | None, typer.Option(help="Folder of slides; without it maps have no background.")
    ] = None,
    pseudonymize: Annotated[
        Path | None, typer.Option(help="Key file, where features bear pseudonyms of the slides.")
    ] = None,
    slide_id: Annotated[
        list[str] | None, typer.Option("--slide-id", help="Only these; repeatable.")
    ] = None,
    kind: Annotated[str, typer.Option(help="auto, attention, or contribution.")] = "auto",
    scale: Annotated[str, typer.Option(help="percentile, or absolute.")] = "percentile",
    mpp: Annotated[float, typer.Option(help="Of the TIFF, µm per pixel.")] = 8.0,
    max_px: Annotated[int, typer.Option(help="Longest edge of the PNG.")] = 2000,
    colormap: Annotated[str, typer.Option(help="A colour map of matplotlib.")] = "inferno",
    alpha: Annotated[float, typer.Option(help="Opacity over the slide, 0 to 1.")] = 0.55,
    tiles: Annotated[int, typer.Option(help="Highest and lowest tiles to show; 0 = none.")] = 8,
    tiff: Annotated[bool, typer.Option("--tiff/--no-tiff", help="Pyramidal TIFF too.")] = True,
    target: Annotated[int, typer.Option(help="Which target, of several (from 0).")] = 0,
    coords_unit: Annotated[
        str | None, typer.Option(help="px0 or um, for files that do not say.")
    ] = None,
    tile_size: Annotated[
        float | None, typer.Option(help="Edge of a tile in that unit, likewise.")
    ] = None,
    feature_key: Annotated[
        str | None, typer.Option(help="Dataset, where a file holds several encoders.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show what the models looked at.

    [bold]Examples[/bold]

      wsipipe heatmap --model wsipipe-mil --features wsipipe-out/features/phikon --slides slides

      wsipipe heatmap --model ... --features ... --slide-id case7 --scale absolute

    For each slide: ID.png with scale bar and colour bar, ID.geojson that QuPath opens (detections
    in level-0 pixels with the value as measurement), ID.tif (pyramidal), ID-tiles.png with the
    highest and lowest tiles. A slide of the training cohort is shown by the folds that held it out.
    """
    from wsipipe.cli._options import quiet_threads

    if tile_size is not None and not 0 < tile_size < float("inf"):
        raise ConfigError(f"--tile-size {tile_size}: it is a positive number.")
    quiet_threads()
    import importlib.util
    import json

    from wsipipe.errors import MissingExtraError
    from wsipipe.mil.bags import find_bags
    from wsipipe.mil.ensemble import load_ensemble
    from wsipipe.mil.maps import EmptyBagError

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("mil", "wsipipe heatmap", ["matplotlib"])
    from wsipipe.report.heatmap_files import HeatmapLook, write_heatmap

    look = HeatmapLook(kind, scale, mpp, max_px, colormap, alpha, tiles, tiff, target)
    ensemble = load_ensemble(model)
    files = find_bags(features, key=feature_key)
    if slide_id:
        unknown = [s for s in slide_id if s not in files]
        if unknown:
            raise ConfigError(f"No features of slide '{unknown[0]}' in {features}.")
        files = {s: files[s] for s in slide_id}
    for note in ensemble.check_features(files.values()):
        typer.echo(note, err=True)
    if ensemble.slides_together:
        typer.echo(
            "The model was judged on all slides of a patient as one bag; a map shows what it makes "
            "of the slide alone.",
            err=True,
        )
    if not 0 <= target < len(ensemble.info["targets"]):
        raise ConfigError(f"--target {target}: the model has {len(ensemble.info['targets'])}.")
    paths = _slide_paths(slides, pseudonymize)
    if slides is not None and not paths.keys() & files.keys():
        typer.echo(
            f"No slide in {slides} bears the name of a feature file: maps have no background. Name "
            "the folder that `extract` was given; where features bear pseudonyms, add "
            "--pseudonymize KEYFILE.",
            err=True,
        )
    made: list[dict[str, Any]] = []
    failures: list[WsipipeError] = []
    for name, file in files.items():
        try:
            path, slide_mpp = paths.get(name, (None, None))
            made.append(
                write_heatmap(
                    ensemble, file, out, look, slide_path=path, slide_mpp=slide_mpp,
                    unit=coords_unit, tile_size=tile_size,
                    say=lambda text: typer.echo(text, err=True),
                )
            )  # fmt: skip
        except EmptyBagError as error:
            typer.echo(str(error), err=True)  # an empty slide is done, not failed
        except WsipipeError as error:
            failures.append(error)
            typer.echo(f"{name}: {error}", err=True)
    if failures and not made and all(isinstance(error, ConfigError) for error in failures):
        raise failures[0]  # nothing could be drawn as asked
    if as_json:
        typer.echo(json.dumps(made))
    else:
        for one in made:
            typer.echo(f"{one['slide_id']}: {', '.join(one['files'])}")
    if failures:
        raise typer.Exit(1)


def _slide_paths(slides: Path | None, key: Path | None) -> dict[str, tuple[str, float | None]]:
    if slides is None:
        return {}
    from wsipipe.slide.discover import find_slides
    from wsipipe.store.pseudonyms import Pseudonymizer

    name = Pseudonymizer(key) if key is not None else str
    return {name(e.slide_id): (e.path, e.mpp) for e in find_slides([str(slides)])}
