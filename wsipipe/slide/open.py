"""Which reader opens what, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from wsipipe.errors import ConfigError, SlideOpenError
from wsipipe.slide.classify import refuse_rubbish
from wsipipe.slide.files import check_is_file, dicom_files, is_url
from wsipipe.slide.reader import Reader
from wsipipe.slide.slide import Slide

__all__ = ["READERS", "open_slide"]

READERS: Final = ("tiff", "openslide", "dicom", "tiffslide", "zarr", "image")
_FLAT: Final = {".png", ".jpg", ".jpeg", ".bmp"}
# What OpenSlide calls the formats that the direct reader has proved itself on (None: not its own).
_DIRECT_FORMATS: Final = {None, "aperio", "generic-tiff"}
_OwnReader = tuple[Reader, str, Callable[[], Reader | None] | None]


def open_slide(
    path: str | Path, *, mpp: float | None = None, reader: str | None = None, icc: str = "none"
) -> Slide:
    """Open a slide.

    Args:
        path: A file, the folder of a DICOM series or OME-Zarr, or a URL that fsspec opens.
        mpp: µm per level-0 pixel, if the slide has none or a wrong one; wins over the file's.
        reader: Insist on one reader instead of the one that fits best.
        icc: "srgb" applies the embedded colour profile; "none" leaves pixels as they are.

    Raises:
        SlideOpenError: No reader can use the file; the message says what the file is.
        ConfigError: `reader`, `icc` or `mpp` is not a valid choice.
        MissingExtraError: The format needs an optional package.
    """
    if reader is not None and reader not in READERS:
        raise ConfigError(f"Unknown reader {reader!r}.", f"Choose one of {', '.join(READERS)}.")
    if icc not in ("none", "srgb"):
        raise ConfigError(f"Unknown colour handling {icc!r}.", "Choose 'none' or 'srgb'.")
    opened, reason, second = _choose(path) if reader is None else _insisted(path, reader)
    try:
        return Slide(path, opened, mpp=mpp, reader_reason=reason, second=second, icc=icc)
    except BaseException:
        opened.close()
        raise


def _choose(path: str | Path) -> _OwnReader:
    if isinstance(path, str) and is_url(path):
        return _remote(path)
    where = _existing(path)
    if where.is_dir():
        if where.suffix.lower() == ".zarr" or (where / ".zattrs").exists():
            return _insisted(path, "zarr")
        return _dicom(_series_file(where))
    if where.suffix.lower() in _FLAT:
        return _insisted(path, "image")
    kind = refuse_rubbish(where)
    if kind == "tiff":
        return _tiff(where)
    if kind == "dicom":
        return _dicom(where)
    return _openslide(where, "the direct reader knows TIFF only")


def _insisted(path: str | Path, name: str) -> _OwnReader:
    """Just the named reader, without a second one."""
    if name == "tiffslide":
        from wsipipe.slide.tiffslide_reader import TiffSlideReader

        return TiffSlideReader(path), "asked for", None
    if isinstance(path, str) and is_url(path):
        if name == "tiff":
            return _remote(path)
        raise SlideOpenError(path, f"the reader {name!r} reads local files", "Copy it first.")
    where = _existing(path)
    if name == "zarr":
        from wsipipe.slide.zarr_reader import ZarrReader

        return ZarrReader(where), "", None
    if where.is_dir():
        where = _series_file(where)
    if name == "image":
        from wsipipe.slide.image_reader import ImageReader

        return ImageReader(where), "", None
    refuse_rubbish(where)
    if name == "tiff":
        from wsipipe.slide.tiff_index import NotDirect
        from wsipipe.slide.tiff_reader import TiffReader

        try:
            return TiffReader(where), "asked for", None
        except NotDirect as why:
            raise SlideOpenError(path, f"the direct reader does not read it: {why}") from why
    if name == "dicom":
        from wsipipe.slide.dicom_index import NotDirectDicom
        from wsipipe.slide.dicom_reader import DicomReader

        try:
            return DicomReader(where), "asked for", None
        except NotDirectDicom as other:
            raise SlideOpenError(path, f"the DICOM reader does not read it: {other}") from other
    return _openslide(where, "asked for")


def _remote(url: str) -> _OwnReader:
    """A TIFF by ranged requests; through tiffslide where the direct reader leaves it alone."""
    from wsipipe.slide.tiff_index import NotDirect
    from wsipipe.slide.tiff_reader import TiffReader
    from wsipipe.slide.tiffslide_reader import TiffSlideReader

    try:
        return TiffReader(url), "remote, by ranged requests", None
    except NotDirect as why:
        return TiffSlideReader(url), str(why), None


def _existing(path: str | Path) -> Path:
    where = Path(path)
    try:
        if not where.exists():
            link = where.is_symlink()
            problem = "a symbolic link to nothing" if link else "the file does not exist"
            raise SlideOpenError(path, problem, "Check the path.")
        check_is_file(where)
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read: {error.strerror or error}") from error
    return where


def _series_file(folder: Path) -> Path:
    series = dicom_files(folder)
    if not series:
        raise SlideOpenError(
            folder, "a folder that is neither one DICOM series nor an OME-Zarr image"
        )
    return series[0]


def _tiff(where: Path) -> _OwnReader:
    import openslide

    from wsipipe.slide.tiff_index import NotDirect
    from wsipipe.slide.tiff_reader import TiffReader, check_whole

    vendor = openslide.OpenSlide.detect_format(where)
    if vendor not in _DIRECT_FORMATS:
        if vendor != "hamamatsu":  # NDPI has its own 64-bit offsets in a 32-bit file
            check_whole(where)
        if vendor == "philips":
            return _philips(where)
        return _openslide(where, f"{vendor} files are read through OpenSlide")
    try:
        reader = TiffReader(where)
    except NotDirect as why:
        return _openslide(where, str(why))

    return reader, "", _second_opinion(where)


def _philips(where: Path) -> _OwnReader:
    """Levels as OpenSlide makes them out, tiles by the direct reader."""
    from wsipipe.slide.openslide_reader import OpenSlideReader
    from wsipipe.slide.tiff_index import NotDirect
    from wsipipe.slide.tiff_reader import TiffReader

    other = OpenSlideReader(where)
    try:
        reader = TiffReader(where, other.info)
    except NotDirect as why:
        return other, str(why), None
    except BaseException:
        other.close()
        raise
    other.close()
    return reader, "", _second_opinion(where)


def _second_opinion(where: Path) -> Callable[[], Reader | None]:
    """Opens OpenSlide when a block first fails; None where it cannot."""

    def second() -> Reader | None:
        from wsipipe.slide.openslide_reader import OpenSlideReader

        try:
            return OpenSlideReader(where)
        except SlideOpenError:
            return None

    return second


def _openslide(where: Path, reason: str) -> _OwnReader:
    from wsipipe.slide.openslide_reader import OpenSlideReader

    return OpenSlideReader(where), reason, None


def _dicom(where: Path) -> _OwnReader:
    from wsipipe.slide.dicom_index import NotDirectDicom
    from wsipipe.slide.dicom_reader import DicomReader

    try:
        reader = DicomReader(where)
    except NotDirectDicom as why:
        return _other_dicom(where, str(why))
    return reader, "", _second_opinion(where)


def _other_dicom(where: Path, reason: str) -> _OwnReader:
    """OpenSlide, and wsidicom where that refuses the series."""
    from wsipipe.slide.wsidicom_reader import WsiDicomReader

    try:
        return _openslide(where, reason)
    except SlideOpenError as error:
        also = f"{reason}; OpenSlide: {error.reason}"
    return WsiDicomReader(where, dicom_files(where) or [where]), also, None
