"""Which reader opens what, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wsipipe.errors import ConfigError, SlideOpenError
from wsipipe.slide.classify import refuse_rubbish
from wsipipe.slide.files import dicom_files
from wsipipe.slide.slide import Slide

__all__ = ["READERS", "open_slide"]

READERS: Final = ("tiff", "openslide", "dicom", "tiffslide", "zarr", "image")
_FLAT: Final = {".png", ".jpg", ".jpeg", ".bmp"}


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
    where = Path(path)
    if not where.exists():
        dangling = "a symbolic link to nothing" if where.is_symlink() else "the file does not exist"
        raise SlideOpenError(path, dangling, "Check the path.")
    if reader == "image" or (reader is None and where.suffix.lower() in _FLAT):
        from wsipipe.slide.image_reader import ImageReader

        return Slide(path, ImageReader(where), mpp=mpp)
    from wsipipe.slide.openslide_reader import OpenSlideReader

    if where.is_dir():
        series = dicom_files(where)
        if not series:
            raise SlideOpenError(
                path, "a folder that is neither one DICOM series nor an OME-Zarr image"
            )
        where = series[0]
    else:
        refuse_rubbish(where)
    return Slide(path, OpenSlideReader(where), mpp=mpp)
