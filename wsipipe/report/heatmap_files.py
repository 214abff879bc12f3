"""All files of one slide's heatmap: PNG, GeoJSON, pyramidal TIFF, highest and lowest tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.errors import ConfigError, SlideError
from wsipipe.mil.bags import positive_number
from wsipipe.mil.maps import SlideMap, explain, place_tiles
from wsipipe.report.heatmap import (
    TileMap,
    draw_heatmap,
    heatmap_geojson,
    tile_gallery,
    write_heatmap_tiff,
)

if TYPE_CHECKING:
    from wsipipe.mil.bags import BagFile
    from wsipipe.mil.ensemble import Ensemble
    from wsipipe.slide import Slide

__all__ = ["HeatmapLook", "write_heatmap"]


@dataclass(frozen=True)
class HeatmapLook:
    """What is drawn and how.

    Attributes:
        kind: "auto", "attention" or "contribution".
        scale: "percentile" or "absolute".
        mpp: Of the TIFF, µm per pixel.
        max_px: Longest edge of the PNG.
        colormap: A colour map of matplotlib.
        alpha: Opacity over the slide, 0 to 1.
        tiles: Highest and lowest tiles to show; 0 = none.
        tiff: Write the pyramidal TIFF?
        target: Which target, of several.
    """

    kind: str = "auto"
    scale: str = "percentile"
    mpp: float = 8.0
    max_px: int = 2000
    colormap: str = "inferno"
    alpha: float = 0.55
    tiles: int = 8
    tiff: bool = True
    target: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "attention", "contribution"):
            raise ConfigError(f"--kind is attention or contribution, not '{self.kind}'.")
        if self.scale not in ("percentile", "absolute"):
            raise ConfigError(f"--scale is percentile or absolute, not '{self.scale}'.")
        if not 0 < self.mpp < float("inf"):
            raise ConfigError(f"--mpp {self.mpp}: it is a positive number.")
        if not 0 <= self.alpha <= 1 or self.max_px < 16 or self.tiles < 0:
            raise ConfigError("--alpha is within 0 and 1; --max-px and --tiles are positive.")


def write_heatmap(
    ensemble: Ensemble,
    file: BagFile,
    out: Path,
    look: HeatmapLook,
    *,
    slide_path: str | Path | None = None,
    slide_mpp: float | None = None,
    unit: str | None = None,
    tile_size: float | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the files of one slide into `out`, named by its id.

    Args:
        slide_path, slide_mpp: The slide, for background and tiles, and its µm per level-0 pixel
            where the user says it; by default that at which the features were made.
        unit, tile_size: Of the coordinates, for files that do not say.

    Returns:
        What was written, with the output of the models.

    Raises:
        EmptyBagError: No readable tile.
        ConfigError: No coordinates, or their unit or the tile size is not known.
    """
    from wsipipe.slide import open_slide
    from wsipipe.store.publish import make_folder, publish_bytes

    found = explain(ensemble, file, what=look.kind, target=look.target)
    slide = None
    try:
        if slide_path is not None:
            # What the features were made at counts, where the slide says nothing or wrong.
            mpp = slide_mpp or positive_number(file.attrs.get("level0_mpp"))
            slide = open_slide(slide_path, mpp=mpp)
    except SlideError as error:
        if say is not None:
            say(f"{file.slide_id}: drawn without its slide: {error}")
    try:
        files = _draw(ensemble, file, look, found, slide, unit, tile_size)
        name, folder = Path(file.slide_id).name, (out / file.slide_id).parent
        make_folder(folder)
        for suffix, content in files.items():
            if callable(content):
                content(folder / (name + suffix))
            else:
                publish_bytes(folder / (name + suffix), content)
    finally:
        if slide is not None:
            slide.close()
    return {
        "slide_id": file.slide_id, "files": [file.slide_id + s for s in files],
        "what": found.what, "scale": look.scale, "folds": list(found.folds),
        "held_out": found.held_out, "tiles": len(found.values),
        "output": [float(v) for v in found.output],
    }  # fmt: skip


def _draw(
    ensemble: Ensemble,
    file: BagFile,
    look: HeatmapLook,
    found: SlideMap,
    slide: Slide | None,
    unit: str | None,
    tile_size: float | None,
) -> dict[str, Any]:
    """Suffix -> bytes, or a function that writes the file at a path."""
    place = place_tiles(file, slide, unit=unit, tile_size=tile_size)
    tiles = TileMap(
        place.coords, found.values, place.tile_px0, place.size, place.mpp, file.slide_id, found.what
    )
    background = None
    if slide is not None and place.mpp:
        background = slide.thumbnail(place.mpp * max(1.0, max(place.size) / look.max_px)).pixels
    colours = {"scale": look.scale, "colormap": look.colormap}
    caption = _caption(ensemble.info["targets"][look.target], found)
    files: dict[str, Any] = {
        ".png": draw_heatmap(
            tiles, background=background, max_px=look.max_px, alpha=look.alpha, caption=caption,
            **colours,
        ),
        ".geojson": heatmap_geojson(tiles, **colours),
    }  # fmt: skip
    if look.tiff and place.mpp:
        files[".tif"] = lambda path: write_heatmap_tiff(
            tiles, path, mpp=look.mpp, background=background, alpha=look.alpha, **colours
        )
    if slide is not None and look.tiles:
        files["-tiles.png"] = tile_gallery(*_extremes(slide, tiles, look.tiles, file))
    return files


def _caption(said: dict[str, Any], found: SlideMap) -> str:
    if said["task"] == "classification":
        best = int(found.output.argmax())
        text = f"{said['name']}: {said['classes'][best]} (p {found.output[best]:.2f})"
    else:
        text = f"{said['name']}: {found.output[0]:.3g}"
    return f"{text}, {'held out' if found.held_out else 'mean of folds'}"


def _extremes(
    slide: Slide, tiles: TileMap, count: int, file: BagFile
) -> tuple[list[Any], list[float]]:
    """Pixels and values of the highest tiles, then of the lowest."""
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
