"""Numbers of tiles as a picture over the slide: PNG, pyramidal TIFF, GeoJSON for QuPath.

Everything here works from coordinates and values; the slide's pixels, where they are at hand, only
lie underneath. Where tiles overlap, a pixel shows the mean of the tiles over it.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.types import TileArray

__all__ = [
    "TileMap",
    "draw_heatmap",
    "heatmap_geojson",
    "paint",
    "tile_gallery",
    "to_scale",
    "write_heatmap_tiff",
]

SCALES = ("percentile", "absolute")
_NAMESPACE = uuid.UUID("0e0f5a52-7f0c-5a58-9e0a-7f1f3c1d2b6e")
_BAR_UM = tuple(f * 10**e for e in range(1, 6) for f in (1, 2, 5))
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_LEVELS = 10


@dataclass(frozen=True)
class TileMap:
    """One number a tile.

    Attributes:
        coords: (N, 2) level-0 (x, y) of top-left corners.
        values: (N,) float.
        tile_px0: Edge of a tile in level-0 pixels; need not be whole.
        size: (width, height) of level 0.
        mpp: µm per level-0 pixel, or None.
        slide_id: As shown.
        what: Name of the number, for instance "attention".
    """

    coords: NDArray[np.float64]
    values: NDArray[np.float64]
    tile_px0: float
    size: tuple[int, int]
    mpp: float | None
    slide_id: str
    what: str = "attention"

    def __post_init__(self) -> None:
        if self.coords.shape != (len(self.values), 2) or not len(self.values):
            raise ConfigError(
                f"{self.slide_id}: {len(self.values)} values for coordinates of shape "
                f"{self.coords.shape}; a heatmap needs one for each tile."
            )


def to_scale(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    """Values in [0, 1] for colours.

    "percentile": share of the slide's tiles that are lower (ties share their mean rank): shows
    order, hides size. "absolute": linear from the slide's lowest to its highest value.
    """
    if scale not in SCALES:
        raise ConfigError(f"The scale is percentile or absolute, not '{scale}'.")
    if scale == "percentile":
        from scipy.stats import rankdata

        if len(values) == 1:
            return np.ones(1)
        return (rankdata(values) - 1) / (len(values) - 1)  # type: ignore[no-any-return]
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def paint(tiles: TileMap, values: NDArray[np.float64], downsample: float) -> NDArray[np.float32]:
    """Lay values on a grid, one pixel every `downsample` level-0 pixels; overlaps averaged.

    Returns:
        (h, w) float32 over the whole slide, NaN where no tile lies. A pixel belongs to a tile if
        its centre does.
    """
    w, h = (max(1, int(np.ceil(s / downsample))) for s in tiles.size)
    total = np.zeros((h, w), dtype=np.float64)
    count = np.zeros((h, w), dtype=np.int32)
    low = np.ceil(tiles.coords / downsample - 0.5).astype(np.int64)
    high = np.ceil((tiles.coords + tiles.tile_px0) / downsample - 0.5).astype(np.int64)
    high = np.maximum(high, low + 1)  # a tile smaller than a pixel still shows
    low = np.clip(low, 0, (w - 1, h - 1))
    high = np.clip(high, 1, (w, h))
    for (x0, y0), (x1, y1), value in zip(low.tolist(), high.tolist(), values.tolist(), strict=True):
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def colours(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """(...,) in [0, 1] -> (..., 3) uint8 by a matplotlib colour map."""
    import matplotlib

    if name not in matplotlib.colormaps:
        raise ConfigError(f"No colour map is called '{name}'.", "Try inferno, viridis, coolwarm.")
    rgba = matplotlib.colormaps[name](np.nan_to_num(values))
    return np.asarray(np.round(rgba[..., :3] * 255), dtype=np.uint8)


def blend(
    tiles: TileMap,
    *,
    max_px: int,
    scale: str,
    colormap: str,
    alpha: float,
    background: TileArray | None,
) -> tuple[TileArray, float]:
    """The coloured map over the background. (h, w, 3) uint8, and level-0 pixels a pixel."""
    from PIL import Image

    downsample = max(1.0, max(tiles.size) / max_px)
    heat = paint(tiles, to_scale(tiles.values, scale), downsample)
    h, w = heat.shape
    if background is None:
        base = np.full((h, w, 3), 245, dtype=np.float64)
        alpha = 1.0
    else:
        whole = Image.fromarray(background).resize((w, h), Image.Resampling.BOX)
        base = np.asarray(whole, dtype=np.float64)
    shown = np.isfinite(heat)[..., None] * alpha
    out = base * (1 - shown) + colours(heat, colormap) * shown
    return np.round(out).astype(np.uint8), downsample


def draw_heatmap(
    tiles: TileMap,
    *,
    background: TileArray | None = None,
    max_px: int = 2000,
    scale: str = "percentile",
    colormap: str = "inferno",
    alpha: float = 0.55,
    caption: str = "",
) -> bytes:
    """PNG of the map with scale bar, colour bar and what is shown, in words.

    Args:
        background: (h, w, 3) uint8 thumbnail of the whole slide; None = plain.
        max_px: Longest edge of the map.
        caption: A further line, for instance the prediction.
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels, downsample = blend(
        tiles, max_px=max_px, scale=scale, colormap=colormap, alpha=alpha, background=background
    )
    h, w = pixels.shape[:2]
    text_px = max(12, round(max(w, h) / 60))
    side, footer = 7 * text_px, 5 * text_px
    picture = Image.new("RGB", (max(w, 30 * text_px) + side, max(h, 10 * text_px) + footer), _PAPER)
    picture.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(text_px)
    _colour_bar(picture, draw, font, tiles, scale, colormap, text_px, side, h)
    top = picture.height - footer + text_px // 2
    if tiles.mpp:
        um_px = downsample * tiles.mpp
        bar = max((b for b in _BAR_UM if b <= w * um_px / 5), default=_BAR_UM[0])
        # In mm throughout: Pillow's built-in font has no µ.
        label = f"{bar / 1000:g} mm"
        y = top + text_px // 2
        draw.line((text_px, y, text_px + bar / um_px, y), fill=_INK, width=max(3, text_px // 5))
        draw.text((text_px * 2 + bar / um_px, top - text_px // 4), label, _INK, font)
    words = f"{tiles.what}, {_scale_words(scale)}"
    for i, line in enumerate((f"{tiles.slide_id}   {words}", caption)):
        draw.text((text_px, top + (i + 1) * 1.4 * text_px), line, _INK, font)
    return _png(picture)


def _scale_words(scale: str) -> str:
    return "percentile within the slide" if scale == "percentile" else "absolute values"


def _colour_bar(
    picture: Any,
    draw: Any,
    font: Any,
    tiles: TileMap,
    scale: str,
    colormap: str,
    text_px: int,
    side: int,
    height: int,
) -> None:
    from PIL import Image

    x, y = picture.width - side + text_px, 2 * text_px
    length = max(8 * text_px, min(height - 4 * text_px, 24 * text_px))
    ramp = np.linspace(1, 0, length)[:, None].repeat(text_px, axis=1)
    picture.paste(Image.fromarray(colours(ramp, colormap)), (x, y))
    draw.rectangle((x, y, x + text_px, y + length), outline=_INK)
    low, high = float(tiles.values.min()), float(tiles.values.max())
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = (
            f"{100 * share:g} %" if scale == "percentile" else f"{low + share * (high - low):.2g}"
        )
        at = y + (1 - share) * length
        draw.line((x + text_px, at, x + 1.4 * text_px, at), fill=_INK)
        draw.text((x + 1.6 * text_px, at - text_px / 2), value, _INK, font)


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def heatmap_geojson(
    tiles: TileMap, *, scale: str = "percentile", colormap: str = "inferno"
) -> bytes:
    """FeatureCollection of the tiles as QuPath opens it: squares in level-0 pixels.

    Each tile is a detection with the value as a measurement (QuPath: Measure > Show measurement
    maps) and a class by tenth of the scale, coloured alike.
    """
    shown = to_scale(tiles.values, scale)
    bins = np.minimum((shown * _LEVELS).astype(int), _LEVELS - 1)
    palette = colours((np.arange(_LEVELS) + 0.5) / _LEVELS, colormap).tolist()
    features = []
    for i, ((x, y), value, part, bin_) in enumerate(
        zip(
            tiles.coords.tolist(), tiles.values.tolist(), shown.tolist(), bins.tolist(), strict=True
        )
    ):
        x1, y1 = _plain(x + tiles.tile_px0), _plain(y + tiles.tile_px0)
        x0, y0 = _plain(x), _plain(y)
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{tiles.slide_id}/{tiles.what}/{i}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "detection",
                    "classification": {
                        "name": f"{tiles.what} {bin_ * 10}-{bin_ * 10 + 10} %",
                        "color": palette[bin_],
                    },
                    "measurements": {tiles.what: value, f"{tiles.what} ({scale})": part},
                },
            }
        )
    document = {
        "type": "FeatureCollection",
        "features": features,
        "wsipipe": {
            "slide_id": tiles.slide_id,
            "what": tiles.what,
            "scale": scale,
            "tile_px0": tiles.tile_px0,
        },
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: float) -> float | int:
    return int(value) if float(value).is_integer() else round(float(value), 3)


def write_heatmap_tiff(
    tiles: TileMap,
    path: str | Path,
    *,
    mpp: float,
    background: TileArray | None = None,
    scale: str = "percentile",
    colormap: str = "inferno",
    alpha: float = 0.55,
) -> Path:
    """Pyramidal tiled TIFF of the map at `mpp`, which viewers lay over the slide.

    Raises:
        ConfigError: The slide's own mpp is not known, or the picture would not fit into memory.
    """
    import tifffile
    from PIL import Image

    from wsipipe.store.publish import publish_bytes

    if not tiles.mpp:
        raise ConfigError(f"{tiles.slide_id}: a TIFF needs the slide's mpp.")
    longest = max(1, round(max(tiles.size) * tiles.mpp / mpp))
    if longest > 60000:
        raise ConfigError(f"--mpp {mpp} would make a picture of {longest} pixels.", "Use a larger.")
    pixels, downsample = blend(
        tiles, max_px=longest, scale=scale, colormap=colormap, alpha=alpha, background=background
    )
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 512:
        h, w = levels[-1].shape[:2]
        smaller = Image.fromarray(levels[-1]).resize(
            (max(1, w // 2), max(1, h // 2)), Image.Resampling.BOX
        )
        levels.append(np.asarray(smaller))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=True) as tiff:
        for i, level in enumerate(levels):
            per_cm = 10000 / (downsample * tiles.mpp) / 2**i
            tiff.write(
                level, tile=(256, 256), compression="deflate", photometric="rgb",
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                subifds=len(levels) - 1 if i == 0 else 0, subfiletype=0 if i == 0 else 1,
                metadata=None, software=False,
            )  # fmt: skip
    return publish_bytes(Path(path), buffer.getvalue()) or Path(path)


def tile_gallery(
    pictures: Sequence[TileArray], values: Sequence[float], *, columns: int = 8, tile_px: int = 224
) -> bytes:
    """PNG of tiles in rows, each with its value below."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(pictures) // columns)
    label = 22
    sheet = Image.new("RGB", (columns * (tile_px + 4), rows * (tile_px + label)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (pixels, value) in enumerate(zip(pictures, values, strict=True)):
        x, y = (i % columns) * (tile_px + 4), (i // columns) * (tile_px + label)
        tile = Image.fromarray(pixels).resize((tile_px, tile_px), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y))
        draw.text((x + 2, y + tile_px + 2), f"{value:.3g}", _INK, font)
    return _png(sheet)
