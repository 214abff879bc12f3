"""What is published of a slide beside the numbers: outline, picture, and the facts in its file."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from wsipipe.config import ExtractSettings
from wsipipe.errors import ReadError, TissueError
from wsipipe.pipeline.rows import RowSink
from wsipipe.report.thumbnail import draw_thumbnail, thumbnail_jpeg
from wsipipe.slide import Slide
from wsipipe.store import FeatureMeta, publish_bytes
from wsipipe.tiling import TileGrid
from wsipipe.tissue import TissueMask, write_tissue_geojson
from wsipipe.tissue.geojson import recorded

if TYPE_CHECKING:
    from wsipipe.encoders import Encoder

__all__ = ["feature_meta", "publish_outline", "publish_picture"]

_PICTURE_PX = 1600  # longest edge of a thumbnail
_PICTURE_MPP = 8.0  # its resolution where that gives at least half of those pixels


def publish_picture(
    out: Path, slide_id: str, slide: Slide, tissue: TissueMask, grid: TileGrid
) -> int:
    """Publish the thumbnail, from pixels no finer than needed: a finer level costs more than all
    of tissue detection.

    Returns:
        Blocks that no reader decodes: background stands for them in the picture.
    """
    extent_um = max(s * float(m) for s, m in zip(slide.dimensions, slide.mpp_xy, strict=True))
    mpp = max(extent_um / _PICTURE_PX, min(_PICTURE_MPP, 2 * extent_um / _PICTURE_PX))
    try:
        small = slide.thumbnail_scaled(_whole_scale(slide, mpp))
    except ReadError:
        # Whether so much damage is accepted is for the tiles to say, not for the picture.
        return 0
    picture = draw_thumbnail(slide, tissue, grid, slide_id, max_px=_PICTURE_PX, pixels=small.pixels)
    publish_bytes(out / "thumbnails" / f"{slide_id}.jpg", thumbnail_jpeg(picture))
    return small.bad_blocks


def _whole_scale(slide: Slide, mpp: float) -> tuple[Fraction, Fraction]:
    """Level-0 pixels per pixel at about `mpp`: whole pixels of a level, which average faster."""
    scale = max(1.0, mpp / slide.mpp)
    level = next(each for each in reversed(slide.levels) if max(each.downsample) <= scale)
    x, y = level.downsample
    times = max(1, round(scale / float(max(x, y))))
    return x * times, y * times


def publish_outline(
    settings: ExtractSettings, slide_id: str, slide_path: str, slide: Slide, tissue: TissueMask
) -> None:
    """Publish the mask, but never over somebody's own work.

    Raises:
        TissueError: There is an outline that was edited, and `recompute` is off.
    """
    path = settings.out / "tissue" / f"{slide_id}.geojson"
    given = Path(settings.tissue)
    if given.is_dir() and path.parent.is_dir() and given.samefile(path.parent):
        return
    if path.exists() and recorded(path) is None and not settings.recompute:
        raise TissueError(
            slide_path,
            f"{path} was edited, or made by another tool.",
            f"Use it with --tissue {path.parent}, or replace it with --recompute.",
        )
    document = write_tissue_geojson(tissue, slide_id=slide_id, fingerprint=slide.fingerprint())
    publish_bytes(path, document)


def feature_meta(
    slide_id: str,
    slide: Slide,
    grid: TileGrid,
    sink: RowSink,
    encoder: Encoder,
    batch_size: int,
    quality: Mapping[str, float],
) -> FeatureMeta:
    """The attributes of a feature file.

    Args:
        quality: Means over the slide's tiles, where quality was measured.
    """
    card, identity = sink.target.card, sink.target.identity
    scale = grid.read.scale
    return FeatureMeta(
        slide_id=slide_id,
        slide_fingerprint=slide.fingerprint(),
        encoder=card.name,
        encoder_revision=str(identity.get("revision") or ""),
        pooling=card.pooling,
        mpp=grid.mpp,
        mpp_effective=grid.mpp_effective,
        level0_mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        tile_px=grid.tile_px,
        tile_px0=grid.tile_px * float(scale[0] + scale[1]) / 2,
        stride_px=grid.read.stride_px,
        overlap=grid.overlap,
        level0_width=slide.dimensions[0],
        level0_height=slide.dimensions[1],
        precision=encoder.precision,
        identity=sink.identity,
        extra={
            "encoder_licence": card.licence,
            "reader": slide.reader,
            "read_mode": grid.read.mode,
            "read_level": grid.read.level,
            "batch_size": batch_size,
            **encoder.facts(),
            **{f"quality_{name}": value for name, value in quality.items()},
        },
    )
