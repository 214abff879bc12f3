"""The state of a run for Prometheus, as the textfile collector of its node exporter reads it."""

from __future__ import annotations

import time
from pathlib import Path

from wsipipe.store.progress import RunStatus
from wsipipe.store.publish import publish_text

__all__ = ["metrics_text", "write_metrics"]


def _label(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def metrics_text(status: RunStatus, *, now: float | None = None) -> str:
    """The metrics as Prometheus reads them (text format 0.0.4); nothing names a slide.

    Args:
        status: The state of the run.
        now: Seconds since 1970; default the present.
    """
    run = f"run={_label(status.out.name)}"
    lines = ["# HELP wsipipe_slides Slides by state.", "# TYPE wsipipe_slides gauge"]
    tiles = ["# HELP wsipipe_tiles Tiles embedded.", "# TYPE wsipipe_tiles gauge"]
    bad = [
        "# HELP wsipipe_bad_tiles Tiles that could not be read.",
        "# TYPE wsipipe_bad_tiles gauge",
    ]
    for encoder, counts in status.by_encoder().items():
        labels = f"{run},encoder={_label(encoder)}"
        for state in status.counts:
            lines.append(f"wsipipe_slides{{{labels},state={_label(state)}}} {counts[state]}")
        tiles.append(f"wsipipe_tiles{{{labels}}} {counts['tiles']}")
        bad.append(f"wsipipe_bad_tiles{{{labels}}} {counts['bad_tiles']}")
    at_work = sum(entry["process"] != "dead" for entry in status.running)
    lines += [
        *tiles,
        *bad,
        "# HELP wsipipe_at_work Slides that a process works on.",
        "# TYPE wsipipe_at_work gauge",
        f"wsipipe_at_work{{{run}}} {at_work}",
        "# HELP wsipipe_written_seconds When this was written.",
        "# TYPE wsipipe_written_seconds gauge",
        f"wsipipe_written_seconds{{{run}}} {time.time() if now is None else now:.0f}",
    ]
    return "\n".join(lines) + "\n"


def write_metrics(path: str | Path, status: RunStatus) -> Path:
    """Publish the metrics as one file that is never seen half."""
    return publish_text(path, metrics_text(status))
