"""`--profile`: what every thread did and waited for, as trace events that ui.perfetto.dev opens.

The file is the array form of the Trace Event Format: one event a line, complete events ("X") with
start and duration in microseconds, and the threads' names as metadata. An array without its end
is accepted by viewers, so the trace of a killed run opens too.

Times are of the system's monotonic clock, which all processes of a host share: traces of several
devices lie side by side in one picture (`join_traces`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from wsipipe.errors import OutputError

__all__ = ["NO_TRACE", "Trace", "join_traces"]


class _Span:
    __slots__ = ("_args", "_begun", "_name", "_trace")

    def __init__(self, trace: Trace, name: str, args: dict[str, Any]) -> None:
        self._trace, self._name, self._args = trace, name, args

    def __enter__(self) -> None:
        self._begun = time.monotonic_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        begun = self._begun
        took = time.monotonic_ns() - begun
        self._trace._add(
            {"name": self._name, "ph": "X", "ts": begun / 1e3, "dur": took / 1e3}, self._args
        )


class Trace:
    """Collects events from any thread; the caller's thread brings them to the file.

    Args:
        path: The file to write; None: nothing is recorded.
        process: Name of the process in the picture.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path | None, process: str = "wsipipe") -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._seen = threading.local()
        self._pid = os.getpid()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._file.write("[\n")
        self._file.write(_line("process_name", self._pid, 0, process))

    def span(self, name: str, **args: Any) -> AbstractContextManager[None]:
        """Something that the calling thread does, or waits for, from entry to exit."""
        return contextlib.nullcontext() if self._path is None else _Span(self, name, args)

    def count(self, name: str, **values: float) -> None:
        """Values at this moment, drawn as curves."""
        if self._path is not None:
            self._add({"name": name, "ph": "C", "ts": time.monotonic_ns() / 1e3}, values)

    def write(self) -> None:
        """Bring what was collected to the file.

        Raises:
            OutputError: It cannot be written.
        """
        if self._file is None or self._path is None:
            return
        try:
            while not self._events.empty():
                self._file.write(",\n" + json.dumps(self._events.get(), ensure_ascii=False))
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Write the rest, and end the array."""
        if self._file is None:
            return
        self.write()
        self._file.write("\n]\n")
        self._file.close()
        self._file = None

    def _add(self, event: dict[str, Any], args: dict[str, Any]) -> None:
        thread = threading.get_native_id()
        if not getattr(self._seen, "named", False):
            self._seen.named = True
            name = threading.current_thread().name
            name = "run" if threading.current_thread() is threading.main_thread() else name
            self._events.put(_named("thread_name", self._pid, thread, name))
        self._events.put({**event, "pid": self._pid, "tid": thread, "args": args})


NO_TRACE = Trace(None)


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _line(kind: str, pid: int, tid: int, name: str) -> str:
    return json.dumps(_named(kind, pid, tid, name), ensure_ascii=False)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(path, f"the trace cannot be written: {error}.", "Choose another --profile.")


def join_traces(parts: Iterable[Path], path: Path) -> None:
    """Write the events of several processes into one file, and remove theirs.

    The part of a process that was killed lacks its end, and may end within a line: what is whole
    counts.
    """
    parts = [part for part in parts if part.exists()]
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write("[\n")
            file.write(",\n".join(event for part in parts for event in _events(part)))
            file.write("\n]\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    for part in parts:
        part.unlink()


def _events(part: Path) -> Iterator[str]:
    with part.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            text = line.strip().rstrip(",")
            with contextlib.suppress(ValueError):
                if text.startswith("{") and json.loads(text):
                    yield text
