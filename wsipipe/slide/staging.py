"""Local copies of slides on slow storage: bounded, made ahead, and only ours to delete.

stage = Stage("/scratch", max_bytes=200 * 2**30)
stage.prefetch(next_path)          # copied by a thread while this slide runs
local = stage.fetch(path)          # waits until it is there
...
stage.release(path)                # its copy may go
stage.close()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from wsipipe.errors import OutputError, SlideOpenError
from wsipipe.slide.files import is_url, slide_files
from wsipipe.slide.remote import RemoteSource, copy_remote

__all__ = ["Stage"]

_PREFIX: Final = "wsipipe-stage-"
_DEFAULT_BYTES: Final = 64 * 2**30


@dataclass(slots=True)
class _Copy:
    """A slide's copy: its own folder, what it takes, and how many hold it."""

    folder: Path
    size: int
    done: Future[str] = field(default_factory=Future)
    holders: int = 0


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
            prefix = f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-"
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
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
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wsipipe-stage")

    def prefetch(self, path: str | os.PathLike[str]) -> None:
        """Begin to copy a slide, if there is room. Returns at once."""
        self._begin(os.fspath(path))

    def fetch(self, path: str | os.PathLike[str]) -> str:
        """The local copy of a slide, ready to open; `path` itself where it cannot be staged.

        Each fetch is answered by one `release`.
        """
        text = os.fspath(path)
        copy = self._begin(text, hold=True)
        if copy is None:
            return text
        try:
            return copy.done.result()
        except (OSError, SlideOpenError):
            # Reading from where it lies will say what is wrong with the slide, if anything is.
            self.release(text)
            return text

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
        self._delete(copy)

    def close(self) -> None:
        """Stop copying and delete every copy."""
        with self._lock:
            copies, self._copies = list(self._copies.values()), {}
        for copy in copies:
            copy.done.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
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

    def _begin(self, path: str, *, hold: bool = False) -> _Copy | None:
        with self._lock:
            copy = self._copies.get(path)
            if copy is not None:
                copy.holders += hold
                return copy
        try:
            size = _size(path)
        except (OSError, SlideOpenError):
            return None
        with self._lock:
            copy = self._copies.get(path)
            if copy is None:
                # What was copied ahead and is not read yet makes room for what is read now.
                if hold and self._used + size > self._max_bytes:
                    self._drop_waiting()
                if self._used + size > self._max_bytes:
                    return None
                self._number += 1
                copy = _Copy(self.folder / f"{self._number}", size)
                self._used += size
                self._copies[path] = copy
                self._pool.submit(self._copy, path, copy)
            copy.holders += hold
        return copy

    def _drop_waiting(self) -> None:
        for path, copy in list(self._copies.items()):
            if copy.holders == 0 and copy.done.done():
                del self._copies[path]
                shutil.rmtree(copy.folder, ignore_errors=True)
                self._used -= copy.size

    def _copy(self, path: str, copy: _Copy) -> None:
        if not copy.done.set_running_or_notify_cancel():
            return
        try:
            copy.folder.mkdir()
            copy.done.set_result(_copy_slide(path, copy.folder))
        except (OSError, SlideOpenError) as error:
            shutil.rmtree(copy.folder, ignore_errors=True)
            copy.done.set_exception(error)
        finally:
            # Whatever a storage library raises, nobody waits for ever.
            if not copy.done.done():
                shutil.rmtree(copy.folder, ignore_errors=True)
                copy.done.set_exception(SlideOpenError(path, "it could not be copied"))

    def _delete(self, copy: _Copy) -> None:
        if not copy.done.cancel():
            with contextlib.suppress(OSError, SlideOpenError):
                copy.done.result()
        shutil.rmtree(copy.folder, ignore_errors=True)
        with self._lock:
            self._used -= copy.size


def _remove_orphans(folder: Path) -> None:
    """Delete what processes of this host left behind when they were killed."""
    prefix = f"{_PREFIX}{socket.gethostname()}-"
    for left in folder.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if left.is_dir() and not left.is_symlink() and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
