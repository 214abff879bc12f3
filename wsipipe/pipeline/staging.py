"""`--stage DIR`: slides are copied to a local disk before they are read, and removed afterwards."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
from pathlib import Path, PurePosixPath

from wsipipe.errors import SlideOpenError
from wsipipe.slide.files import is_url, slide_files
from wsipipe.store._owner import Owner, this_process

__all__ = ["Stage"]

_NAME = re.compile(r"^\.wsipipe-stage\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<start>\w+)\.\d+$")
_BLOCK = 16 << 20


class Stage:
    """A folder for copies, one sub-folder a slide.

    Args:
        folder: On a fast local disk; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._serial = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_remains()

    def copy(self, path: str) -> tuple[str, Path | None]:
        """Copy all files of a slide.

        Returns:
            The copy's path, and the folder to remove when it is no longer read; the slide itself
            and None where the copy does not fit on the disk.

        Raises:
            SlideOpenError: The slide cannot be read.
        """
        folder = self._folder / f".wsipipe-stage.{this_process()}.{next(self._serial)}"
        try:
            return self._copy_into(folder, path), folder
        except OSError as error:
            self.remove(folder)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return path, None
            raise SlideOpenError(
                path, f"cannot be copied to {self._folder}: {error.strerror or error}"
            ) from error

    @staticmethod
    def remove(folder: Path | None) -> None:
        """Remove a copy."""
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _copy_into(self, folder: Path, path: str) -> str:
        if is_url(path):
            from wsipipe.slide.remote import open_remote

            target = folder / PurePosixPath(path.split("?")[0]).name
            target.parent.mkdir(parents=True)
            with open_remote(path) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)
            return str(target)
        original = Path(path)
        for file in slide_files(original):
            target = folder / file.relative_to(original.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        return str(folder / original.name)

    def _remove_remains(self) -> None:
        """Copies that killed processes of this host have left."""
        for child in self._folder.iterdir():
            match = _NAME.match(child.name)
            if match is None:
                continue
            owner = Owner(match["host"], int(match["pid"]), match["start"])
            if owner.state() == "dead":
                self.remove(child)
