"""A slide in memory, and a tissue mask by plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wsipipe.slide.mpp import claim
from wsipipe.slide.reader import Reader, ReaderInfo
from wsipipe.slide.slide import Slide
from wsipipe.types import Bounds


class MemoryReader(Reader):
    """Levels that are given as arrays, or only as sizes (then every block is unscanned)."""

    name = "image"

    def __init__(self, sizes, block=64, mpp="0.25", bounds=None, images=None):
        self._images = images
        self.decoded = []
        self.broken = set()
        self.info = ReaderInfo(
            vendor="memory",
            level_sizes=tuple(sizes),
            block_sizes=tuple((block, block) for _ in sizes),
            claims=(claim("test", *mpp) if isinstance(mpp, tuple) else claim("test", mpp),),
            bounds=bounds,
        )

    def read_block(self, level, col, row, out=None):
        from wsipipe.errors import ReadError

        self.decoded.append((level, col, row))
        if (level, col, row) in self.broken:
            raise ReadError("memory", "broken block")
        if self._images is None:
            return None
        block = self.info.block_sizes[level][0]
        part = self._images[level][row * block : (row + 1) * block, col * block : (col + 1) * block]
        if out is not None and part.shape == out.shape:
            out[:] = part
            return out
        return np.ascontiguousarray(part)


def memory_slide(sizes, **options) -> Slide:
    return Slide("memory", MemoryReader(sizes, **options))


def image_slide(image, ratios=(1,), **options) -> Slide:
    """A slide whose levels are subsampled copies; level 0 is `image`."""
    images = [image[::ratio, ::ratio] for ratio in ratios]
    sizes = [(i.shape[1], i.shape[0]) for i in images]
    return memory_slide(sizes, images=images, **options)


@dataclass(frozen=True)
class RasterMask:
    """What `make_grid` needs of a tissue mask: area-exact coverage of boxes."""

    mask: np.ndarray
    downsample: tuple[Fraction, Fraction]

    def coverage(self, boxes):
        height, width = self.mask.shape
        result = []
        for x0, y0, x1, y1 in boxes / np.array([*map(float, self.downsample)] * 2):
            wx = np.clip(
                np.minimum(np.arange(width) + 1, x1) - np.maximum(np.arange(width), x0), 0, None
            )
            wy = np.clip(
                np.minimum(np.arange(height) + 1, y1) - np.maximum(np.arange(height), y0), 0, None
            )
            result.append(wy @ self.mask @ wx / ((x1 - x0) * (y1 - y0)))
        return np.array(result, np.float32)


__all__ = ["Bounds", "MemoryReader", "RasterMask", "image_slide", "memory_slide"]
