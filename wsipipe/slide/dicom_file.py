"""A DICOM file's header, without decoding pixels and without an optional package.

Only what a slide needs: data elements up to the pixel data (DICOM PS3.5, clause 7), explicit or
implicit VR, little endian. Every step moves forward and every length is checked against the file,
so a damaged file ends in an error, not in a loop. Elements that name a person are never kept.
"""

from __future__ import annotations

import functools
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

__all__ = ["DicomError", "DicomHeader", "read_header", "series_uid"]

Tag: TypeAlias = int  # group << 16 | element
Dataset: TypeAlias = dict[Tag, "bytes | list[Dataset]"]

SOP_CLASS: Final = 0x00080016
IMAGE_TYPE: Final = 0x00080008
SERIES_UID: Final = 0x0020000E
PIXEL_DATA: Final = 0x7FE00010
TRANSFER_SYNTAX: Final = 0x00020010

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_LONG_VR: Final = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR",
                   b"UT", b"UV"}  # fmt: skip
_IMPLICIT: Final = "1.2.840.10008.1.2"
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
_MAX_VALUE: Final = 64 * 1024 * 1024
_MAX_DEPTH: Final = 12
# Patient (0010), clinical trial (0012) and every date, name and description stay in the file.
_KEPT_GROUPS: Final = {0x0002, 0x0020, 0x0022, 0x0028, 0x0040, 0x0048, 0x5200, 0x7FE0}
_KEPT_0008: Final = {SOP_CLASS, IMAGE_TYPE, 0x00080018, 0x00080060, 0x00080070}


class DicomError(ValueError):
    """The file is no DICOM file, or a damaged one."""


@dataclass(slots=True)
class DicomHeader:
    """Elements of one file.

    Attributes:
        elements: Tag -> raw value, or list of datasets for a sequence.
        pixel_offset: Where the pixel data's value begins, or None.
        pixel_bytes: Its length; None where it is encapsulated (compressed frames).
        size: Bytes of the file.
    """

    elements: Dataset = field(default_factory=dict)
    pixel_offset: int | None = None
    pixel_bytes: int | None = None
    size: int = 0

    def text(self, tag: Tag) -> str:
        """The element as text; "" where it is absent."""
        value = self.elements.get(tag, b"")
        return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else ""

    def number(self, tag: Tag, default: int | None = None) -> int | None:
        """A binary integer element (US, UL, SL)."""
        return as_number(self.elements.get(tag), default)

    def decimal(self, tag: Tag, default: int) -> int:
        """An integer written as text (IS)."""
        text = self.text(tag)
        return int(text) if text.isdigit() and len(text) < 10 else default


def as_number(value: object, default: int | None = None) -> int | None:
    """A binary integer element of two or four bytes."""
    if isinstance(value, bytes) and len(value) in (2, 4):
        return int.from_bytes(value, "little", signed=len(value) == 4)
    return default


def series_uid(path: Path) -> str | None:
    """SeriesInstanceUID of a file, or None where it is no readable DICOM file."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return None
        return _series_uid(path, facts.st_size, facts.st_mtime_ns)
    except (DicomError, OSError):
        return None


# In a folder of many series each slide asks for all of its files.
@functools.lru_cache(maxsize=1 << 17)
def _series_uid(path: Path, size: int, mtime_ns: int) -> str | None:
    return read_header(path, last=SERIES_UID).text(SERIES_UID) or None


def read_header(path: Path, *, last: Tag = PIXEL_DATA) -> DicomHeader:
    """Read the elements of a file up to `last` (elements stand in ascending order).

    Raises:
        DicomError: No DICOM file, or a damaged one.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(128)
        if file.read(4) != b"DICM":
            raise DicomError("no DICOM preamble")
        header = DicomHeader(size=size)
        parser = _Parser(file, size, header)
        parser.meta()
        syntax = header.text(TRANSFER_SYNTAX)
        if syntax == _BIG_ENDIAN:
            raise DicomError("big-endian DICOM is not read")
        parser.explicit = syntax != _IMPLICIT
        parser.dataset(header.elements, size, last, 0)
    return header


class _Parser:
    def __init__(self, file: BinaryIO, size: int, header: DicomHeader) -> None:
        self.file = file
        self.size = size
        self.header = header
        self.explicit = True

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise DicomError("the file ends within an element")
        return data

    def meta(self) -> None:
        """Group 0002, always explicit."""
        while True:
            here = self.file.tell()
            head = self.file.read(2)
            self.file.seek(here)
            if head != b"\x02\x00":
                return
            tag, vr, length = self.element()
            if length == _UNDEFINED or length > _MAX_VALUE or vr == b"SQ":
                raise DicomError("a damaged file header")
            self.header.elements[tag] = self.take(length)

    def element(self) -> tuple[Tag, bytes, int]:
        group, element = struct.unpack("<HH", self.take(4))
        tag = group << 16 | element
        if group == 0xFFFE or not self.explicit:
            return tag, b"", int(struct.unpack("<I", self.take(4))[0])
        vr = self.take(2)
        if vr in _LONG_VR:
            self.take(2)
            return tag, vr, int(struct.unpack("<I", self.take(4))[0])
        if not vr.isalpha():
            raise DicomError("a damaged element")
        return tag, vr, int(struct.unpack("<H", self.take(2))[0])

    def dataset(self, into: Dataset, end: int, last: Tag, depth: int) -> None:
        """Elements until `end`, until an item's end, or until a tag beyond `last`."""
        if depth > _MAX_DEPTH:
            raise DicomError("sequences nested too deeply")
        while self.file.tell() + 8 <= end:
            tag, vr, length = self.element()
            if tag == _ITEM_END:
                return
            if depth == 0 and tag > last:
                return
            if depth == 0 and tag == PIXEL_DATA:
                self.header.pixel_offset = self.file.tell()
                self.header.pixel_bytes = None if length == _UNDEFINED else length
                return
            if vr == b"SQ" or length == _UNDEFINED or (not vr and self.looks_like_items(length)):
                items = self.sequence(end if length == _UNDEFINED else self.file.tell() + length,
                                      length == _UNDEFINED, depth)  # fmt: skip
                if _is_kept(tag):
                    into[tag] = items
                continue
            if length > end - self.file.tell():
                raise DicomError("an element reaches beyond the file")
            if _is_kept(tag) and length <= _MAX_VALUE:
                into[tag] = self.take(length)
            else:
                self.file.seek(length, 1)

    def looks_like_items(self, length: int) -> bool:
        """Implicit VR does not say what is a sequence; its items begin with their own tag."""
        if length < 8:
            return False
        here = self.file.tell()
        head = self.file.read(4)
        self.file.seek(here)
        return head == b"\xfe\xff\x00\xe0"

    def sequence(self, end: int, open_ended: bool, depth: int) -> list[Dataset]:
        items: list[Dataset] = []
        if end > self.size:
            raise DicomError("a sequence reaches beyond the file")
        while self.file.tell() + 8 <= end:
            tag, _, length = self.element()
            if tag == _SEQUENCE_END:
                return items
            if tag != _ITEM:
                raise DicomError("a sequence without items")
            item_end = end if length == _UNDEFINED else self.file.tell() + length
            if item_end > end:
                raise DicomError("an item reaches beyond its sequence")
            item: Dataset = {}
            self.dataset(item, item_end, PIXEL_DATA, depth + 1)
            items.append(item)
        if open_ended:
            raise DicomError("a sequence without end")
        return items


def _is_kept(tag: Tag) -> bool:
    return tag >> 16 in _KEPT_GROUPS or tag in _KEPT_0008
