"""How a run stands, from its files alone: any process on any host may ask at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsipipe.errors import ConfigError
from wsipipe.owner import Owner
from wsipipe.store.events import plain
from wsipipe.store.records import Records, SlideRecord, range_records, slide_of_range
from wsipipe.store.tables import SlideRow, count_statuses, find_outliers, fold

__all__ = ["RunStatus", "run_status"]


@dataclass
class RunStatus:
    """The state of a run.

    Attributes:
        rows: One a slide and encoder.
        failures: Lines of `failures.csv`.
        running: Slides that a process says it works on: slide_id, host, pid, started_utc, and
            `process` (alive, dead, elsewhere). A slide that several share is there once for each,
            as slide_id~1-4 for the first of four.
    """

    out: Path
    rows: list[SlideRow]
    failures: list[dict[str, str]]
    running: list[dict[str, Any]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Rows that are done, empty, failed, pending."""
        return count_statuses(self.rows)

    @property
    def finished(self) -> bool:
        """True if nothing is pending and nobody works."""
        at_work = any(entry["process"] != "dead" for entry in self.running)
        return not self.counts["pending"] and not at_work

    def by_encoder(self) -> dict[str, dict[str, int]]:
        """Encoder folder -> counts, tiles and bad tiles."""
        grouped: dict[str, list[SlideRow]] = defaultdict(list)
        for row in self.rows:
            grouped[row.encoder].append(row)
        return {
            name: {
                **count_statuses(rows),
                "tiles": sum(int(row.tiles or 0) for row in rows),
                "bad_tiles": sum(int(row.bad_tiles or 0) for row in rows),
            }
            for name, rows in sorted(grouped.items())
        }

    @property
    def outliers(self) -> list[dict[str, Any]]:
        """Slides unlike the others of their encoder: slide_id, encoder, and in what."""
        return [
            {"slide_id": slide_id, "encoder": encoder, "unlike": flags}
            for (slide_id, encoder), flags in find_outliers(self.rows).items()
        ]

    def as_json(self) -> dict[str, Any]:
        """The whole state as JSON takes it."""
        content: dict[str, Any] = plain(
            {
                "out": str(self.out),
                "finished": self.finished,
                "counts": self.counts,
                "encoders": self.by_encoder(),
                "running": self.running,
                "failures": self.failures,
                "outliers": self.outliers,
                "slides": [vars(row) for row in self.rows],
            }
        )
        return content


def _running(records: Iterable[SlideRecord]) -> list[dict[str, Any]]:
    found = []
    for record in records:
        last = record.attempts[-1] if record.attempts else None
        if last is None or last["state"] != "running":
            continue
        owner = Owner(str(last["host"]), int(last["pid"]), str(last["start"]))
        found.append(
            {
                "slide_id": record.slide_id,
                "host": owner.host,
                "pid": owner.pid,
                "started_utc": last.get("started_utc", ""),
                "process": owner.state(),
            }
        )
    return sorted(found, key=lambda entry: str(entry["started_utc"]))


def run_status(out: str | Path) -> RunStatus:
    """The state of the run in `out`; about 2 s for 10,000 slides.

    Raises:
        ConfigError: There is no such folder, or it holds no run.
    """
    out = Path(out)
    if not out.is_dir():
        raise ConfigError(f"{out} is not a folder.", "Name the --out folder of an extract run.")
    records = list(Records(out).all())
    rows, failures = fold(out, records=records)
    # A killed run leaves such records behind, and the next may do the slide in one piece.
    over = {row.slide_id for row in rows} - {r.slide_id for r in rows if r.status == "pending"}
    ranges = [r for r in range_records(out).all() if slide_of_range(r.slide_id) not in over]
    if not rows and not ranges and not (out / "run.yaml").exists():
        raise ConfigError(f"{out} holds no run.", "Name the --out folder of an extract run.")
    return RunStatus(out, rows, failures, _running([*records, *ranges]))
