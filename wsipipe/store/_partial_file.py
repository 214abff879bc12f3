"""The file behind `PartialRows`: its name, its header, and which of them nobody needs any more.

page 0      header: magic, length, JSON (final name, identity, rows, dim, dtype), crc
4096 ...    features, row i at 4096 + i * row_bytes (a hole until it is written)
behind      one entry a row: crc32 of the row, status + 1; all zero = not there yet
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.owner import Owner
from wsipipe.store.identity import identity_hash
from wsipipe.store.publish import file_system_now
from wsipipe.types import BoolArray

__all__ = [
    "ENTRY",
    "HEADER_BYTES",
    "RowRange",
    "about",
    "find_partials",
    "header_page",
    "is_orphan",
    "is_whole",
    "key_of",
    "read_header",
    "remove_stale_partials",
]

HEADER_BYTES = 4096
ENTRY = np.dtype([("crc", "<u4"), ("state", "<u4")])
# A living owner on another host flushes every 30 s; one that has been still for so long is gone.
_TAKE_OVER_S = 120.0
_MAGIC = b"wsipipe-partial 1\n"
_NAME = re.compile(
    r"^[0-9a-f]{32}(?:-\d+-\d+)?"
    r"\.(?:free|whole|(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<start>\w+))\.part$"
)


@dataclass(frozen=True)
class RowRange:
    """The `number`-th (from 1) of `of` equal stretches of a slide's rows."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}-{self.of}"

    def mask(self, rows: int) -> BoolArray:
        """(N,) bool, the rows of `rows` that belong to it."""
        inside = np.zeros(rows, bool)
        inside[rows * (self.number - 1) // self.of : rows * self.number // self.of] = True
        return inside


def find_partials(folder: str | Path) -> Iterator[tuple[Path, Owner | None]]:
    """Partial files in `folder` and who writes each; None where a former run closed it."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.match(entry.name):
                owner = None
                if match["host"]:
                    owner = Owner(match["host"], int(match["pid"]), match["start"])
                yield Path(entry.path), owner


def read_header(path: Path) -> dict[str, Any] | None:
    """What a partial file says about itself; None if its header is damaged."""
    try:
        with path.open("rb") as file:
            page = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 8
    if len(page) < HEADER_BYTES or not page.startswith(_MAGIC):
        return None
    length, crc = struct.unpack_from("<II", page, len(_MAGIC))
    text = page[start : start + length]
    if zlib.crc32(text) != crc:
        return None
    header: dict[str, Any] = json.loads(text)
    return header


def header_page(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode("utf-8", errors="surrogateescape")
    page = _MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text
    if len(page) > HEADER_BYTES:
        raise ValueError("the name of the final file is too long for a partial file")
    return page.ljust(HEADER_BYTES, b"\0")


def is_orphan(path: Path, owner: Owner | None, folder: Path) -> bool:
    """True if nobody writes `path` any more, as far as can be known from here."""
    if owner is None:
        return True
    state = owner.state()
    if state != "elsewhere":
        return state == "dead"
    try:
        return file_system_now(folder) - path.stat().st_mtime > _TAKE_OVER_S
    except FileNotFoundError:
        return False


def remove_stale_partials(folder: str | Path) -> list[Path]:
    """Remove partial files whose slide is finished, or whose header is damaged.

    Returns:
        The paths that were removed. Rows that a next run can use stay.
    """
    folder = Path(folder)
    removed = []
    for path, owner in find_partials(folder):
        if not is_orphan(path, owner, folder):
            continue
        header = read_header(path)
        with suppress(FileNotFoundError):
            if header is not None:
                final = folder / header["final"]
                if not final.exists() or final.stat().st_mtime < path.stat().st_mtime:
                    continue
            path.unlink()
            removed.append(path)
    with suppress(OSError):
        folder.rmdir()
    return removed


def is_whole(
    final: str | Path,
    row_range: RowRange,
    *,
    folder: str | Path,
    identity: Mapping[str, Any] | str,
) -> bool:
    """Whether a process has made all it can of these rows, and closed its `PartialRows` `whole`."""
    final, folder = Path(final), Path(folder)
    header = read_header(folder / f"{key_of(final, folder)}-{row_range}.whole.part")
    return header is not None and about(final, folder, identity).items() <= header.items()


def key_of(final: Path, folder: Path, part: str = "") -> str:
    """What the names of all files for `part` of a feature file begin with."""
    name = _relative(final, folder)
    return hashlib.sha256(os.fsencode(f"{name}\0{part}" if part else name)).hexdigest()[:32]


def about(final: Path, folder: Path, identity: Mapping[str, Any] | str) -> dict[str, Any]:
    return {"final": _relative(final, folder), "identity": identity_hash(identity)}


def _relative(final: Path, folder: Path) -> str:
    """Relative to the folder: the whole output may be moved between two runs."""
    return os.path.relpath(final, folder)
