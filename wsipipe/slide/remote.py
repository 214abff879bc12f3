"""Slides that are not on a disk: whatever fsspec opens (s3://, https://, ...)."""

from __future__ import annotations

from typing import BinaryIO, cast

from wsipipe.errors import MissingExtraError, SlideOpenError

__all__ = ["open_remote"]


def open_remote(url: str) -> BinaryIO:
    """A seekable file over ranged requests.

    Raises:
        MissingExtraError: fsspec, or the package behind the protocol, is not installed.
        SlideOpenError: The object cannot be opened.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("s3", f"Opening {url}", ["fsspec"]) from error
    try:
        return cast(BinaryIO, fsspec.open(url, "rb").open())
    except ImportError as error:
        raise MissingExtraError("s3", f"Opening {url}", [str(error.name or error)]) from error
    except (OSError, ValueError) as error:
        raise SlideOpenError(url, f"cannot be opened: {error}", "Check the address.") from error
