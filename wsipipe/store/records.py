"""What was tried on each slide: `attempts/<slide_id>.json`, one file a slide, replaced whole.

An attempt is recorded before the work starts, so that a slide that kills its worker is known by
its unfinished attempts. What is done is still decided by the feature file alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from wsipipe.errors import WsipipeError
from wsipipe.owner import Owner, this_process
from wsipipe.store.events import plain, utc_now
from wsipipe.store.names import TextFilter
from wsipipe.store.publish import publish_text

__all__ = [
    "Records",
    "SlideRecord",
    "SlideResult",
    "Status",
    "range_records",
    "remove_range_records",
]

Status = Literal["done", "empty", "failed", "pending"]
VERSION = 1
_KEPT_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class SlideResult:
    """How one slide ended for one encoder.

    Attributes:
        encoder: Name of the folder below `features/`.
        status: done, empty (no tissue: a success) or failed.
        stage: Where it failed: open, tissue, grid, read, embed, write.
        reason: Short text for `slides.csv`; why it is empty or failed.
        error, remedy: For `failures.csv`: what happened, what to do.
        seconds: Wall time of this slide's work.
        identity: Hash in the feature file.
        stamp: Of the feature file, see `file_stamp`. While it holds, the file need not be opened to
            know its identity; the file is what decides.
        quality: Measure -> number for the slide, where tiles were measured.
    """

    encoder: str
    status: Status
    tiles: int = 0
    bad_tiles: int = 0
    precision: str = ""
    seconds: float = 0.0
    identity: str = ""
    stamp: str = ""
    stage: str = ""
    reason: str = ""
    error: str = ""
    remedy: str = ""
    quality: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def failure(
        cls, encoder: str, error: BaseException, *, stage: str, seconds: float = 0.0
    ) -> SlideResult:
        """The result of a slide that ended with `error`."""
        known = isinstance(error, WsipipeError)
        problem = error.problem if isinstance(error, WsipipeError) else str(error)
        return cls(
            encoder=encoder,
            status="failed",
            seconds=seconds,
            stage=stage,
            reason=str(getattr(error, "reason", problem)),
            error=problem if known else f"{type(error).__name__}: {problem}",
            remedy=error.remedy if isinstance(error, WsipipeError) else _BUG_REMEDY,
        )


_BUG_REMEDY = "This is not expected: please report it with the file attempts/<slide_id>.json."


@dataclass(kw_only=True)
class SlideRecord:
    """Everything that is recorded on one slide; sizes in level-0 pixels."""

    slide_id: str
    path: str
    mpp: float | None = None
    mpp_source: str = ""
    width: int | None = None
    height: int | None = None
    tissue_mm2: float | None = None
    results: dict[str, SlideResult] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def deaths(self) -> int:
        """How many of the latest attempts in a row ended with the death of their process."""
        count = 0
        for attempt in reversed(self.attempts):
            if attempt["state"] == "running" and attempt is self.attempts[-1]:
                continue
            if attempt["state"] != "died":
                break
            count += 1
        return count


def _owner_of(attempt: Mapping[str, Any]) -> Owner:
    return Owner(str(attempt["host"]), int(attempt["pid"]), str(attempt["start"]))


class Records:
    """The attempts of a run's slides, in `OUT/attempts/`.

    Args:
        out: Folder of the run.
        texts: What is recorded passes it.
    """

    def __init__(self, out: str | Path, *, texts: TextFilter | None = None) -> None:
        self.out = Path(out)
        self.folder = self.out / "attempts"
        self._texts = texts or TextFilter()

    def path_of(self, slide_id: str) -> Path:
        """The record's file."""
        return self.folder / f"{slide_id}.json"

    def read(self, slide_id: str) -> SlideRecord | None:
        """The record of a slide; None if there is none that can be read."""
        return read_record(self.path_of(slide_id))

    def begin(
        self, slide_id: str, path: str | Path, encoders: Sequence[str], **facts: Any
    ) -> SlideRecord:
        """Record that this process starts on a slide, before it does.

        Attempts that were never ended count as the death of their process, unless it still lives.

        Returns:
            The record; `deaths` says how often in a row the slide has killed its worker.

        Raises:
            OutputError: It cannot be written.
        """
        record = self.read(slide_id) or SlideRecord(slide_id=slide_id, path="")
        record.path = self._texts.path_of(slide_id, str(path))
        me = this_process()
        for attempt in record.attempts:
            # On another host nobody can look; that this process got the slide says it is free.
            if attempt["state"] == "running" and (
                _owner_of(attempt) == me or _owner_of(attempt).state() != "alive"
            ):
                attempt["state"] = "died"
        record.attempts = record.attempts[1 - _KEPT_ATTEMPTS :]
        record.attempts.append(
            {
                "state": "running",
                "started_utc": utc_now(),
                "host": me.host,
                "pid": me.pid,
                "start": me.start,
                "encoders": list(encoders),
                **plain(facts, self._texts.about(slide_id)),
            }
        )
        self._publish(record)
        return record

    def finish(
        self,
        record: SlideRecord,
        results: Sequence[SlideResult],
        *,
        state: str | None = None,
        **facts: Any,
    ) -> None:
        """Record how the attempt of this process ended.

        Args:
            record: From `begin`; its sizes, mpp and area may have been filled in since.
            results: One an encoder that was worked on; others keep their former result.
            state: `abandoned` when asked to stop; else taken from the results.
            facts: Kept with the attempt: traceback, batch sizes, warnings, timings.

        Raises:
            OutputError: It cannot be written.
        """
        clean = self._texts.about(record.slide_id)
        for result in results:
            record.results[result.encoder] = SlideResult(
                **plain(asdict(result))
                | {k: clean(getattr(result, k)) for k in ("reason", "error", "remedy")}
            )
        if state is None:
            failed = any(r.status == "failed" for r in results)
            state = "failed" if failed else "done"
        attempt = record.attempts[-1]
        attempt.update(state=state, ended_utc=utc_now(), **plain(facts, clean))
        for result in results:
            if result.status == "failed":
                attempt.setdefault("errors", {})[result.encoder] = {
                    "stage": result.stage,
                    "error": clean(result.error),
                }
        self._publish(record)

    def settle(self, slide_id: str, path: str, results: Sequence[SlideResult]) -> None:
        """Record what was found done though the record does not say so.

        Nothing happens while somebody's attempt is not over: it will say so itself.
        """
        record = self.read(slide_id) or SlideRecord(slide_id=slide_id, path="")
        if record.attempts and record.attempts[-1]["state"] == "running":
            return
        record.path = self._texts.path_of(slide_id, path)
        record.results.update({result.encoder: result for result in results})
        self._publish(record)

    def all(self) -> Iterator[SlideRecord]:
        """Every readable record, in no order."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(".json") and not name.startswith("."):
                    record = read_record(os.path.join(folder, name))  # noqa: PTH118  (10,000 times)
                    if record is not None:
                        yield record

    def _publish(self, record: SlideRecord) -> None:
        content = {"version": VERSION, **asdict(record)}
        # ASCII: a path may hold bytes that are no UTF-8, and comes back as it was.
        text = json.dumps(content, indent=1)
        publish_text(self.path_of(record.slide_id), text + "\n")


def range_records(out: Path, *, texts: TextFilter | None = None) -> Records:
    """The attempts at ranges of slides' rows, while a run is cutting slides."""
    return Records(out / ".partial" / "ranges", texts=texts)


def slide_of_range(key: str) -> str:
    """The slide that a record of `range_records` is about: a of a~1-4."""
    return key.rpartition("~")[0]


def remove_range_records(out: Path, slide_ids: Collection[str]) -> None:
    """Remove the attempts at ranges of these slides, but for those that are going on."""
    records = range_records(out)
    for record in records.all():
        latest = record.attempts[-1] if record.attempts else None
        at_work = latest is not None and latest["state"] == "running"
        if slide_of_range(record.slide_id) not in slide_ids or (
            at_work and _owner_of(record.attempts[-1]).state() != "dead"
        ):
            continue
        with suppress(FileNotFoundError):
            records.path_of(record.slide_id).unlink()
    for folder, _, _ in os.walk(records.out, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()


_RESULT_FIELDS = frozenset(f.name for f in fields(SlideResult))
_ATTEMPT_FIELDS = frozenset({"state", "host", "pid", "start"})
_RECORD_FIELDS = frozenset(f.name for f in fields(SlideRecord))


def read_record(path: str | Path) -> SlideRecord | None:
    """The record in `path`; None if it is not there or not one. Unknown fields are left out."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (10,000 times)
            content = json.loads(file.read())
        kept = {k: v for k, v in content.items() if k in _RECORD_FIELDS}
        kept["results"] = {
            name: SlideResult(**{k: v for k, v in result.items() if k in _RESULT_FIELDS})
            for name, result in content.get("results", {}).items()
        }
        kept["attempts"] = [a for a in content.get("attempts", []) if set(a) >= _ATTEMPT_FIELDS]
        return SlideRecord(**kept)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
