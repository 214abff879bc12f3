"""Events of a run, one JSON object a line, and the record of its settings."""

from __future__ import annotations

import datetime
import json
import os
import platform
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml

from wsipipe import __version__
from wsipipe.owner import this_process
from wsipipe.store.names import TextFilter
from wsipipe.store.publish import make_folder, output_error, publish_text

__all__ = ["EventLog", "utc_now", "write_run_yaml"]

_VERSIONED = (
    "torch",
    "timm",
    "numpy",
    "h5py",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "shapely",
    "scikit-image",
    "opencv-python-headless",
    "huggingface-hub",
)


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the millisecond."""
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any, clean: Callable[[str], str] = str) -> Any:
    """`value` as JSON and YAML take it; every text passes `clean`."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item(), clean)
    if isinstance(value, str | Path | os.PathLike):
        return clean(os.fspath(value))
    if isinstance(value, Mapping):
        return {clean(str(k)): plain(v, clean) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(v, clean) for v in value]
    return clean(str(value))


class EventLog:
    """`events/<host>-<pid>.jsonl` of one process; thread-safe.

    Every line is written by one call in append mode, so lines of threads never mix and a killed
    process leaves at most its last line cut.

    Args:
        out: Folder of the run.
        texts: What is logged passes it.

    Raises:
        OutputError: The file cannot be made.
    """

    def __init__(self, out: str | Path, *, texts: TextFilter | None = None) -> None:
        owner = this_process()
        self.path = make_folder(Path(out) / "events") / f"{owner.host}-{owner.pid}.jsonl"
        self._texts = texts or TextFilter()
        self._lock = threading.Lock()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise output_error(self.path, error) from error

    def log(self, event: str, **fields: Any) -> None:
        """Write one event, for instance `log("slide_done", slide_id=..., tiles=..., seconds=...)`.

        Raises:
            OutputError: The disk is full.
        """
        clean = self._texts.about(fields.get("slide_id"))
        entry = {"time": utc_now(), "event": event, **plain(fields, clean)}
        text = json.dumps(entry, ensure_ascii=False)
        line = text.encode("utf-8", errors="backslashreplace") + b"\n"
        with self._lock:
            if self._fd < 0:
                return
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError as error:
                raise output_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; later events are dropped."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def versions() -> dict[str, str]:
    """Versions of this package, Python, the system, and the libraries that touch the numbers."""
    found = {"wsipipe": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "platform": platform.platform()}


def write_run_yaml(
    out: str | Path, settings: Mapping[str, Any], *, texts: TextFilter | None = None, **facts: Any
) -> Path:
    """Publish `run.yaml`: what the latest run was asked for, and with which versions.

    Args:
        out: Folder of the run.
        settings: Resolved settings.
        texts: What is written passes it.
        facts: Further sections, for instance `device=` or `encoders=`.
    """
    clean = texts or TextFilter()
    content = {
        "written_utc": utc_now(),
        "settings": plain(settings, clean),
        **{name: plain(value, clean) for name, value in facts.items()},
        "versions": versions(),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return publish_text(Path(out) / "run.yaml", text)
