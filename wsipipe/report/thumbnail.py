"""Thumbnails that show what was taken: tissue outline, holes, pen, tile grid, scale bar, slide id.

Drawn on the slide's own pixels only, never the label or macro image; the only text is the slide id
and the scale.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsipipe.types import TileArray

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw

    from wsipipe.slide import Slide
    from wsipipe.tiling import TileGrid
    from wsipipe.tissue import TissueMask

__all__ = ["draw_thumbnail", "thumbnail_jpeg"]

_OUTLINE = (0, 150, 0)
_HOLE = (0, 90, 220)
_PEN = (230, 0, 200)
_GRID = (60, 60, 60)
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)
# Round lengths for the scale bar, µm.
_BAR_UM = tuple(f * 10**e for e in range(1, 6) for f in (1, 2, 5))


def draw_thumbnail(
    slide: Slide,
    tissue: TissueMask | None,
    grid: TileGrid | None,
    slide_id: str,
    *,
    max_px: int = 1600,
    pixels: TileArray | None = None,
) -> PilImage:
    """Draw a slide with what was found on it.

    Args:
        slide: An open slide of known mpp.
        tissue: Outlines green, holes blue, removed pen magenta; None draws none.
        grid: Kept tiles as thin frames; None draws none.
        slide_id: Written below the picture.
        max_px: Longest edge of the picture.
        pixels: (h, w, 3) uint8 picture of the whole slide to draw on, where it is at hand.

    Returns:
        RGB picture with a footer of the slide id and a scale bar.
    """
    from PIL import Image, ImageDraw

    width, height = slide.dimensions
    mpp_x, mpp_y = (float(m) for m in slide.mpp_xy)
    if pixels is None:
        # No finer than the picture's size needs: a thumbnail costs the time of a detection.
        pixels = slide.thumbnail(max(width * mpp_x, height * mpp_y) / max_px).pixels
    um_px = max(width * mpp_x, height * mpp_y) / min(max_px, max(pixels.shape[:2]))
    size = max(1, round(width * mpp_x / um_px)), max(1, round(height * mpp_y / um_px))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    per_px = width / size[0], height / size[1]
    if tissue is not None and tissue.pen is not None and tissue.pen.any():
        picture = _tint(picture, tissue.pen)
    if grid is not None and len(grid.coords):
        picture = _draw_grid(picture, grid, per_px)
    if tissue is not None:
        line = max(1, round(max(size) / 600))
        _draw_outlines(ImageDraw.Draw(picture), tissue, per_px, line)
    # A name may hold a line break; the footer is one line.
    return _with_footer(picture, " ".join(slide_id.split()), um_px)


def thumbnail_jpeg(picture: PilImage, quality: int = 85) -> bytes:
    """JPEG bytes of a picture, without any metadata."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _tint(picture: PilImage, pen: NDArray[np.bool_]) -> PilImage:
    """Half cover what was recognised as pen."""
    from PIL import Image

    stencil = Image.fromarray(pen).convert("L").resize(picture.size, Image.Resampling.NEAREST)
    stencil = stencil.point(lambda v: 140 if v else 0)
    return Image.composite(Image.new("RGB", picture.size, _PEN), picture, stencil)


def _draw_grid(picture: PilImage, grid: TileGrid, per_px: tuple[float, float]) -> PilImage:
    """Frames of one pixel; all tiles at once, for a call a tile would hold up the readers."""
    from PIL import Image

    edge = [grid.tile_px * float(s) / p for s, p in zip(grid.read.scale, per_px, strict=True)]
    if min(edge) < 3:
        return picture  # Frames would cover the picture; the outline says enough.
    corners = grid.coords / np.asarray(per_px)
    left, top = corners.astype(np.intp).T
    right, bottom = (corners + edge).astype(np.intp).T
    # The last column and row catch frames that end on the slide's own edge.
    frames = np.zeros((max(picture.height, bottom.max()) + 1, max(picture.width, right.max()) + 1),
                      np.bool_)  # fmt: skip
    for step in range(int(max(edge)) + 2):
        x, y = np.minimum(left + step, right), np.minimum(top + step, bottom)
        frames[top, x] = frames[bottom, x] = frames[y, left] = frames[y, right] = True
    pixels = np.array(picture)
    pixels[frames[: picture.height, : picture.width]] = _GRID
    return Image.fromarray(pixels)


def _draw_outlines(
    draw: ImageDraw, tissue: TissueMask, per_px: tuple[float, float], line: int
) -> None:
    for polygon in tissue.polygons():
        for ring, colour in [
            (polygon.exterior, _OUTLINE),
            *((interior, _HOLE) for interior in polygon.interiors),
        ]:
            points = np.asarray(ring.coords) / per_px
            draw.line([tuple(p) for p in points.tolist()], fill=colour, width=line)


def _with_footer(picture: PilImage, slide_id: str, um_px: float) -> PilImage:
    from PIL import Image, ImageDraw, ImageFont

    text_px = max(10, round(max(picture.size) / 60))
    footer = 2 * text_px
    whole = Image.new("RGB", (max(picture.width, 160), picture.height + footer), _PAPER)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(text_px)
    target = whole.width * um_px / 5
    bar_um = max((b for b in _BAR_UM if b <= target), default=_BAR_UM[0])
    length = bar_um / um_px
    # Pillow's own font has no µ.
    label = f"{bar_um / 1000:g} mm"
    x1, y = whole.width - text_px / 2, picture.height + text_px * 1.6
    draw.line((x1 - length, y, x1, y), fill=_INK, width=max(2, text_px // 6))
    label_width = draw.textlength(label, font=font)
    draw.text((x1 - length / 2 - label_width / 2, picture.height + 1), label, _INK, font)
    room = x1 - max(length, label_width) - text_px
    draw.text(
        (text_px / 2, picture.height + text_px * 0.4), _fit(slide_id, room, draw, font), _INK, font
    )
    return whole


def _fit(text: str, room: float, draw: ImageDraw, font: object) -> str:
    """Shorten a text in the middle until it fits."""
    if draw.textlength(text, font=font) <= room:  # type: ignore[arg-type]
        return text
    keep = len(text)
    while keep > 2:
        keep -= 1
        short = text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]
        if draw.textlength(short, font=font) <= room:  # type: ignore[arg-type]
            return short
    return "…"
