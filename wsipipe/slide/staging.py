"""Local copies of slides on slow storage: bounded, and only ours to delete.

with Stage("/scratch", max_bytes=200 * 2**30) as stage:
    local = stage.fetch(path)      # a thread that prepares the next slides calls this
    ...
    stage.release(path)            # its copy may go
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from wsipipe.errors import OutputError, SlideOpenError
from wsipipe.owner import Owner, this_process
from wsipipe.slide.files import is_url, slide_files
from wsipipe.slide.remote import RemoteSource, copy_remote

__all__ = ["Stage"]

_LOG = logging.getLogger(__name__)
_PREFIX: Final = "wsipipe-stage-"
_DEFAULT_BYTES: Final = 64 * 2**30


@dataclass(slots=True)
class _Copy:
    """A slide's copy: its own folder, what to open, what it takes, and how many hold it."""

    folder: Path
    local: str
    size: int
    holders: int = 1


class Stage:
    """Copies slides to a folder of its own below `folder`.

    A slide that does not fit, or whose copy fails, is read from where it lies: staging never makes
    a run fail. Everything it made is deleted by `close`; nothing else ever is.

    Args:
        folder: Fast local disk; a fresh subfolder is made in it.
        max_bytes: Most that all copies together may take.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = _DEFAULT_BYTES) -> None:
        where = Path(folder)
        try:
            where.mkdir(parents=True, exist_ok=True)
            _remove_orphans(where)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{this_process()}-", dir=where))
        except OSError as error:
            raise OutputError(
                where, f"cannot be written ({error.strerror})", "Choose another --stage folder."
            ) from error
        self._max_bytes = max_bytes
        self._copies: dict[str, _Copy] = {}
        self._number = 0
        self._used = 0
        self._lock = threading.Lock()
        # One copier: slow storage gets slower when it is asked for two slides at once.
        self._copier = threading.Lock()

    def fetch(self, path: str | os.PathLike[str]) -> str:
        """The local copy of a slide, ready to open; `path` itself where it cannot be staged.

        Each fetch is answered by one `release`.
        """
        text = os.fspath(path)
        with self._copier:
            with self._lock:
                known = self._copies.get(text)
                if known is not None:
                    known.holders += 1
                    return known.local
            copy = self._copied(text)
            if copy is None:
                return text
            with self._lock:
                self._copies[text] = copy
            return copy.local

    def release(self, path: str | os.PathLike[str]) -> None:
        """A fetched slide is no longer read: its copy is deleted."""
        text = os.fspath(path)
        with self._lock:
            copy = self._copies.get(text)
            if copy is None:
                return
            copy.holders -= 1
            if copy.holders > 0:
                return
            del self._copies[text]
        self._delete(copy.folder, copy.size)

    def close(self) -> None:
        """Delete every copy."""
        with self._copier, self._lock:
            self._copies.clear()
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _copied(self, path: str) -> _Copy | None:
        """A new copy, or None: too large for what is left, or it cannot be copied."""
        try:
            size = _size(path)
        except (OSError, SlideOpenError):
            return None
        with self._lock:
            if self._used + size > self._max_bytes:
                return None
            self._used += size
        self._number += 1
        folder = self.folder / f"{self._number}"
        try:
            folder.mkdir()
            return _Copy(folder, _copy_slide(path, folder), size)
        # Clients of remote storage have errors of their own. Reading the slide from where it lies
        # will say what is wrong with it, if anything is.
        except Exception as error:  # noqa: BLE001
            _LOG.warning("%s is read from where it lies: it could not be staged: %s", path, error)
            self._delete(folder, size)
            return None

    def _delete(self, folder: Path, size: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._used -= size


def _remove_orphans(folder: Path) -> None:
    """Delete what processes of this host left behind when they were killed.

    Containers share a disk and a host's name, but not its pids: an owner knows that.
    """
    for left in folder.glob(f"{_PREFIX}*"):
        host, _, rest = left.name.removeprefix(_PREFIX).rpartition("-")[0].partition(".")
        pid, _, start = rest.partition(".")
        if not pid.isdecimal() or left.is_symlink() or not left.is_dir():
            continue
        if Owner(host, int(pid), start).state() == "dead":
            shutil.rmtree(left, ignore_errors=True)


def _size(path: str) -> int:
    if is_url(path):
        return RemoteSource(path).size
    return sum(file.stat().st_size for file in slide_files(Path(path)))


def _copy_slide(path: str, folder: Path) -> str:
    """Copy all files of a slide and return what to open. Names stay, as formats refer to them."""
    if is_url(path):
        name = path.split("?")[0].rstrip("/").rpartition("/")[2] or "slide"
        copy_remote(path, folder / name)
        return str(folder / name)
    where = Path(path)
    base = where if where.is_dir() else where.parent
    top = folder / base.name if where.is_dir() else folder
    for file in slide_files(where):
        target = top / file.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return str(top if where.is_dir() else top / where.name)
