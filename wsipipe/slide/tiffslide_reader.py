"""tiffslide: remote files that the direct reader leaves alone, and a second opinion in tests."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import numpy as np

from wsipipe.errors import MissingExtraError, ReadError, SlideOpenError
from wsipipe.slide.mpp import claim, objective_claim
from wsipipe.slide.reader import Reader, ReaderInfo, check_sizes
from wsipipe.types import TileArray

__all__ = ["TiffSlideReader"]

_BLOCK_PX: Final = 512
_ERRORS: Final = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError)


class TiffSlideReader(Reader):
    """Reads through tiffslide; `path` may be a URL."""

    name = "tiffslide"

    def __init__(self, path: str | Path) -> None:
        try:
            import tiffslide
        except ImportError as error:
            raise MissingExtraError("s3", f"Opening {path}", ["tiffslide"]) from error
        self._path = path
        self._lock = threading.Lock()
        try:
            self._slide = tiffslide.TiffSlide(path)
            sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
            properties = dict(self._slide.properties)
        except ImportError as error:
            raise MissingExtraError("s3", f"Opening {path}", [str(error.name or error)]) from error
        except _ERRORS as error:
            raise SlideOpenError(path, f"tiffslide cannot open it: {error}") from error
        blocks = tuple((min(_BLOCK_PX, w), min(_BLOCK_PX, h)) for w, h in sizes)
        check_sizes(path, sizes, blocks)
        said = properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y")
        claims = [claim("tiffslide.mpp-x", *said)] if said[0] is not None else []
        guess = objective_claim("objective power", properties.get("tiffslide.objective-power"))
        vendor = properties.get("tiffslide.vendor")
        self.info = ReaderInfo(
            vendor=str(vendor) if vendor else None,
            level_sizes=sizes,
            block_sizes=blocks,
            claims=(*claims, guess) if guess is not None else tuple(claims),
            properties={"openslide.vendor": str(vendor), "openslide.level-count": str(len(sizes))},
        )

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        block_w, block_h = self.info.block_sizes[level]
        width, height = self.info.level_sizes[level]
        x, y = col * block_w, row * block_h
        size = (min(block_w, width - x), min(block_h, height - y))
        ratio = self._slide.level_downsamples[level]
        try:
            with self._lock:
                pixels = self._slide.read_region(
                    (round(x * ratio), round(y * ratio)), level, size, as_array=True
                )
        except _ERRORS as error:
            raise ReadError(self._path, f"level {level} at ({x}, {y}): {error}") from error
        array = np.asarray(pixels)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] < 3:
            raise ReadError(self._path, f"pixels of {array.dtype} and shape {array.shape}")
        return np.ascontiguousarray(array[..., :3])

    def close(self) -> None:
        """Close the file."""
        self._slide.close()
