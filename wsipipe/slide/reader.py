"""What every reader offers: levels, facts, and pixels in blocks.

A *block* is the unit that a format compresses (a TIFF tile, a DICOM frame, a strip), or a unit that
is cheap to ask for where the format hides its own. Everything above works on blocks, so `read`,
`thumbnail` and `iter_tiles` behave the same over all formats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

from wsipipe.errors import ReadError, SlideOpenError
from wsipipe.types import Bounds, Rgb, TileArray

__all__ = [
    "MAX_BLOCK_PIXELS",
    "MAX_LEVELS",
    "MAX_LEVEL_SIDE",
    "WHITE",
    "CutBlockError",
    "MppClaim",
    "Reader",
    "ReaderInfo",
    "check_sizes",
]

WHITE: Final[Rgb] = (255, 255, 255)

# Sizes that no scanner writes: refused before a byte of pixel data is read.
MAX_BLOCK_PIXELS: Final = 64 * 1024 * 1024
MAX_LEVEL_SIDE: Final = 2**20
MAX_LEVELS: Final = 64


@dataclass(frozen=True, slots=True)
class MppClaim:
    """What one source says about the pixel size, before anybody judged it.

    Attributes:
        source: Name of the key, as a user finds it in the file ("aperio.MPP").
        x, y: µm per pixel of level 0; None where the text is not a number.
        text: The text as it stands in the file.
        guess: True for a value derived from the objective's power.
    """

    source: str
    x: Fraction | None
    y: Fraction | None
    text: str = ""
    guess: bool = False


@dataclass(frozen=True, slots=True)
class ReaderInfo:
    """What a reader knows about a slide without decoding pixels.

    Attributes:
        vendor: Lower-case name of the scanner's format, or None.
        level_sizes: (width, height) of each level, finest first.
        block_sizes: (width, height) of the blocks of each level.
        background: Colour of what was not scanned.
        bounds: The scanned part in level-0 pixels, where the format has one.
        claims: Pixel sizes, most trusted source first.
        properties: Allow-listed facts without personal data.
        icc_profile: Embedded colour profile.
    """

    vendor: str | None
    level_sizes: tuple[tuple[int, int], ...]
    block_sizes: tuple[tuple[int, int], ...]
    background: Rgb = WHITE
    bounds: Bounds | None = None
    claims: tuple[MppClaim, ...] = ()
    properties: dict[str, str] = field(default_factory=dict)
    icc_profile: bytes | None = None


class CutBlockError(ReadError):
    """A block that other readers would decode too, to garbage: no second opinion is asked."""


class Reader(ABC):
    """Opens one slide. All methods may be called from many threads at once."""

    name: str
    info: ReaderInfo

    @abstractmethod
    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """Decode one block.

        Args:
            level, col, row: Which block; (0, 0) lies in the level's top-left corner.
            out: (block height, block width, 3) uint8, C-contiguous: where to put the pixels of a
                full block, if the reader can. It may also ignore it.

        Returns:
            (h, w, 3) uint8 RGB that covers the part of the block inside the level (h and w may
            reach beyond it, up to the block size), or None where nothing was scanned.

        Raises:
            ReadError: The block cannot be decoded.
        """

    def refresh(self) -> None:  # noqa: B027
        """Forget a state that an error may have left behind. Most readers have none."""

    def close(self) -> None:  # noqa: B027
        """Release files. Reading afterwards is an error."""


def check_sizes(
    path: str | Path,
    level_sizes: tuple[tuple[int, int], ...],
    block_sizes: tuple[tuple[int, int], ...],
) -> None:
    """Refuse sizes that only a damaged or hostile file has.

    Raises:
        SlideOpenError: A side, a block or the number of levels is absurd.
    """
    if not level_sizes:
        raise SlideOpenError(path, "no image level was found in the file")
    if len(level_sizes) > MAX_LEVELS:
        raise SlideOpenError(path, f"{len(level_sizes)} levels; no scanner writes that many")
    for (width, height), (block_w, block_h) in zip(level_sizes, block_sizes, strict=True):
        if not (0 < width <= MAX_LEVEL_SIDE and 0 < height <= MAX_LEVEL_SIDE):
            raise SlideOpenError(
                path, f"a level of {width} x {height} pixels is outside 1 to {MAX_LEVEL_SIDE}"
            )
        if not (block_w > 0 and block_h > 0 and block_w * block_h <= MAX_BLOCK_PIXELS):
            raise SlideOpenError(
                path,
                f"a compressed block of {block_w} x {block_h} pixels; "
                f"at most {MAX_BLOCK_PIXELS // 2**20} megapixels are read at once",
                "Convert the slide to a tiled pyramid (for example with vips tiffsave --tile).",
            )
