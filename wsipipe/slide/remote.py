"""Slides that are not on a disk: whatever fsspec opens (s3://, https://, ...).

A remote TIFF is read by the direct reader itself, one ranged request a compressed tile; threads
overlap the waiting. Other formats have to be copied first (`--stage DIR`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from wsipipe.errors import MissingExtraError, SlideOpenError

__all__ = ["RemoteSource", "copy_remote", "open_remote"]


class RemoteSource:
    """Ranged reads of one object, safe from many threads.

    Attributes:
        size: Bytes of the object.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._system, self._name = _file_system(url)
        try:
            size = self._system.info(self._name).get("size")
        except _failures() as error:
            raise _unreachable(url, error) from error
        if size is None:
            raise SlideOpenError(url, "the server does not say how large it is", "Copy it first.")
        self.size = int(size)

    def pread(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset`.

        Raises:
            OSError: The request failed.
        """
        if count == 0:
            return b""
        try:
            return bytes(self._system.cat_file(self._name, start=offset, end=offset + count))
        except _failures() as error:
            raise OSError(f"{self._url}: {error}") from error

    def close(self) -> None:
        """Nothing is held."""


def open_remote(url: str) -> BinaryIO:
    """A seekable file over ranged requests.

    Raises:
        MissingExtraError: fsspec, or the package behind the protocol, is not installed.
        SlideOpenError: The object cannot be opened.
    """
    system, name = _file_system(url)
    try:
        return cast(BinaryIO, system.open(name, "rb"))
    except _failures() as error:
        raise _unreachable(url, error) from error


def copy_remote(url: str, to: Path) -> None:
    """Copy an object to a local file.

    Raises:
        MissingExtraError: fsspec, or the package behind the protocol, is not installed.
        SlideOpenError: The object cannot be read.
    """
    system, name = _file_system(url)
    try:
        system.get_file(name, str(to))
    except _failures() as error:
        raise _unreachable(url, error) from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("s3", f"Opening {url}", ["fsspec"]) from error
    try:
        system, name = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError("s3", f"Opening {url}", [str(error.name or error)]) from error
    except ValueError as error:
        raise SlideOpenError(url, f"unknown kind of address ({error})", "Check it.") from error
    return system, str(name)


def _failures() -> tuple[type[BaseException], ...]:
    """What protocols raise; the network libraries have trees of their own."""
    found: list[type[BaseException]] = [OSError, ValueError, RuntimeError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError:
            continue
    return tuple(found)


def _unreachable(url: str, error: BaseException) -> SlideOpenError:
    return SlideOpenError(
        url, f"cannot be opened: {error}", "Check the address, the network and the credentials."
    )
