"""Levels of a DICOM whole-slide series: which file holds which level, and where its frames lie.

DICOM PS3.3 A.32.8 (VL Whole Slide Microscopy), PS3.5 A.4 (encapsulated frames). Label and overview
instances are never indexed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideOpenError
from wsipipe.slide import codecs
from wsipipe.slide.codecs import BlockFormat
from wsipipe.slide.dicom_file import DicomError, DicomHeader, as_number, read_header

__all__ = ["DicomLevel", "NotDirectDicom", "index_series"]

_WSM: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"
_MODALITY, _IMAGE_TYPE, _SOP_CLASS = 0x00080060, 0x00080008, 0x00080016
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS = (
    0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011,
)  # fmt: skip
_PLANAR, _SPACING, _ALLOCATED, _ICC, _MEASURES = (
    0x00280006, 0x00280030, 0x00280100, 0x00282000, 0x00289110,
)  # fmt: skip
_TOTAL_COLUMNS, _TOTAL_ROWS, _VOLUME_WIDTH, _VOLUME_HEIGHT = (
    0x00480006, 0x00480007, 0x00480001, 0x00480002,
)  # fmt: skip
_OPTICAL_PATHS, _PLANE, _AT_COLUMN, _AT_ROW, _FOCAL_PLANES = (
    0x00480105, 0x0048021A, 0x0048021E, 0x0048021F, 0x00480303,
)  # fmt: skip
_ORGANISATION, _CONCATENATION, _SHARED_GROUPS, _FRAME_GROUPS = (
    0x00209311, 0x00209161, 0x52009229, 0x52009230,
)  # fmt: skip
_OBJECTIVE: Final = 0x00480112
_SYNTAX: Final = 0x00020010
_COMPRESSION: Final = {
    "1.2.840.10008.1.2": codecs.NONE,
    "1.2.840.10008.1.2.1": codecs.NONE,
    "1.2.840.10008.1.2.4.50": codecs.JPEG,
    "1.2.840.10008.1.2.4.90": codecs.JPEG2000,
    "1.2.840.10008.1.2.4.91": codecs.JPEG2000,
}
# DICOM PS3.5, 8.2.4: these transforms are JPEG 2000's own, which its decoder undoes.
_WAVELET_COLOURS: Final = {"RGB", "YBR_ICT", "YBR_RCT"}
_MAX_FRAMES: Final = 16_000_000


class NotDirectDicom(Exception):
    """A sound series that another reader should try; the text says why."""


@dataclass(frozen=True)
class DicomLevel:
    """One level: a file, and the place of every frame in it.

    Attributes:
        path: The instance.
        width, height: Total pixel matrix.
        block_w, block_h: Size of a frame.
        offsets, counts: Per block in row-major order, int64; count 0 is missing.
        spacing_um: (x, y) µm per pixel as text, or None.
        icc_profile, objective: As in the optical path.
    """

    path: Path
    width: int
    height: int
    block_w: int
    block_h: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    form: BlockFormat
    spacing_um: tuple[Fraction, Fraction] | None
    icc_profile: bytes | None
    objective: str | None


def index_series(path: Path, files: Sequence[Path]) -> tuple[DicomLevel, ...]:
    """Levels of a series, finest first.

    Raises:
        SlideOpenError: The series is no brightfield slide, or a file is damaged.
        NotDirectDicom: Another reader should try.
    """
    levels = []
    for file in files:
        try:
            header = read_header(file)
            if _is_level(header):
                levels.append(_level(path, file, header))
        except DicomError as error:
            raise SlideOpenError(path, f"{file.name}: damaged DICOM file ({error})") from error
        except OSError as error:
            raise SlideOpenError(path, f"{file.name}: {error.strerror or error}") from error
    if not levels:
        raise SlideOpenError(path, "no whole-slide image among the DICOM files of the series")
    levels.sort(key=lambda level: (-level.width, -level.height))
    if len({(level.width, level.height) for level in levels}) < len(levels):
        raise NotDirectDicom("several instances of one size (focal planes, channels or parts)")
    return tuple(levels)


def _is_level(header: DicomHeader) -> bool:
    kinds = header.text(_IMAGE_TYPE).upper().split("\\")
    if any(word in kinds for word in ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")):
        return False
    return _TOTAL_COLUMNS in header.elements


def _level(path: Path, file: Path, header: DicomHeader) -> DicomLevel:
    if header.text(_SOP_CLASS) != _WSM:
        raise SlideOpenError(path, f"{file.name} is a DICOM image but not of a whole slide")
    if header.text(_CONCATENATION):
        raise NotDirectDicom("a level is split over several files")
    bits = header.number(_ALLOCATED, 0)
    if bits != 8:
        raise SlideOpenError(
            path, f"{bits}-bit pixels: reducing them to 8 bits would be a guess",
            "Convert it to 8-bit RGB, or leave it out.",
        )  # fmt: skip
    frames = header.decimal(_FRAMES, 1)
    width, height, block_w, block_h, samples = (
        header.number(tag, default) or 0
        for tag, default in (
            (_TOTAL_COLUMNS, 0), (_TOTAL_ROWS, 0), (_COLUMNS, 0), (_ROWS, 0), (_SAMPLES, 1),
        )
    )  # fmt: skip
    if min(width, height, block_w, block_h) < 1 or not 0 < frames <= _MAX_FRAMES:
        raise SlideOpenError(path, f"{file.name}: sizes are missing or absurd")
    paths = header.elements.get(_OPTICAL_PATHS)
    optical = paths if isinstance(paths, list) else []
    if len(optical) > 1:
        raise SlideOpenError(
            path, f"{len(optical)} optical paths: multichannel fluorescence is not brightfield",
            "Export a brightfield image as 8-bit RGB.",
        )  # fmt: skip
    if (header.number(_FOCAL_PLANES, 1) or 1) > 1:
        raise NotDirectDicom("several focal planes")
    form = _form(path, header, samples)
    pieces = _frames(file, header, frames, block_w * block_h * samples)
    places = _places(path, header, frames, (width, height), (block_w, block_h))
    total = -(-width // block_w) * -(-height // block_h)
    offsets, counts = np.zeros(total, np.int64), np.zeros(total, np.int64)
    offsets[places], counts[places] = pieces
    first = optical[0] if optical else {}
    profile, power = first.get(_ICC), first.get(_OBJECTIVE)
    return DicomLevel(
        path=file, width=width, height=height, block_w=block_w, block_h=block_h,
        offsets=offsets, counts=counts, form=form,
        spacing_um=_spacing(header, width, height),
        icc_profile=profile if isinstance(profile, bytes) and profile else None,
        objective=_text(power),
    )  # fmt: skip


def _text(value: object) -> str | None:
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else None


def _form(path: Path, header: DicomHeader, samples: int) -> BlockFormat:
    compression = _COMPRESSION.get(header.text(_SYNTAX))
    if compression is None:
        raise NotDirectDicom(f"transfer syntax {header.text(_SYNTAX)} is not decoded directly")
    colours = header.text(_PHOTOMETRIC)
    ycbcr = compression == codecs.JPEG and colours.startswith("YBR")
    if compression == codecs.JPEG2000 and samples == 3 and colours not in _WAVELET_COLOURS:
        # No reader converts them: what they decode would pass for RGB.
        raise SlideOpenError(
            path, f"{colours or 'unnamed'} colours in JPEG 2000 have no certain RGB here",
            "Export the slide again as RGB, YBR_ICT or YBR_RCT.",
        )  # fmt: skip
    photometric = {"MONOCHROME1": codecs.WHITE_IS_ZERO, "MONOCHROME2": codecs.BLACK_IS_ZERO}.get(
        colours, codecs.YCBCR if ycbcr else codecs.RGB
    )
    if samples == 3 and compression == codecs.NONE:
        if colours != "RGB" or header.number(_PLANAR, 0):
            raise NotDirectDicom(f"uncompressed {colours} pixels")
    elif samples not in (1, 3) or (samples == 1) != (photometric in (0, 1)):
        raise NotDirectDicom(f"{samples} samples of {colours}")
    return BlockFormat(compression, photometric, samples)


def _frames(
    file: Path, header: DicomHeader, frames: int, frame_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset and length of every frame."""
    start = header.pixel_offset
    if start is None:
        raise DicomError("no pixel data")
    if header.pixel_bytes is not None:
        if start + frames * frame_bytes > header.size:
            raise DicomError("the file is cut off")
        offsets = start + np.arange(frames, dtype=np.int64) * frame_bytes
        return offsets, np.full(frames, frame_bytes, np.int64)
    with file.open("rb") as opened:
        return _fragments(opened, start, header.size, frames)


def _fragments(
    file: BinaryIO, start: int, size: int, frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Walk the fragments. The offset table that precedes them is optional, so it is not used."""
    file.seek(start)
    offsets: list[int] = []
    counts: list[int] = []
    at = start
    table = True
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise DicomError("the file is cut off within its frames")
        tag, length = head[:4], struct.unpack("<I", head[4:])[0]
        if tag == b"\xfe\xff\xdd\xe0":
            break
        if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > size:
            raise DicomError("the file is cut off within its frames")
        if not table:
            offsets.append(at + 8)
            counts.append(length)
            if len(offsets) > frames:
                raise NotDirectDicom("frames are split into fragments")
        table = False
        at += 8 + length
    if len(offsets) != frames:
        raise DicomError(f"{len(offsets)} frames of {frames}")
    return np.array(offsets, np.int64), np.array(counts, np.int64)


def _places(
    path: Path, header: DicomHeader, frames: int, size: tuple[int, int], block: tuple[int, int]
) -> NDArray[np.int64]:
    """Row-major block number of every frame.

    Only TILED_FULL promises that order (DICOM PS3.3, C.7.6.17.3); files that say nothing exist
    with frames in another one.
    """
    columns, rows = -(-size[0] // block[0]), -(-size[1] // block[1])
    organisation = header.text(_ORGANISATION)
    if (organisation != "TILED_FULL" and columns * rows > 1) or frames != columns * rows:
        groups = header.elements.get(_FRAME_GROUPS)
        if not isinstance(groups, list) or len(groups) != frames:
            if organisation != "TILED_FULL":
                raise _placeless(path, organisation)
            if frames % (columns * rows):
                raise DicomError(f"{frames} frames for {columns} x {rows} places")
            raise NotDirectDicom("several frames at one place (focal planes or channels)")
        places = np.empty(frames, np.int64)
        for number, group in enumerate(groups):
            plane = group.get(_PLANE)
            at = plane[0] if isinstance(plane, list) and plane else {}
            x, y = as_number(at.get(_AT_COLUMN)), as_number(at.get(_AT_ROW))
            if x is None or y is None:
                raise _placeless(path, organisation)
            if (x - 1) % block[0] or (y - 1) % block[1]:
                # wsidicom, the only one that opens it, would put them on the lattice.
                raise SlideOpenError(
                    path, "frames that do not lie side by side", "Convert it to a tiled TIFF."
                )
            col, row = (x - 1) // block[0], (y - 1) // block[1]
            if not (0 <= col < columns and 0 <= row < rows):
                raise DicomError("a frame lies outside the image")
            places[number] = row * columns + col
        if len(np.unique(places)) != frames:
            raise NotDirectDicom("several frames at one place (focal planes or channels)")
        return places
    return np.arange(frames, dtype=np.int64)


def _placeless(path: Path, organisation: str) -> SlideOpenError:
    """Not for another reader: OpenSlide shows white for such a file, or ends the process."""
    return SlideOpenError(
        path,
        "the file does not say where its frames lie "
        f"(DimensionOrganizationType {organisation or 'missing'}, frames without positions)",
        "Export the slide from its source again, or convert it to a tiled TIFF.",
    )


def _spacing(header: DicomHeader, width: int, height: int) -> tuple[Fraction, Fraction] | None:
    groups = header.elements.get(_SHARED_GROUPS)
    measures = groups[0].get(_MEASURES) if isinstance(groups, list) and groups else None
    raw = measures[0].get(_SPACING) if isinstance(measures, list) and measures else None
    if raw is None:
        raw = header.elements.get(_SPACING)
    if isinstance(raw, bytes):
        parts = raw.decode("ascii", "replace").strip(" \0").split("\\")
        try:
            # Row spacing (down) comes first.
            down, across = (Fraction(part.strip()) * 1000 for part in parts)
        except (ValueError, ZeroDivisionError):
            return None
        return across, down
    sides = []
    for tag, count in ((_VOLUME_WIDTH, width), (_VOLUME_HEIGHT, height)):
        value = header.elements.get(tag)
        if not isinstance(value, bytes) or len(value) != 4:
            return None
        mm = struct.unpack("<f", value)[0]
        if not 0 < mm < 1e6:
            return None
        sides.append(Fraction(mm) * 1000 / count)
    return sides[0], sides[1]
