"""`wsipipe status`: what is done and what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsipipe.errors import WsipipeError

if TYPE_CHECKING:
    from wsipipe.store.progress import RunStatus

_SHOWN = 20


def command(
    out: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="The whole state as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until it is done.")] = False,
    metrics: Annotated[
        Path | None, typer.Option(help="Also write the state for Prometheus to this .prom file.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.")] = 5.0,
) -> None:
    """Say how a run stands, from its files alone.

    It may be asked at any time, from any machine that sees the folder, while any number of
    processes work on it. A slide is done because its feature file is there.

    [bold]Examples[/bold]

      wsipipe status wsipipe-out

      wsipipe status wsipipe-out --watch

      wsipipe status wsipipe-out --json | jq .counts

    It also reads a job folder of TRIDENT.
    """
    from wsipipe.store.layouts.trident import is_trident_job, trident_status
    from wsipipe.store.metrics import write_metrics
    from wsipipe.store.progress import run_status

    read = trident_status if is_trident_job(out) else run_status
    while True:
        status = read(out)
        if metrics is not None:
            write_metrics(metrics, status)
        _show(status, as_json)
        if not watch or status.finished:
            return
        time.sleep(max(0.1, every))


def _show(status: RunStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(status.as_json(), ensure_ascii=False))
        return
    for line in _lines(status):
        typer.echo(line)


def _lines(status: RunStatus) -> list[str]:
    counts = status.counts
    total = sum(counts.values())
    listed = ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "nothing yet"
    lines = [f"{status.out}: {listed} (of {total})"]
    for name, numbers in status.by_encoder().items():
        done = numbers["done"] + numbers["empty"]
        share = done / max(1, sum(numbers[k] for k in counts))
        bad = f", {numbers['bad_tiles']} unreadable" if numbers["bad_tiles"] else ""
        lines.append(f"  {name}: {done} slides ({share:.0%}), {numbers['tiles']:,} tiles{bad}")
    for entry in status.running[:_SHOWN]:
        where = f"process {entry['pid']} on {entry['host']}, since {entry['started_utc']}"
        note = "  its process is gone: run again to go on" if entry["process"] == "dead" else ""
        lines.append(f"  at work: {entry['slide_id']} ({where}){note}")
    for failure in status.failures[:_SHOWN]:
        told = WsipipeError(failure["error"], failure["remedy"])
        lines.append(f"  failed: {failure['slide_id']}: {told}")
    if (more := len(status.failures) - _SHOWN) > 0:
        lines.append(f"  ... and {more} more in failures.csv")
    for slide in status.outliers[:_SHOWN]:
        what = ", ".join(slide["unlike"])
        lines.append(f"  unlike the others: {slide['slide_id']} ({what}; {slide['encoder']})")
    return lines
