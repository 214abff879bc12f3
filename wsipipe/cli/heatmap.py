"""`wsipipe heatmap`: attention over the slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsipipe.errors import ConfigError, SlideError, WsipipeError

if TYPE_CHECKING:
    from wsipipe.mil.bags import BagFile
    from wsipipe.slide import Slide


def command(
    model: Annotated[
        Path, typer.Option(help="OUT of `wsipipe train`, or one fold.", show_default=False)
    ],
    features: Annotated[Path, typer.Option(help="Folder of feature files.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("heatmaps"),
    slides: Annotated[
        Path | None, typer.Option(help="Folder of slides; without it maps have no background.")
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

    sizes = [mpp] if tile_size is None else [mpp, tile_size]
    if not all(0 < v < float("inf") for v in sizes):
        raise ConfigError("--mpp and --tile-size are positive numbers.")
    if not 0 <= alpha <= 1 or max_px < 16 or tiles < 0:
        raise ConfigError("--alpha is within 0 and 1; --mpp, --max-px and --tiles are positive.")
    quiet_threads()
    import importlib.util
    import json

    from wsipipe.errors import MissingExtraError
    from wsipipe.mil.bags import find_bags
    from wsipipe.mil.ensemble import load_ensemble
    from wsipipe.mil.maps import EmptyBagError

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("mil", "wsipipe heatmap", ["matplotlib"])
    ensemble = load_ensemble(model)
    files = find_bags(features, key=feature_key)
    if slide_id:
        unknown = [s for s in slide_id if s not in files]
        if unknown:
            raise ConfigError(f"No features of slide '{unknown[0]}' in {features}.")
        files = {s: files[s] for s in slide_id}
    for note in ensemble.check_features(files.values()):
        typer.echo(note, err=True)
    if not 0 <= target < len(ensemble.info["targets"]):
        raise ConfigError(f"--target {target}: the model has {len(ensemble.info['targets'])}.")
    paths = _slide_paths(slides)
    made: list[dict[str, Any]] = []
    failed = False
    for name, file in files.items():
        try:
            made.append(
                _one(
                    ensemble, name, file, paths.get(name), out, kind, scale, mpp, max_px, colormap,
                    alpha, tiles, tiff, target, coords_unit, tile_size,
                )
            )  # fmt: skip
        except EmptyBagError as error:
            typer.echo(str(error), err=True)  # an empty slide is done, not failed
        except WsipipeError as error:
            failed = True
            typer.echo(f"{name}: {error}", err=True)
    if as_json:
        typer.echo(json.dumps(made))
    else:
        for one in made:
            typer.echo(f"{one['slide_id']}: {', '.join(one['files'])}")
    if failed:
        raise typer.Exit(1)


def _slide_paths(slides: Path | None) -> dict[str, tuple[str, float | None]]:
    if slides is None:
        return {}
    from wsipipe.slide.discover import find_slides

    return {e.slide_id: (e.path, e.mpp) for e in find_slides([str(slides)])}


def _one(
    ensemble: Any,
    name: str,
    file: BagFile,
    path: tuple[str, float | None] | None,
    out: Path,
    kind: str,
    scale: str,
    mpp: float,
    max_px: int,
    colormap: str,
    alpha: float,
    n_tiles: int,
    tiff: bool,
    target: int,
    unit: str | None,
    tile_size: float | None,
) -> dict[str, Any]:
    from wsipipe.mil.maps import explain, place_tiles
    from wsipipe.report.heatmap import (
        TileMap,
        draw_heatmap,
        heatmap_geojson,
        tile_gallery,
        write_heatmap_tiff,
    )
    from wsipipe.slide import open_slide
    from wsipipe.store.publish import make_folder, publish_bytes

    found = explain(ensemble, file, what=kind, target=target)
    slide = None
    try:
        if path is not None:
            # What the features were made at counts, where the slide itself says nothing or wrong.
            said_mpp = path[1] or file.attrs.get("level0_mpp")
            slide = open_slide(path[0], mpp=None if said_mpp is None else float(said_mpp))
    except SlideError as error:
        typer.echo(f"{name}: drawn without its slide: {error}", err=True)
    try:
        place = place_tiles(file, slide, unit=unit, tile_size=tile_size)
        tiles = TileMap(
            place.coords, found.values, place.tile_px0, place.size, place.mpp, name, found.what
        )
        background = None
        if slide is not None and place.mpp:
            background = slide.thumbnail(place.mpp * max(1.0, max(place.size) / max_px)).pixels
        stem = out / name
        make_folder(stem.parent)
        said = ensemble.info["targets"][target]
        look = {"scale": scale, "colormap": colormap}
        publish_bytes(
            stem.with_name(stem.name + ".png"),
            draw_heatmap(
                tiles, background=background, max_px=max_px, alpha=alpha,
                caption=_caption(said, found), **look,
            ),
        )  # fmt: skip
        publish_bytes(stem.with_name(stem.name + ".geojson"), heatmap_geojson(tiles, **look))
        files = [f"{name}.png", f"{name}.geojson"]
        if tiff and place.mpp:
            write_heatmap_tiff(
                tiles, stem.with_name(stem.name + ".tif"), mpp=mpp, background=background,
                alpha=alpha, **look,
            )  # fmt: skip
            files.append(f"{name}.tif")
        if slide is not None and n_tiles:
            pictures, values = _extremes(slide, tiles, n_tiles, file)
            publish_bytes(stem.with_name(stem.name + "-tiles.png"), tile_gallery(pictures, values))
            files.append(f"{name}-tiles.png")
    finally:
        if slide is not None:
            slide.close()
    return {
        "slide_id": name, "files": files, "what": found.what, "scale": scale,
        "folds": list(found.folds), "held_out": found.held_out, "tiles": len(found.values),
        "output": [float(v) for v in found.output],
    }  # fmt: skip


def _caption(said: dict[str, Any], found: Any) -> str:
    if said["task"] == "classification":
        best = int(found.output.argmax())
        text = f"{said['name']}: {said['classes'][best]} (p {found.output[best]:.2f})"
    else:
        text = f"{said['name']}: {found.output[0]:.3g}"
    origin = "held out" if found.held_out else "mean of folds"
    return f"{text}, {origin}"


def _extremes(slide: Slide, tiles: Any, count: int, file: BagFile) -> tuple[list[Any], list[float]]:
    """Pixels of the highest tiles, then of the lowest."""
    order = tiles.values.argsort(kind="stable")[::-1]
    count = min(count, len(order))
    rows = [*order[:count], *order[-count:]]
    target = float(file.attrs.get("mpp") or slide.mpp * tiles.tile_px0 / 224)
    edge = max(1, round(tiles.tile_px0 * slide.mpp / target))
    pictures = [
        slide.read(int(tiles.coords[r][0]), int(tiles.coords[r][1]), edge, edge, mpp=target)
        for r in rows
    ]
    return pictures, [float(tiles.values[r]) for r in rows]
