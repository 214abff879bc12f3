"""What a file really is, told from its first bytes, so that a refusal can name it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wsipipe.errors import SlideOpenError

__all__ = ["file_kind", "refuse_rubbish"]

_HEAD_BYTES: Final = 4096
_IMAGES: Final = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
)
_OTHERS: Final = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
)


def file_kind(head: bytes) -> str:
    """Kind of a file from its first bytes: "tiff", "dicom", "czi", or a phrase, or "unknown"."""
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"ZISRAWFILE"):
        return "czi"
    for magic, kind in (*_IMAGES, *_OTHERS):
        if head.startswith(magic):
            return kind
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML file"
    if not head.strip(b"\0"):
        return "zero bytes"
    if _is_text(head):
        return "a text file"
    return "unknown"


def refuse_rubbish(path: Path) -> str:
    """Refuse what cannot be a slide whatever its name; return the kind otherwise.

    Raises:
        SlideOpenError: The file is empty, a pointer, a page, an archive or an image under the name
            of a slide, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise SlideOpenError(path, "the file is empty (0 bytes)", "Copy the slide again.")
    suffix = path.suffix.lower()
    if suffix in (".mrxs", ".vms", ".vmu"):  # an image or a text file by design
        return "unknown"
    kind = file_kind(head)
    if kind in ("tiff", "dicom", "czi", "unknown"):
        return kind
    if kind == "a Git LFS pointer":
        raise SlideOpenError(
            path, "the file is a Git LFS pointer, not the slide itself", "Run `git lfs pull`."
        )
    if kind == "zero bytes":
        raise SlideOpenError(
            path, "the file begins with nothing but zero bytes", "Copy the slide again."
        )
    if kind in {name for _, name in _IMAGES}:
        raise SlideOpenError(
            path,
            f"the file is {kind} under the name of a slide",
            "Give it its own suffix (.png, .jpg) and name it, or leave it out.",
        )
    raise SlideOpenError(path, f"the file is {kind}, not a slide")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut at the end of what was read.
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(c.isprintable() or c in "\t\r\n\f" for c in text)
