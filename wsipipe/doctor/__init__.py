"""Is this machine fit? Each check says what it found and, where something is wrong, what to do.

A check never raises, never blocks for more than a few seconds, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wsipipe.doctor import hardware, hub, software, storage
from wsipipe.doctor.finding import Finding, Status

__all__ = ["Finding", "Status", "examine", "is_fit"]


def examine(out: str | Path = "wsipipe-out", *, quick: bool = False) -> list[Finding]:
    """Look at everything that a run will need.

    Args:
        out: Folder that results would go to; it is not made.
        quick: Leave out what takes longer than a moment: torch, reading a slide, the hub. Meant
            for the health check of a container.

    Returns:
        Findings in the order in which to read them.
    """
    return list(_examine(Path(out), quick))


def is_fit(findings: list[Finding]) -> bool:
    """Whether nothing essential is broken; warnings are allowed."""
    return all(finding.status != "broken" for finding in findings)


def _examine(out: Path, quick: bool) -> Iterator[Finding]:
    checks: list[Callable[[], Iterator[Finding]]] = [
        software.python,
        software.packages,
        lambda: software.readers(quick=quick),
        software.extras,
        hardware.processors,
        hardware.memory,
        lambda: hardware.devices(quick=quick),
        lambda: storage.output(out),
        lambda: storage.locking(out),
        storage.shared_memory,
        storage.open_files,
        lambda: hub.cache(quick=quick),
        lambda: hub.access(quick=quick),
    ]
    for check in checks:
        yield from check()
