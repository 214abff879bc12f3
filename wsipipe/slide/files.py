"""Which files make up a slide, and the slide's fingerprint over them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from wsipipe.errors import SlideOpenError
from wsipipe.slide.dicom_file import series_uid

__all__ = ["check_is_file", "dicom_files", "fingerprint", "is_there", "is_url", "slide_files"]

_EDGE_BYTES: Final = 64 * 1024
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_VMS_KEYS: Final = re.compile(
    r"^(?:ImageFile|MapFile|OptimisationFile|MacroImage)[^=]*=(.+)$", re.M
)


def is_url(path: str | Path) -> bool:
    """True for "s3://..." and the like; a `Path` is never one."""
    return isinstance(path, str) and _URL.match(path) is not None


def is_there(path: Path) -> bool:
    """Whether something is at `path`, as far as this user may see: False in a locked folder."""
    try:
        return path.exists()
    except OSError:
        return False


def check_is_file(path: Path) -> None:
    """Refuse pipes, sockets and devices: opening one may wait for its other end for ever.

    Raises:
        SlideOpenError: Something is there that is neither a file nor a folder.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SlideOpenError(path, "neither a file nor a folder", "Name the slide itself.")


def slide_files(path: Path) -> list[Path]:
    """Every file of the slide at `path`, sorted: a MIRAX set, a DICOM series, a folder, a file.

    Raises:
        SlideOpenError: The path does not exist or cannot be read.
    """
    try:
        if path.is_dir():
            series = dicom_files(path)
            return series or sorted(p for p in path.rglob("*") if p.is_file())
        check_is_file(path)
        suffix = path.suffix.lower()
        if suffix == ".mrxs":
            folder = path.with_suffix("")
            parts = folder.iterdir() if folder.is_dir() else iter(())
            return [path, *sorted(p for p in parts if p.is_file())]
        if suffix in (".vms", ".vmu"):
            return [path, *_named_in(path)]
        if suffix == ".dcm":
            return dicom_files(path) or [path]
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read: {error.strerror or error}") from error
    return [path]


def dicom_files(path: Path) -> list[Path]:
    """Files of one DICOM series, sorted: that of the file `path`, or the only one in the folder.

    A folder that holds several series has no one slide: the first series (by file name) is taken
    only where the folder was named by one of its files.
    """
    folder = path if path.is_dir() else path.parent
    series: dict[str, list[Path]] = {}
    for candidate in sorted(folder.iterdir()):
        if candidate.suffix.lower() == ".dcm":
            uid = series_uid(candidate)
            if uid is not None:
                series.setdefault(uid, []).append(candidate)
    if path.is_dir():
        return next(iter(series.values())) if len(series) == 1 else []
    own = series_uid(path)
    return series.get(own, []) if own is not None else []


def fingerprint(path: str | Path) -> str:
    """SHA-256 (hex) of the size, first and last 64 KiB of every file of the slide.

    Names and times do not count: a copied or renamed slide is the same slide. The slide is not
    opened, so thousands are checked in seconds.

    Raises:
        SlideOpenError: A file cannot be read.
    """
    if isinstance(path, str) and is_url(path):
        return _remote_fingerprint(path)
    where = Path(path)
    try:
        return _digest(_open_all(slide_files(where)))
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read: {error.strerror or error}") from error


def _open_all(files: Iterable[Path]) -> Iterable[BinaryIO]:
    for file in files:
        with file.open("rb") as opened:
            yield opened


def _digest(files: Iterable[BinaryIO]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.seek(0, 2)
        digest.update(size.to_bytes(8, "little"))
        file.seek(0)
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(0, size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def _remote_fingerprint(url: str) -> str:
    from wsipipe.slide.remote import open_remote

    with open_remote(url) as file:
        return _digest([file])


def _named_in(path: Path) -> list[Path]:
    """Files that a Hamamatsu VMS or VMU index names, which lie beside it."""
    text = path.read_bytes()[: 1 << 20].decode("latin-1")
    names = {name.strip() for name in _VMS_KEYS.findall(text)}
    found = (path.parent / name for name in sorted(names) if name and "/" not in name)
    return [file for file in found if file.is_file()]
