"""Regions out of blocks: copy what lies over the region, background where nothing was scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from wsipipe.slide.shared import BUSY, Busy
from wsipipe.types import Rgb, TileArray

__all__ = ["ReadBlock", "fill_region", "paste", "repeat_edge"]

ReadBlock: TypeAlias = Callable[[int, int], TileArray | Busy | None]  # (col, row) -> pixels


def fill_region(
    out: TileArray,
    corner: tuple[int, int],
    read_block: ReadBlock,
    block_size: tuple[int, int],
    level_size: tuple[int, int],
    background: Rgb,
) -> None:
    """Fill `out` with a region of a level.

    Args:
        out: (h, w, 3) uint8.
        corner: (x, y) of the region's top-left corner in pixels of the level.
        read_block: Gives the block (col, row), or None where nothing was scanned; or BUSY, and is
            asked again after all others.
        block_size, level_size: (width, height).
        background: Colour of what lies outside the level or was not scanned.
    """
    x, y = corner
    height, width = out.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, level_size[0]), min(y + height, level_size[1])
    if (left, top, right, bottom) != (x, y, x + width, y + height):
        out[:] = background
    if right <= left or bottom <= top:
        return
    block_w, block_h = block_size
    places = [
        (col, row)
        for row in range(top // block_h, -(-bottom // block_h))
        for col in range(left // block_w, -(-right // block_w))
    ]
    while places:
        put_off = []
        for place in places:
            block = read_block(*place)
            if block is BUSY:
                put_off.append(place)
            else:
                paste(out, corner, block, place, block_size, level_size, background)
        places = put_off


def paste(
    out: TileArray,
    corner: tuple[int, int],
    block: TileArray | None,
    place: tuple[int, int],
    block_size: tuple[int, int],
    level_size: tuple[int, int],
    background: Rgb,
) -> None:
    """Copy the part of block `place` (col, row) that lies over `out` and inside the level."""
    x, y = corner
    block_x, block_y = place[0] * block_size[0], place[1] * block_size[1]
    left, top = max(block_x, x), max(block_y, y)
    right = min(block_x + block_size[0], level_size[0], x + out.shape[1])
    bottom = min(block_y + block_size[1], level_size[1], y + out.shape[0])
    if right <= left or bottom <= top:
        return
    target = out[top - y : bottom - y, left - x : right - x]
    if block is None:
        target[:] = background
    else:
        target[:] = block[top - block_y : bottom - block_y, left - block_x : right - block_x]


def repeat_edge(
    out: TileArray,
    corner: tuple[int, int],
    level_size: tuple[int, int],
    begin: tuple[int, int] | None = None,
    end: tuple[int, int] | None = None,
) -> None:
    """Repeat a level's outermost pixels in the part of `out` that lies beyond them.

    A level whose size was rounded down ends up to a pixel before the slide does, and linear
    interpolation looks half a pixel beyond its edges; what lies there is not background.

    Args:
        out: (h, w, 3) uint8, a region of the level.
        corner: Its (x, y) in pixels of the level.
        level_size: (width, height) of the level.
        begin, end: From where to where, (x, y) in pixels of the level; default: all of `out`.
    """
    for axis, view in ((0, out.swapaxes(0, 1)), (1, out)):
        at, size, length = corner[axis], level_size[axis], len(view)
        low = 0 if begin is None else max(0, begin[axis] - at)
        high = length if end is None else min(length, end[axis] - at)
        if at < 0 < at + length:
            view[low:-at] = view[-at]
        if at < size < at + length:
            view[size - at : high] = view[size - at - 1]
