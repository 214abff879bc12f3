"""Memory that blocks are decoded into."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from wsipipe.types import TileArray

__all__ = ["PIXELS_AT", "SPARE_BYTES", "empty_pixels", "pixels_in"]

SPARE_BYTES: Final = 32
# What a pixel array's address leaves over 16 and 32. Rows that begin at a multiple of 32 (AVX2) or
# 16 (SSE2) are written by libjpeg-turbo's colour conversion with stores that go past the cache, and
# whoever cuts or reduces the block next fetches it back from memory: 234 µs for 256 px against 177.
# NumPy's own addresses are multiples of 16, of 32 by chance; rows of 240 px change between the two.
PIXELS_AT: Final = 8


def empty_pixels(shape: tuple[int, ...]) -> TileArray:
    """An array (…) uint8, C-contiguous, not initialised, where decoding into it is fast."""
    return pixels_in(np.empty(math.prod(shape) + SPARE_BYTES, np.uint8), shape)


def pixels_in(memory: TileArray, shape: tuple[int, ...]) -> TileArray:
    """The same in `memory` (n,) uint8 of one's own, which has `SPARE_BYTES` more than needed."""
    start = (PIXELS_AT - memory.ctypes.data) % SPARE_BYTES
    return memory[start : start + math.prod(shape)].reshape(shape)
