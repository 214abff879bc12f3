"""Disk, shared memory, file locks, open files."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wsipipe.doctor.finding import Finding, human_bytes

_GROUP = "storage"
# A slide of 15,000 tiles x 1,024 float16 takes 31 MB; a run of a few hundred slides some GB.
_LITTLE_DISK, _NO_DISK = 10e9, 100e6
_LITTLE_SHM = 1e9
_FEW_FILES = 512


def output(out: Path) -> Iterator[Finding]:
    """The folder for results can be written, and has room."""
    name = "output"
    folder = nearest_folder(out)
    if out.exists() and not out.is_dir():
        yield Finding(_GROUP, name, "broken", f"{out} is a file", "Choose another --out.")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".wsipipe-doctor-", dir=folder) as inside:
            first, second = Path(inside) / "a", Path(inside) / "b"
            with first.open("wb") as handle:
                handle.write(b"wsipipe")
                handle.flush()
                os.fsync(handle.fileno())
            first.replace(second)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = (
            "Free some space, or choose another --out."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Choose an --out that you may write to."
        )
        yield Finding(_GROUP, name, "broken", f"{folder} cannot be written: {reason}", remedy)
        return
    detail = f"{folder}: writable, {human_bytes(free)} free"
    if free < _NO_DISK:
        yield Finding(_GROUP, name, "broken", detail, "Free some space, or choose another --out.")
    elif free < _LITTLE_DISK:
        yield Finding(
            _GROUP, name, "warning", detail,
            "`wsipipe inspect SLIDES` says how many bytes a run will take.",
        )  # fmt: skip
    else:
        yield Finding(_GROUP, name, "good", detail)


def locking(out: Path) -> Iterator[Finding]:
    """HDF5 files can be opened where the results go; some network disks refuse its locks."""
    name = "HDF5 locking"
    try:
        import h5py
    except (ImportError, OSError) as error:
        yield Finding(
            _GROUP, "HDF5", "broken", f"h5py does not load: {error}", "pip install --upgrade h5py"
        )
        return
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    try:
        with tempfile.TemporaryDirectory(
            prefix=".wsipipe-doctor-", dir=nearest_folder(out)
        ) as inside:
            path = Path(inside) / "lock.h5"
            try:
                with h5py.File(path, "w", locking=True) as file:
                    file["x"] = 1
                with h5py.File(path, "r", locking=True) as file:
                    right = int(file["x"][()]) == 1
            except OSError as error:
                yield Finding(
                    _GROUP, name, "warning", f"this disk refuses file locks ({error})",
                    "export HDF5_USE_FILE_LOCKING=FALSE",
                )  # fmt: skip
                return
    except OSError:
        # The folder cannot be written, which is reported as such.
        return
    detail = f"works, HDF5 {h5py.version.hdf5_version}"
    if setting:
        detail += f", HDF5_USE_FILE_LOCKING={setting}"
    if right:
        yield Finding(_GROUP, name, "good", detail)
    else:
        yield Finding(_GROUP, name, "broken", "read back wrong", "pip install --upgrade h5py")


def shared_memory(shm: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room for tensors that processes hand to each other (`pretrain`)."""
    if not sys.platform.startswith("linux"):
        return
    try:
        size = shutil.disk_usage(shm).total
    except OSError as error:
        yield Finding(
            _GROUP, str(shm), "warning", f"is not there ({error.strerror})",
            "In a container: --shm-size=8g. Only `wsipipe pretrain` needs it.",
        )  # fmt: skip
        return
    if size < _LITTLE_SHM:
        yield Finding(
            _GROUP, str(shm), "warning", f"{human_bytes(size)} is little",
            "In a container: --shm-size=8g, or --ipc=host. Only `wsipipe pretrain` needs it.",
        )  # fmt: skip
    else:
        yield Finding(_GROUP, str(shm), "good", human_bytes(size))


def open_files() -> Iterator[Finding]:
    """How many files a process may hold open."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    if not unlimited and soft < _FEW_FILES:
        can = "" if hard == resource.RLIM_INFINITY else f" (up to {hard} without root)"
        yield Finding(_GROUP, "open files", "warning", f"{soft} a process", f"ulimit -n 4096{can}")
    else:
        yield Finding(_GROUP, "open files", "good", "unlimited" if unlimited else f"{soft}")


def nearest_folder(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    for folder in (path, *path.parents):
        if folder.is_dir():
            return folder
    return Path.cwd()
