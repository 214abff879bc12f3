"""The tile grid: exact arithmetic from a target resolution to level-0 coordinates. No pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.slide.arguments import as_whole, check_mpp, check_ratios
from wsipipe.slide.levels import round_half_up
from wsipipe.slide.slide import Slide, choose_level
from wsipipe.types import Coords, exact

if TYPE_CHECKING:
    from wsipipe.tissue import TissueMask

__all__ = ["ReadSpec", "TileGrid", "make_grid"]

# Places of a grid whose tissue is found at once: a dense grid has far more of them than tiles, and
# each takes 150 bytes on the way (0.98 overlap on 16,000 x 28,000 px: 4.3 GB for all together).
_BAND_BOXES = 2**18


@dataclass(frozen=True, slots=True)
class ReadSpec:
    """How the tiles of a grid are read, exact.

    All tiles lie on one lattice of output pixels: output pixel (X, Y) covers level-0 x from
    origin[0] + X·scale[0], y likewise; tile (col, row) starts at output pixel
    (col·stride_px, row·stride_px).

    Attributes:
        level: Level whose pixels are read.
        mode: "native", "area" or "interpolate".
        scale: Level-0 pixels per output pixel (x, y).
        origin: Level-0 position of output pixel (0, 0).
        stride_px: Output pixels from one tile to the next.
    """

    level: int
    mode: str
    scale: tuple[Fraction, Fraction]
    origin: tuple[Fraction, Fraction]
    stride_px: int


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles of one slide, row-major.

    Attributes:
        coords: (N, 2) int64, level-0 (x, y) of top-left corners, rounded from exact positions.
        tissue_fraction: (N,) float32, tissue area within the exact footprint over its area.
        col_row: (N, 2) int32, place on the grid.
        tile_px: Tile edge in output pixels.
        mpp: Target µm per pixel that was asked for.
        mpp_effective: µm per pixel that the tiles have.
        overlap: Fraction of a tile shared with its neighbour, as asked for.
        read: How pixels are read.
    """

    coords: Coords
    tissue_fraction: NDArray[np.float32]
    col_row: NDArray[np.int32]
    tile_px: int
    mpp: float
    mpp_effective: float
    overlap: float
    read: ReadSpec

    def __len__(self) -> int:
        return len(self.coords)

    def pick(self, rows: NDArray[np.bool_] | Sequence[int]) -> TileGrid:
        """The grid that holds only `rows`: (N,) bool, or indices in ascending order."""
        return dataclasses.replace(
            self,
            coords=self.coords[rows],
            tissue_fraction=self.tissue_fraction[rows],
            col_row=self.col_row[rows],
        )


def make_grid(
    slide: Slide,
    tissue: TissueMask | None,
    *,
    tile_px: int,
    mpp: float,
    overlap: float = 0.0,
    min_tissue: float = 0.25,
    mpp_tolerance: float = 0.05,
    max_upsample: float = 1.10,
    roi: TissueMask | None = None,
) -> TileGrid:
    """Lay a regular tile grid over the tissue.

    Args:
        tissue: Where tissue is; None takes the whole slide (all fractions are 1).
        tile_px: Tile edge in pixels at `mpp`.
        mpp: Target resolution in µm per pixel.
        overlap: Fraction of a tile shared with its neighbour, in [0, 1).
        min_tissue: A tile is kept if its tissue fraction is above 0 and at least this.
        mpp_tolerance: A level this close to `mpp` (relative) is read as it is; 0 asks for exact.
        max_upsample: How much coarser than `mpp` the slide may be.
        roi: Annotated region to stay inside: only tissue within it counts for keeping a tile.

    Returns:
        The grid; it may have no tiles.

    Raises:
        ConfigError: A setting is out of range.
        MissingMppError: The slide's resolution is unknown.
        ResolutionError: The slide is too coarse for `mpp`.
    """
    (tile_px,) = as_whole(tile_px=tile_px)
    check_mpp(mpp)
    check_ratios(mpp_tolerance, max_upsample)
    _check(tile_px, mpp, overlap, min_tissue)
    plan = choose_level(slide, mpp, mpp_tolerance=mpp_tolerance, max_upsample=max_upsample)
    stride_px = max(1, round_half_up(tile_px * (1 - exact(overlap))))
    level = slide.levels[plan.level]
    origin, end = _extent(slide, level.downsample)
    columns = _positions(origin[0], end[0], plan.scale[0], stride_px, tile_px)
    rows = _positions(origin[1], end[1], plan.scale[1], stride_px, tile_px)
    fractions, keep = _tissue_fractions(
        columns, rows, [tile_px * scale for scale in plan.scale], tissue, roi, min_tissue
    )
    row_index, col_index = np.nonzero(keep)
    corner_x = np.array([round_half_up(x) for x in columns], np.int64)
    corner_y = np.array([round_half_up(y) for y in rows], np.int64)
    own = slide.mpp_xy
    effective = [m * scale for m, scale in zip(own, plan.scale, strict=True)]
    return TileGrid(
        coords=np.stack([corner_x[col_index], corner_y[row_index]], axis=1),
        tissue_fraction=np.ascontiguousarray(fractions[row_index, col_index]),
        col_row=np.stack([col_index, row_index], axis=1).astype(np.int32),
        tile_px=tile_px,
        mpp=float(mpp),
        mpp_effective=float(sum(effective) / 2),
        overlap=float(overlap),
        read=ReadSpec(plan.level, plan.mode, plan.scale, origin, stride_px),
    )


def _check(tile_px: int, mpp: float, overlap: float, min_tissue: float) -> None:
    if not 1 <= tile_px <= 16384:
        raise ConfigError(f"A tile of {tile_px} pixels is not possible.", "Give 1 to 16384.")
    if mpp >= 1e4:
        raise ConfigError(f"A target mpp of {mpp} is not possible.", "Give µm per pixel, as 0.5.")
    if not 0 <= overlap < 1:
        raise ConfigError(f"An overlap of {overlap} is not possible.", "Give 0 <= overlap < 1.")
    if not 0 <= min_tissue <= 1:
        raise ConfigError(f"A tissue fraction of {min_tissue} is not possible.", "Give 0 to 1.")


def _extent(
    slide: Slide, downsample: tuple[Fraction, Fraction]
) -> tuple[tuple[Fraction, Fraction], tuple[int, int]]:
    """Origin (a whole pixel of the level that is read) and right and bottom end, level 0."""
    if slide.bounds is None:
        return (Fraction(0), Fraction(0)), slide.dimensions
    bounds = slide.bounds
    origin = (
        round_half_up(bounds.x / downsample[0]) * downsample[0],
        round_half_up(bounds.y / downsample[1]) * downsample[1],
    )
    return origin, (bounds.x + bounds.width, bounds.y + bounds.height)


def _positions(
    origin: Fraction, end: int, scale: Fraction, stride_px: int, tile_px: int
) -> list[Fraction]:
    """Exact starts of all tiles that fit between origin and end along one axis."""
    room = end - origin - tile_px * scale
    if room < 0:
        return []
    stride = stride_px * scale
    return [origin + index * stride for index in range(int(room // stride) + 1)]


def _tissue_fractions(
    columns: list[Fraction],
    rows: list[Fraction],
    footprint: list[Fraction],
    tissue: TissueMask | None,
    roi: TissueMask | None,
    min_tissue: float,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tissue fraction of every place on the grid and which are kept, both (rows, columns)."""
    shape = (len(rows), len(columns))
    if tissue is None and roi is None:
        return np.ones(shape, np.float32), np.ones(shape, np.bool_)
    x0 = np.array([float(x) for x in columns])
    y0 = np.array([float(y) for y in rows])
    band = max(1, _BAND_BOXES // max(1, len(columns)))

    def coverage(mask: TissueMask) -> NDArray[np.float32]:
        found = np.empty(shape, np.float32)
        for top in range(0, len(rows), band):
            y = y0[top : top + band, None]
            boxes = np.empty((len(y), len(columns), 4), np.float64)
            boxes[..., 0], boxes[..., 2] = x0, x0 + float(footprint[0])
            boxes[..., 1], boxes[..., 3] = y, y + float(footprint[1])
            found[top : top + band] = mask.coverage(boxes.reshape(-1, 4)).reshape(boxes.shape[:2])
        return found

    fractions = np.ones(shape, np.float32) if tissue is None else coverage(tissue)
    if roi is None:
        deciding = fractions
    else:
        deciding = coverage(roi if tissue is None else _within(tissue, roi))
    # Compared in float32: a fraction of exactly 0.3 is stored as float32(0.3) and counts as 0.3.
    return fractions, (deciding > 0) & (deciding >= np.float32(min_tissue))


def _within(tissue: TissueMask, roi: TissueMask) -> TissueMask:
    """Tissue inside the region, on the finer of the two rasters."""
    fine, coarse = sorted((tissue, roi), key=lambda mask: float(mask.downsample[0]))
    height, width = fine.mask.shape

    def index(count: int, axis: int) -> NDArray[np.int64]:
        ratio = float(fine.downsample[axis]) / float(coarse.downsample[axis])
        return ((np.arange(count) + 0.5) * ratio).astype(np.int64)

    ys, xs = index(height, 1), index(width, 0)
    padded = np.pad(coarse.mask, ((0, 1), (0, 1)))
    inside = padded[
        np.minimum(ys, coarse.mask.shape[0])[:, None], np.minimum(xs, coarse.mask.shape[1])
    ]
    both: Any = dataclasses.replace(fine, mask=fine.mask & inside)
    return both  # type: ignore[no-any-return]
