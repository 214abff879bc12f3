"""Where in a slide's tissue a tile lies, and reading it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wsipipe.pretrain.options import HsvFilter
from wsipipe.pretrain.pool import OpenSlide
from wsipipe.slide import ReadPlan, Slide
from wsipipe.types import TileArray

__all__ = [
    "CANDIDATES",
    "hsv_share",
    "place_beside",
    "place_tiles",
    "read_tile",
    "read_tiles",
]

CANDIDATES = 8


def place_tiles(
    opened: OpenSlide,
    plan: ReadPlan,
    draws: NDArray[np.float64],
    centres: NDArray[np.float64] | None = None,
    *,
    px: int,
    min_tissue: float,
    snap: bool = True,
) -> NDArray[np.int64]:
    """Corners, in pixels of the plan's level, of R tiles with enough tissue.

    Args:
        opened: Slide and tissue.
        plan: How tiles are read.
        draws: (R, K, 5) uniform numbers for K candidates each; the first that has enough
            tissue is taken, else the one with most.
        centres: (R, 2) level-0 pixels to stay near, or None for anywhere in the tissue.
        px: Edge of a tile in pixels at the target mpp.
        min_tissue: Share of a tile that should be tissue.
        snap: Place tiles within as few compressed blocks as possible.

    Returns:
        (R, 2) int64.
    """
    slide, level = opened.slide, opened.slide.levels[plan.level]
    down = np.array([float(d) for d in level.downsample])
    edge = np.array([_source_px(plan, level.downsample, px, a) for a in (0, 1)])
    if centres is not None and not np.isnan(centres).any():
        middle = centres[:, None] + (draws[..., 1:3] - 0.5) * edge * down
    else:
        places = opened.places[(draws[..., 0] * len(opened.places)).astype(np.int64)]
        width = opened.tissue.mask.shape[1]
        pixel = np.stack([places % width, places // width], axis=-1)
        step = np.array([float(d) for d in opened.tissue.downsample])
        middle = (pixel + draws[..., 1:3]) * step
    corner = np.floor(middle / down - edge / 2)
    if snap:
        corner = _snapped(corner, edge, slide.block_sizes[plan.level], draws[..., 3:5])
    room = np.maximum(0, np.array([level.width, level.height]) - edge)
    corner = np.clip(corner, 0, room)
    boxes = np.concatenate([corner * down, (corner + edge) * down], axis=-1).reshape(-1, 4)
    covered = opened.tissue.coverage(boxes).reshape(corner.shape[:2])
    good = covered >= min_tissue
    best = np.where(good.any(axis=1), good.argmax(axis=1), covered.argmax(axis=1))
    chosen: NDArray[np.int64] = corner[np.arange(len(corner)), best].astype(np.int64)
    return chosen


def place_beside(
    opened: OpenSlide,
    plan: ReadPlan,
    corners: NDArray[np.int64],
    draws: NDArray[np.float64],
    *,
    px: int,
    min_tissue: float,
) -> NDArray[np.int64]:
    """More tiles near each of R tiles, that need the same compressed blocks.

    A first tile's corner falls into one cell of the lattice of blocks; the others' corners are
    drawn from that cell, uniformly over the places that the first could have had (its centre in
    tissue, tissue enough). Given the cell, the first is uniform over these places too: so each of
    the others is distributed as the first, whatever the shape of the tissue. Where no candidate
    will do, the first tile's place is taken again.

    Args:
        opened: Slide and tissue.
        plan: How tiles are read.
        corners: (R, 2) int64 of `place_tiles`, at free places.
        draws: (R, M, K, 2) uniform numbers, K candidates for each of M more tiles.
        px: Edge of a tile in pixels at the target mpp.
        min_tissue: Share of a tile that should be tissue.

    Returns:
        (R, M, 2) int64.
    """
    if not draws.size:
        return np.empty((*draws.shape[:2], 2), np.int64)
    slide, level = opened.slide, opened.slide.levels[plan.level]
    down = np.array([float(d) for d in level.downsample])
    edge = np.array([_source_px(plan, level.downsample, px, a) for a in (0, 1)])
    block = np.array(slide.block_sizes[plan.level])
    cell = block if _shares_blocks(block) else edge
    start = corners // cell * cell
    corner = start[:, None, None] + np.floor(draws * cell)
    inside = (corner + edge <= np.array([level.width, level.height])).all(axis=-1)
    boxes = np.concatenate([corner * down, (corner + edge) * down], axis=-1).reshape(-1, 4)
    covered = opened.tissue.coverage(boxes).reshape(corner.shape[:3])
    good = inside & (covered >= min_tissue) & _in_tissue(opened, (corner + edge / 2) * down)
    first = np.take_along_axis(corner, good.argmax(axis=2)[..., None, None], axis=2)[:, :, 0]
    chosen = np.where(good.any(axis=2)[..., None], first, corners[:, None])
    out: NDArray[np.int64] = chosen.astype(np.int64)
    return out


def _in_tissue(opened: OpenSlide, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (..., 2), in level-0 pixels, lie in tissue."""
    mask = opened.tissue.mask
    step = np.array([float(d) for d in opened.tissue.downsample])
    x, y = np.moveaxis(np.floor(points / step).astype(np.int64), -1, 0)
    here = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    found: NDArray[np.bool_] = here & mask[y * here, x * here]
    return found


def hsv_share(tile: TileArray, bounds: HsvFilter) -> float:
    """Share of pixels within the bounds."""
    import cv2

    hsv = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    low = np.array([bounds.h[0], bounds.s[0], bounds.v[0]])
    high = np.array([bounds.h[1], bounds.s[1], bounds.v[1]])
    return float(cv2.inRange(hsv, low, high).mean() / 255)


def _source_px(plan: ReadPlan, down: tuple[Fraction, Fraction], px: int, axis: int) -> int:
    """Pixels of the level under a tile's edge."""
    return max(1, round(float(plan.scale[axis] / down[axis]) * px))


def read_tile(slide: Slide, plan: ReadPlan, corner: NDArray[np.int64], px: int) -> TileArray:
    """A tile; resampled by area (or cubic where coarser), to the nearest whole source pixel.

    Extraction resamples exactly (`Slide.read`); here a third of a pixel more or less is nothing
    beside the random crop, and OpenCV is several times as fast.
    """
    down = slide.levels[plan.level].downsample
    width, height = (_source_px(plan, down, px, a) for a in (0, 1))
    pixels = slide.read_level(plan.level, int(corner[0]), int(corner[1]), width, height)
    return _resized(pixels, px)


def read_tiles(
    slide: Slide, plan: ReadPlan, corners: NDArray[np.int64], px: int
) -> list[TileArray]:
    """Tiles that lie close together, each (px, px, 3); blocks under them are decoded once."""
    down = slide.levels[plan.level].downsample
    width, height = (_source_px(plan, down, px, a) for a in (0, 1))
    left, top = corners.min(axis=0).tolist()
    right, bottom = corners.max(axis=0).tolist()
    around = slide.read_level(plan.level, left, top, right - left + width, bottom - top + height)
    places = [(x - left, y - top) for x, y in corners.tolist()]
    return [_resized(around[y : y + height, x : x + width], px) for x, y in places]


def _resized(pixels: TileArray, px: int) -> TileArray:
    if pixels.shape[:2] == (px, px):
        return pixels
    import cv2

    how = cv2.INTER_AREA if pixels.shape[1] > px else cv2.INTER_CUBIC
    resized: TileArray = cv2.resize(pixels, (px, px), interpolation=how)
    return resized


def _shares_blocks(block: NDArray[np.int64]) -> bool:
    """Whether blocks are tiles; for strips or single images placing can win nothing."""
    return bool((block >= 64).all() and (block <= 4096).all())


def _snapped(
    corner: NDArray[np.float64],
    edge: NDArray[np.int64],
    block: tuple[int, int],
    draws: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Move corners, by less than a block, so that tiles touch as few blocks as they can."""
    size = np.array(block)
    if not _shares_blocks(size):
        return corner
    slack = -(-edge // size) * size - edge
    start = np.round(corner / size) * size
    moved: NDArray[np.float64] = start + np.floor(draws * (slack + 1))
    return moved
