"""Flat images (PNG, JPEG, BMP): small enough to be held, decoded when first needed."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsipipe.errors import ReadError, SlideOpenError
from wsipipe.slide.mpp import claim
from wsipipe.slide.openslide_reader import composite
from wsipipe.slide.reader import WHITE, Reader, ReaderInfo, check_sizes
from wsipipe.types import TileArray

__all__ = ["ImageReader"]

# A flat image is held whole: 400 MB of pixels at most.
_MAX_PIXELS: Final = 2**27
_BLOCK_PX: Final = 512
_EXACT_MODES: Final = {"RGB", "RGBA", "L", "LA", "P", "PA", "1", "RGBX"}
_REFUSED: Final = {
    "CMYK": "CMYK colours have no exact RGB",
    "YCbCr": "YCbCr without a JPEG container is not read",
    "LAB": "L*a*b* colours are not read",
    "HSV": "HSV colours are not read",
    "F": "floating-point pixels are not a brightfield image",
    "I": "more than 8 bits per channel",
}


class ImageReader(Reader):
    """One level, no pyramid."""

    name = "image"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._pixels: TileArray | None = None
        with _opened(self._path) as image:
            size = image.size
            mode = image.mode
            if size[0] * size[1] > _MAX_PIXELS:
                raise SlideOpenError(
                    path,
                    f"a flat image of {size[0]} x {size[1]} pixels is too large to hold in memory",
                    "Convert it to a tiled pyramid (for example with vips tiffsave --tile).",
                )
            # Pillow calls a PNG of 16 bits a channel RGB and drops the lower eight; only the raw
            # mode of its decoder says so ("RGB;16B").
            deep = any(str(tile[3]).endswith(";16B") for tile in image.tile)
            if mode not in _EXACT_MODES or deep:
                why = _REFUSED.get(mode, "more than 8 bits per channel")
                raise SlideOpenError(
                    path, f"unsupported pixels ({mode}): {why}", "Convert the image to 8-bit RGB."
                )
            profile = image.info.get("icc_profile")
            dpi = image.info.get("dpi")
            kind = str(image.format).lower()
        block = (min(_BLOCK_PX, size[0]), min(_BLOCK_PX, size[1]))
        check_sizes(self._path, (size,), (block,))
        claims = []
        if dpi and all(float(d) > 0 for d in dpi):
            claims.append(claim("image resolution", 25400 / float(dpi[0]), 25400 / float(dpi[1])))
        self.info = ReaderInfo(
            vendor=kind,
            level_sizes=(size,),
            block_sizes=(block,),
            background=WHITE,
            claims=tuple(claims),
            properties={"openslide.vendor": kind, "openslide.level-count": "1"},
            icc_profile=profile if isinstance(profile, bytes) and profile else None,
        )

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        pixels = self._load()
        block_w, block_h = self.info.block_sizes[0]
        return pixels[row * block_h : (row + 1) * block_h, col * block_w : (col + 1) * block_w]

    def _load(self) -> TileArray:
        with self._lock:
            if self._pixels is None:
                self._pixels = _decode(self._path)
            return self._pixels

    def close(self) -> None:
        """Let go of the pixels."""
        self._pixels = None


def _opened(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Size is checked by us before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise SlideOpenError(path, f"not an image that can be read: {error}") from error


def _decode(path: Path) -> TileArray:
    try:
        with _opened(path) as image:
            transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise ReadError(path, f"the image cannot be decoded: {error}") from error
    if not transparent:
        return pixels
    laid = composite(pixels, WHITE)
    return np.full((*pixels.shape[:2], 3), WHITE, np.uint8) if laid is None else laid
