"""Where in a slide's tissue a tile lies, and reading it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wsipipe.pretrain.options import HsvFilter
from wsipipe.pretrain.pool import OpenSlide
from wsipipe.slide import ReadPlan, Slide
from wsipipe.types import TileArray

__all__ = ["CANDIDATES", "hsv_share", "place_tiles", "read_tile"]

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
    if (width, height) == (px, px):
        return pixels
    import cv2

    how = cv2.INTER_AREA if width > px else cv2.INTER_CUBIC
    resized: TileArray = cv2.resize(pixels, (px, px), interpolation=how)
    return resized


def _snapped(
    corner: NDArray[np.float64],
    edge: NDArray[np.int64],
    block: tuple[int, int],
    draws: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Move corners, by less than a block, so that tiles touch as few blocks as they can."""
    size = np.array(block)
    if (size < 64).any() or (size > 4096).any():
        return corner  # strips or single images: nothing to win
    slack = -(-edge // size) * size - edge
    start = np.round(corner / size) * size
    moved: NDArray[np.float64] = start + np.floor(draws * (slack + 1))
    return moved
