"""wsidicom: DICOM series that neither the direct reader nor OpenSlide opens (extra [dicom])."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from wsipipe.errors import MissingExtraError, ReadError, SlideOpenError
from wsipipe.slide.mpp import claim
from wsipipe.slide.reader import Reader, ReaderInfo, check_sizes
from wsipipe.types import TileArray

__all__ = ["WsiDicomReader"]

_BLOCK_PX: Final = 512
_ERRORS: Final = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError,
                  AttributeError, NotImplementedError, MemoryError)  # fmt: skip


class WsiDicomReader(Reader):
    """Reads the default focal plane and optical path of a series."""

    name = "dicom"

    def __init__(self, path: str | Path, files: Sequence[Path]) -> None:
        try:
            from wsidicom import WsiDicom, errors
        except ImportError as error:
            raise MissingExtraError("dicom", f"Opening {path}", ["wsidicom"]) from error
        self._path = path
        # Its errors have no common base.
        own = (kind for kind in vars(errors).values() if isinstance(kind, type))
        self._errors: tuple[type[Exception], ...] = (
            *(k for k in own if issubclass(k, Exception)),
            *_ERRORS,
        )
        try:
            self._slide = WsiDicom.open(list(files))
            levels = list(self._slide.levels)
            sizes = tuple((int(v.size.width), int(v.size.height)) for v in levels)
            spacing = levels[0].mpp
            self._numbers = [int(level.level) for level in levels]
        except self._errors as error:
            raise SlideOpenError(path, f"wsidicom cannot open it: {error}") from error
        blocks = tuple((min(_BLOCK_PX, w), min(_BLOCK_PX, h)) for w, h in sizes)
        check_sizes(path, sizes, blocks)
        claims = [claim("dicom.PixelSpacing", spacing.width, spacing.height)] if spacing else []
        self.info = ReaderInfo(
            vendor="dicom",
            level_sizes=sizes,
            block_sizes=blocks,
            claims=tuple(claims),
            properties={"openslide.vendor": "dicom", "openslide.level-count": str(len(sizes))},
        )

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        block_w, block_h = self.info.block_sizes[level]
        width, height = self.info.level_sizes[level]
        x, y = col * block_w, row * block_h
        size = (min(block_w, width - x), min(block_h, height - y))
        try:
            image = self._slide.read_region((x, y), self._numbers[level], size)
            return np.array(image.convert("RGB"))
        except self._errors as error:
            raise ReadError(self._path, f"level {level} at ({x}, {y}): {error}") from error

    def close(self) -> None:
        """Close the files."""
        self._slide.close()
