"""DICOM whole slides, read directly: a series is one slide, frames are its compressed blocks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from wsipipe.errors import ReadError, SlideOpenError
from wsipipe.slide.codecs import CodecError, CutBlock, decode_block
from wsipipe.slide.dicom_index import DicomLevel, index_series
from wsipipe.slide.files import dicom_files
from wsipipe.slide.mpp import claim, objective_claim
from wsipipe.slide.reader import CutBlockError, Reader, ReaderInfo, check_sizes
from wsipipe.types import TileArray

__all__ = ["DicomReader"]


class DicomReader(Reader):
    """Reads a series of VL Whole Slide Microscopy instances."""

    name = "dicom"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        files = dicom_files(self._path) or [self._path]
        self._levels = index_series(self._path, files)
        self.info = _info(self._levels)
        check_sizes(self._path, self.info.level_sizes, self.info.block_sizes)
        self._files: list[int] = []
        try:
            for level in self._levels:
                self._files.append(os.open(level.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        except OSError as error:
            self.close()
            raise SlideOpenError(path, f"cannot be read: {error.strerror or error}") from error

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        image = self._levels[level]
        number = row * -(-image.width // image.block_w) + col
        count = int(image.counts[number])
        if count == 0:
            return None
        try:
            data = os.pread(self._files[level], count, int(image.offsets[number]))
            if len(data) < count:
                raise CodecError("the file became shorter while it was read")
            size = (image.block_w, image.block_h)
            inside = (
                min(image.block_w, image.width - col * image.block_w),
                min(image.block_h, image.height - row * image.block_h),
            )
            pixels = decode_block(data, image.form, size, out, inside)
        except (CodecError, OSError) as error:
            kind = CutBlockError if isinstance(error, CutBlock) else ReadError
            raise kind(self._path, f"level {level}, frame ({col}, {row}): {error}") from error
        if image.form.samples == 1:
            grey = pixels if image.form.photometric else 255 - pixels
            return np.repeat(grey, 3, axis=2)
        return pixels

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())


def _info(levels: tuple[DicomLevel, ...]) -> ReaderInfo:
    first = levels[0]
    claims = []
    if first.spacing_um is not None:
        claims.append(claim("dicom.PixelSpacing", *first.spacing_um))
    guess = objective_claim("objective power", first.objective)
    if guess is not None:
        claims.append(guess)
    properties = {"openslide.vendor": "dicom", "openslide.level-count": str(len(levels))}
    for number, level in enumerate(levels):
        key = f"openslide.level[{number}]"
        properties[f"{key}.width"] = str(level.width)
        properties[f"{key}.height"] = str(level.height)
        properties[f"{key}.tile-width"] = str(level.block_w)
        properties[f"{key}.tile-height"] = str(level.block_h)
    return ReaderInfo(
        vendor="dicom",
        level_sizes=tuple((level.width, level.height) for level in levels),
        block_sizes=tuple((level.block_w, level.block_h) for level in levels),
        claims=tuple(claims),
        properties=properties,
        icc_profile=first.icc_profile,
    )
