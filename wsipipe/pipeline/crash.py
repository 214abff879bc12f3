"""Slides that take their process down with them: known by the trace a crash leaves, kept apart.

A reader's library may crash on a broken file (SIGSEGV, SIGABRT), and the same file crashes the
next run. `faulthandler` leaves a trace then; a kill from outside leaves none, so slides are not
blamed for a scheduler. Where several devices have a process each, their parent sees one of them
killed while it lives on itself (so answers a system to a slide that takes all memory), and leaves
the trace in its name. A slide that was in flight at a crash is a suspect and runs alone; one that
crashes alone is given up.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import Any, TextIO

from wsipipe.errors import SlideError
from wsipipe.owner import Owner, this_process
from wsipipe.store import SlideRecord
from wsipipe.store.publish import make_folder, publish_text

__all__ = ["CrashTrace", "QuarantinedError", "crashes", "leave_trace", "orphaned"]

LIMIT = 2


class QuarantinedError(SlideError):
    """The slide has crashed its process before."""

    default_remedy = (
        "The traces are in events/*.crash. Replace the slide by an intact copy, or remove its file "
        "in attempts/ to try again."
    )


class CrashTrace:
    """While open, a crash of this process leaves `events/<host>-<pid>.crash`.

    Where somebody else listens for crashes already (a test runner), they keep the say.
    """

    def __init__(self, out: Path) -> None:
        self._path = _trace(out, this_process().host, this_process().pid)
        self._file: TextIO | None = None

    def __enter__(self) -> CrashTrace:
        if faulthandler.is_enabled():
            return self
        make_folder(self._path.parent)
        self._file = self._path.open("w")
        faulthandler.enable(self._file, all_threads=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        faulthandler.disable()
        self._file.close()
        self._path.unlink(missing_ok=True)


def crashes(out: Path, record: SlideRecord | None) -> int:
    """How many of a slide's latest attempts in a row ended with a crash of their process."""
    count = 0
    for attempt in reversed(record.attempts if record is not None else []):
        if _was_refused(attempt):
            continue
        trace = _trace(out, str(attempt["host"]), int(attempt["pid"]))
        crashed = attempt["state"] in ("running", "died") and _has_text(trace)
        if not crashed:
            break
        count += 1
    return count


def orphaned(record: SlideRecord | None, since_utc: str) -> bool:
    """Whether a process of this host died with the slide in hand, after `since_utc`.

    Whether it crashed may not have been said yet: its parent needs a moment.
    """
    if record is None or not record.attempts:
        return False
    latest = record.attempts[-1]
    if latest["state"] != "running" or str(latest.get("started_utc", "")) < since_utc:
        return False
    owner = Owner(str(latest["host"]), int(latest["pid"]), str(latest["start"]))
    return owner.state() == "dead"


def _was_refused(attempt: dict[str, Any]) -> bool:
    """Not even opened, for instance because it was left out: that acquits no slide."""
    errors = attempt.get("errors", {}).values()
    return bool(errors) and all(error.get("stage") == "plan" for error in errors)


def leave_trace(out: Path, pid: int, how: str) -> None:
    """Say for a process of this host that it crashed, unless it has said so itself."""
    trace = _trace(out, this_process().host, pid)
    if not _has_text(trace):
        publish_text(trace, how + "\n")


def _trace(out: Path, host: str, pid: int) -> Path:
    return out / "events" / f"{host}-{pid}.crash"


def _has_text(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
