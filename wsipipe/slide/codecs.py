"""Compressed blocks to RGB: imagecodecs for the work, sizes checked before memory is taken.

Every decoder writes into an array of the expected size, so a header that claims another size is an
error and not an allocation. All of them release the interpreter lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from wsipipe.slide.memory import empty_pixels
from wsipipe.slide.resample import opencv
from wsipipe.types import TileArray

__all__ = ["CODECS", "WAVELET", "BlockFormat", "CodecError", "CutBlock", "decode_block"]

NONE, LZW, JPEG, DEFLATE, PACKBITS = 1, 5, 7, 8, 32773
ADOBE_DEFLATE, ZSTD, JPEG2000 = 32946, 50000, 34712
APERIO_J2K_YCBCR, APERIO_J2K_RGB = 33003, 33005
CODECS: Final = {
    NONE: "uncompressed", LZW: "LZW", JPEG: "JPEG", DEFLATE: "Deflate", PACKBITS: "PackBits",
    ADOBE_DEFLATE: "Deflate", ZSTD: "Zstandard", JPEG2000: "JPEG 2000",
    APERIO_J2K_YCBCR: "JPEG 2000 (YCbCr)", APERIO_J2K_RGB: "JPEG 2000 (RGB)",
}  # fmt: skip
WAVELET: Final = {JPEG2000, APERIO_J2K_YCBCR, APERIO_J2K_RGB}

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6
# An end-of-image marker may be followed by padding.
_TAIL_BYTES: Final = 64
# imagecodecs' own errors derive from RuntimeError; a wrong shape of `out` is a ValueError.
_ERRORS: Final = (RuntimeError, ValueError, TypeError, MemoryError, OSError)


class CodecError(ValueError):
    """A block cannot be decoded."""


class CutBlock(CodecError):
    """Data that end in zeros before their end: decoders make garbage of it and say nothing."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How the blocks of a level are compressed.

    Attributes:
        compression: TIFF's number.
        photometric: TIFF's number.
        samples: Values a pixel in one block (1, 3 or 4).
        alpha: True where the fourth sample is opacity.
        premultiplied: True where colours are already multiplied by it.
        predictor: 2 where rows are stored as differences.
        tables: Shared JPEG tables.
    """

    compression: int
    photometric: int
    samples: int
    alpha: bool = False
    premultiplied: bool = False
    predictor: int = 1
    tables: bytes | None = None


def decode_block(
    data: bytes,
    form: BlockFormat,
    size: tuple[int, int],
    out: TileArray | None = None,
    least: tuple[int, int] | None = None,
) -> TileArray:
    """Decode one block to the samples it holds.

    Args:
        size: Expected (width, height).
        out: (height, width, samples) uint8, C-contiguous, to decode into where the codec can.
        least: (width, height) that must be there; some writers crop the blocks at a level's
            edge to what lies inside. Default: all of `size`.

    Returns:
        (h, w, samples) uint8, between `least` and `size`; RGB where the format holds a colour
        transform.

    Raises:
        CodecError: The block is damaged, or its size is another.
    """
    width, height = size
    if out is None or out.shape != (height, width, form.samples):
        out = empty_pixels((height, width, form.samples))
    if form.compression == JPEG:
        return _jpeg(data, form, out, least or size)
    if form.compression in WAVELET:
        return _jpeg2000(data, form, out)
    return _plain(data, form, out)


def _jpeg(data: bytes, form: BlockFormat, out: TileArray, least: tuple[int, int]) -> TileArray:
    import imagecodecs

    # libjpeg fills a stream that ends too early with grey and calls it a warning.
    if data.rfind(b"\xff\xd9", max(0, len(data) - _TAIL_BYTES)) < 0:
        if not any(data[-_TAIL_BYTES:]):
            raise CutBlock("the JPEG data end in zeros")
        raise CodecError("the JPEG data end too early")
    if form.samples == 1:
        colour, wanted = None, "GRAYSCALE"
    else:
        # Aperio stores RGB without saying so in the stream: the container's word is what counts,
        # unless the stream is a JFIF file, which is always YCbCr (some DICOM converters say RGB).
        luma = form.photometric == YCBCR or data[6:11] == b"JFIF\0"
        colour, wanted = ("YCBCR" if luma else "RGB"), "RGB"
    target = out[..., 0] if form.samples == 1 else out
    if least != (out.shape[1], out.shape[0]):
        width, height = _jpeg_size(data)
        if least[0] <= width <= out.shape[1] and least[1] <= height <= out.shape[0]:
            out = empty_pixels((height, width, form.samples))
            target = out[..., 0] if form.samples == 1 else out
    try:
        imagecodecs.jpeg8_decode(
            data, tables=form.tables, colorspace=colour, outcolorspace=wanted, out=target
        )
    except _ERRORS as error:
        raise CodecError(f"damaged JPEG data ({error})") from error
    return out


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) in the frame header (ITU T.81, B.2.2); (0, 0) where there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (
                int.from_bytes(data[at + 7 : at + 9], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
            )
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _jpeg2000(data: bytes, form: BlockFormat, out: TileArray) -> TileArray:
    import imagecodecs

    _check_codestream(data, out)
    target = out[..., 0] if form.samples == 1 else out
    try:
        decoded = imagecodecs.jpeg2k_decode(data, planar=False, numthreads=1, out=target)
    except _ERRORS as error:
        raise CodecError(f"damaged JPEG 2000 data ({error})") from error
    if form.compression == APERIO_J2K_YCBCR and form.samples == 3:
        cv2 = opencv()
        # OpenCV's order is Y, Cr, Cb.
        swapped = np.ascontiguousarray(decoded[..., [0, 2, 1]])
        cv2.cvtColor(swapped, cv2.COLOR_YCrCb2RGB, dst=out)
    return out


def _check_codestream(data: bytes, out: TileArray) -> None:
    """The size in the SIZ marker (ISO 15444-1, A.5.1) must be the block's."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 512)
    if at < 0 or len(data) < at + 40:
        raise CodecError("no JPEG 2000 codestream")
    x1, y1, x0, y0 = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
    parts = int.from_bytes(data[at + 40 : at + 42], "big")
    if (y1 - y0, x1 - x0, parts) != out.shape:
        raise CodecError(f"JPEG 2000 data of {x1 - x0} x {y1 - y0} pixels, {parts} samples")


def _plain(data: bytes, form: BlockFormat, out: TileArray) -> TileArray:
    need = out.nbytes
    if form.compression == NONE:
        raw: Any = data
    else:
        raw = _inflate(data, form.compression, need)
    if len(raw) < need:
        raise CodecError(f"{len(raw)} bytes where {need} are needed")
    pixels = np.frombuffer(raw, np.uint8, need).reshape(out.shape)
    if form.predictor == 2:
        np.cumsum(pixels, axis=1, dtype=np.uint8, out=out)
        return out
    out[:] = pixels
    return out


def _inflate(data: bytes, compression: int, need: int) -> Any:
    import imagecodecs

    decode = {
        LZW: imagecodecs.lzw_decode,
        DEFLATE: imagecodecs.zlib_decode,
        ADOBE_DEFLATE: imagecodecs.zlib_decode,
        ZSTD: imagecodecs.zstd_decode,
        PACKBITS: imagecodecs.packbits_decode,
    }[compression]
    try:
        return decode(data, out=bytearray(need))
    except _ERRORS as error:
        raise CodecError(f"damaged {CODECS[compression]} data ({error})") from error
