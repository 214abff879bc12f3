"""Slides from what a user names: files, folders, a manifest, URLs. Ids are settled before work."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from wsipipe.errors import ConfigError
from wsipipe.slide.dicom_file import series_uid
from wsipipe.slide.files import is_there, is_url
from wsipipe.slide.mpp import check_user_mpp

__all__ = ["SLIDE_SUFFIXES", "SlideEntry", "find_slides"]

# Longer ones first: "x.ome.tiff" loses both parts.
SLIDE_SUFFIXES: Final = (
    ".ome.tiff", ".ome.tif", ".svslide", ".tiff", ".tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif",
    ".vms", ".vmu", ".czi", ".dcm", ".zarr",
)  # fmt: skip
# A file name has 255 bytes on most systems, and ".geojson" is the longest suffix of an output.
_MAX_ID_BYTES: Final = 255 - len(".geojson")
_FLAT_SUFFIXES: Final = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """One slide of a run.

    Attributes:
        slide_id: Name of its outputs; "/" are folders.
        path: File, folder (DICOM series, zarr) or URL, as text.
        mpp: µm per level-0 pixel from the manifest, or None.
        given_id: The id before a pseudonym took its place; "" where none did.
    """

    slide_id: str
    path: str
    mpp: float | None = None
    given_id: str = ""


def find_slides(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[SlideEntry]:
    """Find the slides that `inputs` name, in a fixed order.

    Args:
        inputs: Files, folders, manifests (.csv with a column `path`, optional `slide_id`, `mpp`)
            and URLs. Folders are searched through for the known suffixes; dot files and symbolic
            loops are passed over; PNG and JPEG count only when named.

    Raises:
        ConfigError: Nothing is there, a manifest is wrong, or two ids are equal but for case.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    entries: list[SlideEntry] = []
    for given in inputs:
        text = os.fspath(given)
        if not text:  # the value of a shell variable that is not set; "." is meant by nobody
            raise ConfigError("The name of a slide is empty.", "Name a file, a folder or a URL.")
        if is_url(text):
            entries.append(SlideEntry(_base_id(text.split("?")[0].rstrip("/")), text))
        else:
            entries.extend(_from_path(Path(text)))
    if not entries:
        raise ConfigError("No slides were named.", "Name slide files, folders or a manifest.csv.")
    return _unique(entries)


def _from_path(path: Path) -> Iterable[SlideEntry]:
    try:
        is_folder = path.is_dir()
        if not path.exists() and not path.is_symlink():
            raise ConfigError(f"{path}: no such file or folder.", "Check the path.")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}).", "Check the path and its permissions."
        ) from error
    if is_folder and not _is_zarr(path):
        found = list(_from_folder(path))
        if not found:
            raise ConfigError(
                f"{path}: no slides in this folder.",
                f"Slides have one of the suffixes {', '.join(sorted(SLIDE_SUFFIXES))}; "
                "PNG and JPEG images are taken when they are named.",
            )
        return found
    if path.suffix.lower() == ".csv":
        return _from_manifest(path)
    return [SlideEntry(_base_id(path.name), str(path))]


def _from_folder(root: Path) -> Iterator[SlideEntry]:
    for folder, names in _walk(root):
        dicom, found = [], []
        for name in names:
            path = folder / name
            if path.suffix.lower() == ".dcm":
                dicom.append(path)
            else:
                found.append(SlideEntry(_strip(path.relative_to(root).as_posix()), str(path)))
        found.extend(_series(root, folder, dicom, alone=len(dicom) == len(names)))
        yield from sorted(found, key=lambda entry: entry.path)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders in sorted order with the slides in each; loops and dot names left out."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = folder.stat()
            children = sorted(folder.iterdir(), key=lambda p: p.name)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be listed ({error.strerror}).", "Check its permissions."
            ) from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        names, folders = [], []
        mirax = {p.stem.casefold() for p in children if p.suffix.lower() == ".mrxs"}
        for child in children:
            if child.name.startswith("."):
                continue
            if child.is_dir():
                if _is_zarr(child):
                    names.append(child.name)
                elif child.name.casefold() not in mirax:
                    folders.append(child)
            elif child.name.lower().endswith(SLIDE_SUFFIXES):
                names.append(child.name)
        yield folder, names
        waiting.extend((child, above | {here}) for child in reversed(folders))


def _series(root: Path, folder: Path, files: list[Path], *, alone: bool) -> Iterator[SlideEntry]:
    """One entry a DICOM series. A folder that holds just one series is that slide."""
    series: dict[str, list[Path]] = {}
    for path in files:
        series.setdefault(series_uid(path) or str(path), []).append(path)
    for members in series.values():
        if alone and len(series) == 1 and len(members) > 1:
            below = folder.relative_to(root).as_posix()
            slide_id = _writable(folder.resolve().name if below == "." else below)
            yield SlideEntry(slide_id, str(folder))
        else:
            first = members[0]
            yield SlideEntry(_strip(first.relative_to(root).as_posix()), str(first))


def _from_manifest(manifest: Path) -> list[SlideEntry]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{manifest}: cannot be read as CSV ({error}).", "") from error
    if "path" not in columns:
        raise ConfigError(
            f"{manifest}: a manifest needs a column 'path'; it has {', '.join(columns) or 'none'}.",
            "Optional columns are 'slide_id' and 'mpp'.",
        )
    for name in ("path", "slide_id", "mpp"):
        if columns.count(name) > 1:
            raise ConfigError(f"{manifest}: several columns {name!r}.", "Leave one of them.")
    if not rows:
        raise ConfigError(f"{manifest}: no slides in this manifest.", "Add a line a slide.")
    return [_manifest_row(manifest, line, row) for line, row in rows]


def _manifest_row(manifest: Path, line: int, row: dict[str, str | None]) -> SlideEntry:
    place = f"{manifest}, line {line}"
    text = (row.get("path") or "").strip()
    if not text:
        raise ConfigError(f"{place}: no path.", "Fill the column 'path'.")
    if is_url(text):
        path = text
    else:
        # Beside the manifest first, as it travels with its slides; then where the user stands.
        beside = manifest.parent / text
        path = str(beside if is_there(beside) or not is_there(Path(text)) else Path(text))
    said_mpp = (row.get("mpp") or "").strip()
    mpp: float | None = None
    if said_mpp:
        try:
            mpp = float(check_user_mpp(said_mpp))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error.problem}", error.remedy) from error
    slide_id = (row.get("slide_id") or "").strip()
    if slide_id:
        _check_id(slide_id, place)
    else:
        slide_id = _base_id(text.rstrip("/"))
    return SlideEntry(slide_id, path, mpp)


def _check_id(slide_id: str, place: str) -> None:
    """Ids become file names below the output folder and must stay there."""
    parts = slide_id.split("/")
    if slide_id != _writable(slide_id) or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(
            f"{place}: {slide_id!r} cannot be a slide id.",
            "Use names without control characters and without empty, '.' or '..' parts between "
            "slashes.",
        )


def _unique(entries: list[SlideEntry]) -> list[SlideEntry]:
    kept: dict[str, SlideEntry] = {}
    for entry in entries:
        for part in entry.slide_id.split("/"):
            if len(part.encode(errors="surrogateescape")) > _MAX_ID_BYTES:
                raise ConfigError(
                    f"{entry.path}: an id of more than {_MAX_ID_BYTES} bytes makes no file name: "
                    f"{part[:40]}...",
                    "Give it a shorter one in a manifest with a column 'slide_id'.",
                )
        # File systems that fold case or normalise Unicode would make one file of both.
        key = unicodedata.normalize("NFC", entry.slide_id).casefold()
        other = kept.setdefault(key, entry)
        if (entry.slide_id, entry.path) != (other.slide_id, other.path):
            raise ConfigError(
                f"Two slides would have the id {other.slide_id!r}: {other.path} and {entry.path}.",
                "Give them different ids in a manifest with a column 'slide_id', or rename one.",
            )
        if entry.mpp is None:
            continue
        # A slide named twice: what the user says of it holds, wherever it is said.
        if other.mpp is None:
            kept[key] = entry
        elif entry.mpp != other.mpp:
            raise ConfigError(
                f"{entry.path} is given the mpp {other.mpp:g} and {entry.mpp:g}.",
                "Leave one of the two rows out.",
            )
    return list(kept.values())


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" and path.is_dir()


def _base_id(text: str) -> str:
    return _strip(PurePosixPath(text).name)


def _strip(name: str) -> str:
    """One known suffix less, unless nothing would be left of the base name."""
    name = _writable(name)
    lower = name.lower()
    for suffix in (*SLIDE_SUFFIXES, *_FLAT_SUFFIXES):
        if lower.endswith(suffix) and len(PurePosixPath(name).name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _writable(name: str) -> str:
    """`name` as an id that every table, log and HDF5 attribute can hold.

    Bytes that are no UTF-8 (old archives) and control characters (a line break forges lines of a
    table) become %XX, as in a URL; "%" itself stays as it is.

    >>> _writable("caf\udce9 1")
    'caf%E9 1'
    """
    return "".join(
        letter
        if letter.isprintable()
        else "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if unicodedata.category(letter) in ("Cs", "Cc", "Zl", "Zp")
        else letter
        for letter in name
    )
