"""A TIFF file's directories and tags, with every step checked against the file's size.

Classic TIFF and BigTIFF, both byte orders (TIFF 6.0; BigTIFF by Aware Systems). A general library
reads far more kinds of TIFF, and trusts what a file says about itself; slides come over networks
and break, so here a count, an offset or a chain that cannot be true ends in `TiffError` before
memory is taken. Tile offsets of 150,000 tiles are read as one array in about a millisecond.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ifd", "LocalSource", "Source", "Tag", "TiffError", "TiffFile"]

_TYPES: Final = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4x2", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4x2",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_MAX_IFDS: Final = 1024
_MAX_TAGS: Final = 1024


class TiffError(ValueError):
    """The file contradicts itself or its size."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of a directory; `offset` is where its value lies in the file."""

    kind: int
    count: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the value."""
        code = _TYPES.get(self.kind, "u1")
        return self.count * (8 if code.endswith("x2") else int(code[1]))


@dataclass(slots=True)
class Ifd:
    """One image file directory."""

    offset: int
    tags: dict[int, Tag] = field(default_factory=dict)


class Source(Protocol):
    """Bytes with positioned reads that threads may share."""

    size: int

    def pread(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset`."""

    def close(self) -> None:
        """Release it."""


class LocalSource:
    """A file on disk: one descriptor, which has no position to fight over."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def pread(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset`."""
        return os.pread(self._fd, count, offset)

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class TiffFile:
    """An open TIFF with its directories; values are read when asked for.

    Attributes:
        size: Bytes of the file.
        ifds: The main chain, in file order.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = source.size
        try:
            head = self.read(0, min(16, self.size))
            if head[:2] not in (b"II", b"MM") or len(head) < 8:
                raise TiffError("no TIFF header")
            self.order = "<" if head[:2] == b"II" else ">"
            version = struct.unpack_from(self.order + "H", head, 2)[0]
            self.big = version == 43
            if version not in (42, 43) or (self.big and len(head) < 16):
                raise TiffError("no TIFF header")
            first = struct.unpack_from(
                self.order + ("Q" if self.big else "I"), head, 4 * self.big + 4
            )
            self.ifds = self.chain(first[0])
        except BaseException:
            source.close()
            raise

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            TiffError: They reach beyond the end of the file.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise TiffError(f"{count} bytes at {offset} reach beyond the end ({self.size} bytes)")
        data = self._source.pread(count, offset)
        while len(data) < count:
            more = self._source.pread(count - len(data), offset + len(data))
            if not more:
                raise TiffError("the file became shorter while it was read")
            data += more
        return data

    def chain(self, offset: int) -> list[Ifd]:
        """Directories from `offset` on.

        Raises:
            TiffError: The chain is broken, cyclic or absurdly long.
        """
        ifds: list[Ifd] = []
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise TiffError("the directories form a circle")
            if len(ifds) >= _MAX_IFDS:
                raise TiffError(f"more than {_MAX_IFDS} directories")
            seen.add(offset)
            ifd, offset = self._directory(offset)
            ifds.append(ifd)
        return ifds

    def _directory(self, offset: int) -> tuple[Ifd, int]:
        order, big = self.order, self.big
        entry, count_code, wide = (20, "Q", "Q") if big else (12, "H", "I")
        count_bytes = struct.calcsize(count_code)
        if offset + count_bytes > self.size:
            raise TiffError(
                f"a directory lies at {offset}, beyond the end of the file ({self.size} bytes)"
            )
        count = struct.unpack(order + count_code, self.read(offset, count_bytes))[0]
        if not 0 < count <= _MAX_TAGS:
            raise TiffError(f"a directory of {count} tags")
        body = self.read(offset + count_bytes, count * entry + struct.calcsize(wide))
        ifd = Ifd(offset)
        inline = 8 if big else 4
        for index in range(count):
            at = index * entry
            code, kind, values = struct.unpack_from(order + "HH" + wide, body, at)
            tag = Tag(kind, values, offset + count_bytes + at + entry - inline)
            if tag.size > inline:
                (where,) = struct.unpack_from(order + wide, body, at + entry - inline)
                tag = Tag(kind, values, where)
                if where + tag.size > self.size:
                    raise TiffError(
                        f"tag {code} points beyond the end of the file ({self.size} bytes)"
                    )
            ifd.tags.setdefault(code, tag)
        return ifd, int(struct.unpack_from(order + wide, body, count * entry)[0])

    def raw(self, ifd: Ifd, code: int) -> bytes | None:
        """The bytes of a tag, or None."""
        tag = ifd.tags.get(code)
        return None if tag is None else self.read(tag.offset, tag.size)

    def ints(self, ifd: Ifd, code: int) -> NDArray[np.int64]:
        """All values of an integer tag; empty where it is absent or no integers."""
        tag = ifd.tags.get(code)
        kind = _TYPES.get(tag.kind, "") if tag else ""
        if tag is None or kind[:1] not in ("u", "i") or kind.endswith("x2"):
            return np.empty(0, np.int64)
        values = np.frombuffer(self.read(tag.offset, tag.size), np.dtype(self.order + kind))
        return values.astype(np.int64)

    def integer(self, ifd: Ifd, code: int, default: int) -> int:
        """First value of an integer tag."""
        values = self.ints(ifd, code)
        return int(values[0]) if len(values) else default

    def text(self, ifd: Ifd, code: int) -> str:
        """A text tag up to its first zero byte; "" where it is absent."""
        raw = self.raw(ifd, code) or b""
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    def rational(self, ifd: Ifd, code: int) -> Fraction | None:
        """First value of a rational (or float) tag; None where absent or divided by zero."""
        tag = ifd.tags.get(code)
        if tag is None or tag.count < 1:
            return None
        raw = self.read(tag.offset, tag.size)
        if tag.kind in (5, 10):
            top, bottom = struct.unpack_from(self.order + ("II" if tag.kind == 5 else "ii"), raw)
            return Fraction(top, bottom) if bottom else None
        if tag.kind in (11, 12):
            value = struct.unpack_from(self.order + ("f" if tag.kind == 11 else "d"), raw)[0]
            return Fraction(value) if abs(value) < 1e12 else None
        return None
