"""Reading a whole level in spite of bad blocks."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wsipipe.errors import ReadError
from wsipipe.slide.blocks import paste
from wsipipe.types import Level, Rgb, TileArray

__all__ = ["BlockSource", "ForgivingLevel"]


class BlockSource(Protocol):
    """What is needed of a slide."""

    background: Rgb
    block_sizes: tuple[tuple[int, int], ...]

    def read_block(self, level: int, col: int, row: int) -> TileArray | None:
        """See `Slide.read_block`."""


class ForgivingLevel:
    """Background for blocks that no reader decodes.

    One bad tile must not hide the tissue of a whole slide. Where more than half of a level's
    blocks are bad the error is raised after all.

    Attributes:
        bad: Blocks that were bad so far.
    """

    def __init__(self, slide: BlockSource, level: Level) -> None:
        self._slide, self._level = slide, level
        self._block = slide.block_sizes[level.index]
        self._most = -(-level.width // self._block[0]) * -(-level.height // self._block[1]) // 2
        self.bad = 0

    def read(self, x: int, y: int, width: int, height: int) -> TileArray | None:
        """A region inside the level, (height, width, 3) uint8; None where all is empty.

        Raises:
            ReadError: More than half of the level's blocks are bad.
        """
        out: TileArray | None = None
        empty: list[tuple[int, int]] = []
        size, shape = (self._level.width, self._level.height), self._block
        background = self._slide.background
        for row in range(y // shape[1], -(-(y + height) // shape[1])):
            for col in range(x // shape[0], -(-(x + width) // shape[0])):
                block = self._read_block(col, row)
                if block is None and out is None:
                    empty.append((col, row))
                    continue
                if out is None:
                    out = np.empty((height, width, 3), np.uint8)
                    for place in empty:
                        paste(out, (x, y), None, place, shape, size, background)
                paste(out, (x, y), block, (col, row), shape, size, background)
        return out

    def _read_block(self, col: int, row: int) -> TileArray | None:
        try:
            return self._slide.read_block(self._level.index, col, row)
        except ReadError:
            self.bad += 1
            if self.bad > self._most:
                raise
            return None
