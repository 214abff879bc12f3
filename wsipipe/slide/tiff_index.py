"""Which directories of a TIFF are the levels of a slide, and whether they are read directly.

Pages that are no level (label, macro, thumbnail) are never decoded, nor are their offsets kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideOpenError
from wsipipe.slide import codecs
from wsipipe.slide.codecs import BlockFormat
from wsipipe.slide.reader import MppClaim
from wsipipe.slide.tiff_claims import find_claims, ome_pixels
from wsipipe.slide.tiff_file import Ifd, TiffFile

__all__ = ["NotDirect", "TiffIndex", "TiffLevel", "check_extents", "index_tiff"]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_DESCRIPTION, _STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_COUNTS = 270, 273, 277, 278, 279
_PLANAR, _PREDICTOR = 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SUBIFDS = 322, 323, 324, 325, 330
_EXTRA, _FORMAT, _TABLES, _ICC = 338, 339, 347, 34675
_PHOTOMETRIC_WORDS: Final = {
    3: "palette colours", 4: "a transparency mask", 5: "CMYK colours", 8: "CIE L*a*b* colours",
    9: "CIE L*a*b* colours", 10: "CIE L*a*b* colours", 32803: "raw sensor colours",
    34892: "raw linear colours",
}  # fmt: skip
_STRIP_ROWS: Final = 64


class NotDirect(Exception):
    """A sound slide that the direct reader leaves to another one; the text says why."""


@dataclass(frozen=True)
class TiffLevel:
    """One level.

    Attributes:
        width, height: Size in pixels.
        block_w, block_h: Size of a block: a tile, or a stack of `strips` strips.
        columns: Blocks a row.
        offsets, counts: Place and bytes of each compressed piece, int64; count 0 is missing.
        planes: 1, or 3 where each colour has its own pieces.
        strips: Strips a block; 0 for tiles.
        rows_per_strip: Rows of a strip.
    """

    width: int
    height: int
    block_w: int
    block_h: int
    columns: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    form: BlockFormat
    planes: int = 1
    strips: int = 0
    rows_per_strip: int = 0


@dataclass(frozen=True)
class TiffIndex:
    """Levels and facts of a slide."""

    vendor: str
    levels: tuple[TiffLevel, ...]
    claims: tuple[MppClaim, ...]
    icc_profile: bytes | None
    objective: str | None


def index_tiff(
    path: str | Path, tiff: TiffFile, sizes: tuple[tuple[int, int], ...] | None = None
) -> TiffIndex:
    """Find the levels.

    Args:
        sizes: (width, height) of the levels where the file's own are padded to whole tiles
            (Philips), as another reader made them out.

    Raises:
        NotDirect: Another reader should try.
        SlideOpenError: It is no brightfield slide, or it is damaged.
        TiffError: The file contradicts itself.
    """
    if not tiff.ifds:
        raise SlideOpenError(path, "the TIFF has no image")
    first = tiff.ifds[0]
    description = tiff.text(first, _DESCRIPTION)
    vendor = _vendor(description)
    if vendor == "philips" and sizes is None:
        raise NotDirect("Philips TIFF pads its levels to whole tiles")
    ome = ome_pixels(path, description) if vendor == "ome-tiff" else {}
    _check_pixels(path, tiff, first)
    pages = [first, *_smaller(path, tiff, first, vendor)]
    for page in pages[1:]:
        _check_pixels(path, tiff, page)
    levels = tuple(_level(path, tiff, page) for page in pages)
    if sizes is not None:
        levels = _cropped(levels, sizes)
    _check_order(path, levels)
    claims, objective = find_claims(tiff, first, description, ome)
    profile = tiff.raw(first, _ICC)
    return TiffIndex(vendor, levels, tuple(claims), profile or None, objective)


def check_extents(path: str | Path, tiff: TiffFile) -> None:
    """Refuse a file that ends before its pieces do, whichever image they belong to.

    Raises:
        SlideOpenError: The file is cut off.
        TiffError: The file contradicts itself.
    """
    pages = list(tiff.ifds)
    for ifd in tiff.ifds[:1]:
        for child in tiff.ints(ifd, _SUBIFDS)[:64]:
            pages.extend(tiff.chain(int(child))[:1])
    for ifd in pages:
        for where, length in ((_TILE_OFFSETS, _TILE_COUNTS), (_STRIP_OFFSETS, _STRIP_COUNTS)):
            offsets, counts = tiff.ints(ifd, where), tiff.ints(ifd, length)
            common = min(len(offsets), len(counts))
            offsets, counts = offsets[:common], counts[:common]
            end = int((offsets + counts)[(counts > 0) & (offsets > 0)].max(initial=0))
            if end > tiff.size:
                raise SlideOpenError(
                    path,
                    f"the file is cut off: pixels reach to byte {end}, it ends at {tiff.size}",
                    "Copy the slide again from its source.",
                )


def _vendor(description: str) -> str:
    if description.startswith("Aperio"):
        return "aperio"
    if "<OME" in description[:2000] and description.rstrip().endswith("OME>"):
        return "ome-tiff"
    if "<DataObject" in description[:400] and "DPUfsImport" in description[:400]:
        return "philips"
    return "generic-tiff"


def _cropped(
    levels: tuple[TiffLevel, ...], sizes: tuple[tuple[int, int], ...]
) -> tuple[TiffLevel, ...]:
    """Levels without their padding; the order of their blocks stays that of the padded image."""
    if len(levels) != len(sizes):
        raise NotDirect(f"{len(levels)} tiled images for {len(sizes)} levels")
    cropped = []
    for level, (width, height) in zip(levels, sizes, strict=True):
        if not (width <= level.width and height <= level.height) or level.strips:
            raise NotDirect("a level is larger than its tiles")
        cropped.append(dataclasses.replace(level, width=width, height=height))
    return tuple(cropped)


def _check_pixels(path: str | Path, tiff: TiffFile, ifd: Ifd) -> None:
    """Refuse what is no 8-bit brightfield image, in words."""
    bits = tiff.ints(ifd, _BITS)
    formats = tiff.ints(ifd, _FORMAT)
    samples = tiff.integer(ifd, _SAMPLES, 1)
    photometric = tiff.integer(ifd, _PHOTOMETRIC, -1)
    remedy = "Convert it to 8-bit RGB, or leave it out."
    if len(formats) and (formats == 3).any():
        raise SlideOpenError(path, "floating-point pixels are not a brightfield image", remedy)
    if len(formats) and (formats == 2).any():
        raise SlideOpenError(path, "signed pixels are not a brightfield image", remedy)
    depth = int(bits.max()) if len(bits) else 1
    if depth > 8:
        raise SlideOpenError(
            path, f"{depth}-bit pixels: reducing them to 8 bits would be a guess", remedy
        )
    if depth < 8:
        raise SlideOpenError(path, f"{depth}-bit pixels are not a brightfield image", remedy)
    word = _PHOTOMETRIC_WORDS.get(photometric)
    if word is not None:
        raise SlideOpenError(path, f"{word} have no exact RGB here", remedy)
    if photometric not in (0, 1, 2, 6):
        raise SlideOpenError(path, f"unknown colours (photometric {photometric})", remedy)
    colours = 1 if photometric in (0, 1) else 3
    if samples == 2 and colours == 1:
        raise SlideOpenError(path, "two channels are not a brightfield image", remedy)
    if not colours <= samples <= colours + 1:
        raise SlideOpenError(
            path, f"{samples} channels: multichannel fluorescence is not brightfield", remedy
        )


def _smaller(path: str | Path, tiff: TiffFile, first: Ifd, vendor: str) -> list[Ifd]:
    """The reduced levels, in file order."""
    size = _size(tiff, first)
    found: list[Ifd] = []
    children = [int(offset) for offset in tiff.ints(first, _SUBIFDS)]
    if len(children) > 64:
        raise SlideOpenError(path, f"{len(children)} reduced images in one directory")
    for offset in children:
        found.extend(tiff.chain(offset)[:1])
    tiled = _TILE_WIDTH in first.tags
    for page in tiff.ifds[1:]:
        subfile = tiff.integer(page, _SUBFILE, 0)
        page_tiled = _TILE_WIDTH in page.tags
        if vendor in ("aperio", "philips"):
            # Thumbnail, label and macro are written in strips.
            if page_tiled and subfile != 9:
                found.append(page)
        elif subfile & 1 and page_tiled == tiled:
            found.append(page)
        elif _size(tiff, page) == size and not subfile:
            raise SlideOpenError(
                path,
                f"{len(tiff.ifds)} images of the same size: channels, planes or times, "
                "not one brightfield image",
                "Export one brightfield image as 8-bit RGB.",
            )
    if vendor == "philips":
        return found
    return [page for page in found if _same_aspect(size, _size(tiff, page))]


def _size(tiff: TiffFile, ifd: Ifd) -> tuple[int, int]:
    return tiff.integer(ifd, _WIDTH, 0), tiff.integer(ifd, _HEIGHT, 0)


def _same_aspect(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """True where one ratio explains both sides to within a pixel or 2 %."""
    if min(*full, *size) < 1:
        return False
    ratio = max(Fraction(full[0], size[0]), Fraction(full[1], size[1]))
    return all(abs(a / ratio - b) <= max(1, b / 50) for a, b in zip(full, size, strict=True))


def _level(path: str | Path, tiff: TiffFile, ifd: Ifd) -> TiffLevel:
    width, height = _size(tiff, ifd)
    form, planes = _format(tiff, ifd)
    if _TILE_WIDTH in ifd.tags:
        block_w = tiff.integer(ifd, _TILE_WIDTH, 0)
        block_h = tiff.integer(ifd, _TILE_HEIGHT, 0)
        offsets, counts = tiff.ints(ifd, _TILE_OFFSETS), tiff.ints(ifd, _TILE_COUNTS)
        strips = rows = 0
    else:
        rows = max(1, min(tiff.integer(ifd, _ROWS, height), height))
        strips = max(1, _STRIP_ROWS // rows)
        block_w, block_h = width, min(rows * strips, height)
        offsets, counts = tiff.ints(ifd, _STRIP_OFFSETS), tiff.ints(ifd, _STRIP_COUNTS)
        if form.compression == codecs.NONE and planes == 1 and len(offsets) == len(counts) == 1:
            # One uncompressed strip is any number of strips: nothing has to be read whole.
            rows, strips, block_h = _STRIP_ROWS, 1, min(_STRIP_ROWS, height)
            offsets, counts = _cut(int(offsets[0]), int(counts[0]), width * form.samples, height)
    if min(width, height, block_w, block_h) < 1:
        raise SlideOpenError(path, f"an image of {width} x {height} pixels in blocks of "
                                   f"{block_w} x {block_h}")  # fmt: skip
    columns = -(-width // block_w)
    down = -(-height // (rows or block_h))
    need = columns * down * planes
    if len(offsets) < need or len(counts) < need:
        raise SlideOpenError(
            path,
            f"the index names {min(len(offsets), len(counts))} compressed pieces of {need}: "
            "the file is damaged",
        )
    offsets, counts = offsets[:need], np.where(offsets[:need] > 0, counts[:need], 0)
    if (counts < 0).any() or (offsets < 0).any():
        raise SlideOpenError(path, "the index holds negative sizes: the file is damaged")
    return TiffLevel(
        width, height, block_w, block_h, columns, offsets, counts, form, planes, strips, rows
    )


def _cut(
    offset: int, count: int, row_bytes: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of strips of `_STRIP_ROWS` rows within one uncompressed strip."""
    if offset <= 0 or count < row_bytes * height:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    tops = np.arange(0, height, _STRIP_ROWS, dtype=np.int64)
    return offset + tops * row_bytes, np.minimum(_STRIP_ROWS, height - tops) * row_bytes


def _format(tiff: TiffFile, ifd: Ifd) -> tuple[BlockFormat, int]:
    compression = tiff.integer(ifd, _COMPRESSION, 1)
    if compression not in codecs.CODECS:
        raise NotDirect(f"compression {compression} is not decoded directly")
    samples = tiff.integer(ifd, _SAMPLES, 1)
    photometric = tiff.integer(ifd, _PHOTOMETRIC, codecs.RGB)
    planar = tiff.integer(ifd, _PLANAR, 1) == 2 and samples > 1
    if planar and (samples != 3 or photometric != codecs.RGB):
        raise NotDirect("separate planes that are not RGB")
    if planar and compression in (codecs.JPEG, *codecs.WAVELET):
        raise NotDirect("separately compressed colour planes")
    extra = tiff.integer(ifd, _EXTRA, 0)
    plain_ycbcr = photometric == codecs.YCBCR and compression not in (
        codecs.JPEG,
        codecs.APERIO_J2K_YCBCR,
        codecs.APERIO_J2K_RGB,
    )
    if plain_ycbcr:
        raise NotDirect("YCbCr pixels without JPEG")
    if samples == 4 and compression == codecs.JPEG:
        raise NotDirect("JPEG with a fourth channel")
    predictor = tiff.integer(ifd, _PREDICTOR, 1)
    if predictor not in (1, 2):
        raise NotDirect(f"predictor {predictor}")
    if compression in (codecs.JPEG, codecs.NONE, *codecs.WAVELET):
        predictor = 1
    form = BlockFormat(
        compression=compression,
        photometric=photometric,
        samples=1 if planar else samples,
        alpha=samples == 4 and extra in (1, 2),
        premultiplied=extra == 1,
        predictor=predictor,
        tables=tiff.raw(ifd, _TABLES) if compression == codecs.JPEG else None,
    )
    return form, 3 if planar else 1


def _check_order(path: str | Path, levels: tuple[TiffLevel, ...]) -> None:
    for finer, coarser in itertools.pairwise(levels):
        if coarser.width > finer.width or coarser.height > finer.height:
            raise SlideOpenError(
                path,
                f"levels do not descend: {coarser.width} x {coarser.height} comes after "
                f"{finer.width} x {finer.height}",
                "Write the pyramid again, largest image first.",
            )
