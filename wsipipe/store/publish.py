"""A file appears under its final name only when it is whole.

Bytes go to a temporary name in the same folder, are flushed to the disk, and take the final name
by `rename`, which is atomic; the folder is flushed too. Killed at any point, the process leaves
either nothing, a temporary that the next run removes, or the whole file.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsipipe.errors import OutputError, StoreError
from wsipipe.owner import Owner, this_process
from wsipipe.store._steps import step

__all__ = [
    "LEASE_TTL_S",
    "TemporaryFile",
    "find_temporaries",
    "make_folder",
    "output_error",
    "publish_bytes",
    "publish_file",
    "publish_text",
    "publishing",
    "remove_stale_temporaries",
]

# A lease that was not refreshed for so long belongs to nobody: at least five heartbeats, and
# longer than network file systems cache attributes (60 s). All processes that share a folder must
# agree on it; a site whose nodes are often lost may set it lower, for all of them.
LEASE_TTL_S = float(os.environ.get("WSIPIPE_LEASE_TTL_S", "900"))

_COPY_BYTES = 8 << 20
_serial = itertools.count()
_TEMPORARY = re.compile(
    r"^\.(?P<name>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<start>\w+)\.\d+\.tmp$", re.DOTALL
)


def output_error(path: str | Path, error: OSError) -> StoreError:
    """The error of this package for a failed write to `path`.

    Returns:
        `OutputError` (ends the run: what fails for one file fails for the next), except for a name
        that the file system does not take, which concerns this file alone.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return StoreError(path, f"the file system refuses this name ({reason}).", "Rename it.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free space or choose another --out; the same command then goes on."
        return OutputError(path, f"no space left to write it ({reason}).", remedy)
    remedy = "Check owner, permissions and mount of the output folder; then run again."
    return OutputError(path, f"cannot be written ({reason}).", remedy)


class TemporaryFile:
    """The temporary behind one final name, open for writing. Made by `publishing`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of `data` (any contiguous buffer)."""
        left = memoryview(data).cast("B")
        while left:
            left = left[os.write(self._fd, left) :]

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at byte `offset`; what lies between is zero."""
        left = memoryview(data).cast("B")
        while left:
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        os.ftruncate(self._fd, size)


def _temporary_name(name: str) -> str:
    # A final name may be as long as the file system allows; the temporary's must fit as well.
    short = name.encode(errors="surrogateescape")[:100].decode(errors="ignore")
    return f".{short}.{this_process()}.{next(_serial)}.tmp"


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk, where the file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no fsync for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(fd)


def make_folder(folder: str | Path) -> Path:
    """Make `folder` and its parents, umask respected.

    Raises:
        OutputError: It cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return folder


@contextmanager
def publishing(path: str | Path, *, mode: int = 0o666) -> Iterator[TemporaryFile]:
    """Write a file that appears under `path`, replacing what is there, once the block is left.

    If the block raises, nothing appears and the temporary is removed. Missing folders are made.
    The mode is 0666 (or `mode`) less the umask, so that a group may read what its umask allows.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / _temporary_name(path.name)
    fd = -1
    try:
        step("publish:start")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, mode)
        step("publish:open")
        yield TemporaryFile(temporary, fd)
        step("publish:written")
        os.fsync(fd)
        step("publish:fsync")
        os.close(fd)
        fd = -1
        temporary.replace(path)
        step("publish:rename")
        sync_folder(path.parent)
        step("publish:folder")
    except BaseException as error:
        with suppress(OSError):
            if fd >= 0:
                os.close(fd)
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


def publish_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> Path:
    """Publish `data` as the file `path`; see `publishing`."""
    with publishing(path) as file:
        half = len(data) // 2
        file.write(memoryview(data)[:half])
        step("publish:half")
        file.write(memoryview(data)[half:])
    return Path(path)


def publish_text(path: str | Path, text: str) -> Path:
    """Publish `text` in UTF-8; names that are not text on this machine survive as they are."""
    return publish_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def publish_file(source: str | Path, path: str | Path) -> Path:
    """Publish a copy of the file `source` (on any disk) as `path`; `source` is left as it is."""
    with publishing(path) as file:
        for block in _blocks(Path(source)):
            file.write(block)
    return Path(path)


def _blocks(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as original:
            while block := original.read(_COPY_BYTES):
                yield block
    except OSError as error:
        raise StoreError(source, f"cannot be read ({error.strerror}).") from error


def find_temporaries(folder: str | Path) -> Iterator[tuple[Path, Owner]]:
    """All temporaries below `folder`, with the process that made each."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and (match := _TEMPORARY.match(name)):
                yield Path(root, name), Owner(match["host"], int(match["pid"]), match["start"])


def file_system_now(folder: str | Path) -> float:
    """The time by the clock of the (perhaps remote) file system that holds `folder`.

    A file is touched there and its time read back: ages taken from it compare the server's clock
    with itself, whatever this host's clock says.
    """
    probe = Path(folder) / _temporary_name("clock")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def remove_stale_temporaries(folder: str | Path, *, ttl_s: float = LEASE_TTL_S) -> list[Path]:
    """Remove temporaries that nobody will finish, everywhere below `folder`.

    Those are the ones of dead processes of this host, and other hosts' that have not grown for
    `ttl_s` seconds.

    Returns:
        The paths that were removed.
    """
    removed = []
    now: float | None = None
    for path, owner in find_temporaries(folder):
        state = owner.state()
        if state == "alive":
            continue
        try:
            if state == "elsewhere":
                now = file_system_now(folder) if now is None else now
                if now - path.stat().st_mtime < ttl_s:
                    continue
            path.unlink()
        except (FileNotFoundError, PermissionError):
            continue  # gone already, or another user's
        except OSError as error:
            raise output_error(path, error) from error
        removed.append(path)
    return removed
