"""`slides.csv` and `failures.csv`: folded from the files of a run, replaced whole, never trusted.

A slide is done because its feature file is there; the record adds what the file does not say. Ten
thousand slides take about a second: records are small, and of the feature files only the names are
looked at unless a record is missing.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from wsipipe.errors import StoreError
from wsipipe.store.check import file_stamp
from wsipipe.store.features import open_h5, read_attrs
from wsipipe.store.publish import publish_text
from wsipipe.store.records import Records, SlideRecord, SlideResult, Status

__all__ = [
    "SlideRow",
    "count_statuses",
    "feature_files",
    "find_outliers",
    "fold",
    "read_slides_csv",
    "result_of_file",
    "write_tables",
]


@dataclass(frozen=True, kw_only=True)
class SlideRow:
    """One line of `slides.csv`: one slide and encoder.

    Attributes:
        quality: Measure -> number for the slide, where tiles were measured.
    """

    slide_id: str
    path: str
    encoder: str
    status: Status
    reason: str = ""
    mpp: float | None = None
    mpp_source: str = ""
    width: int | None = None
    height: int | None = None
    tissue_mm2: float | None = None
    tiles: int | None = None
    bad_tiles: int | None = None
    precision: str = ""
    seconds: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict)


SLIDES_COLUMNS = tuple(f.name for f in fields(SlideRow) if f.name != "quality")
FAILURES_COLUMNS = ("slide_id", "path", "stage", "error", "remedy")


def feature_files(out: str | Path) -> dict[tuple[str, str], Path]:
    """All finished feature files of a run: (encoder folder, slide_id) -> path."""
    root = Path(out) / "features"
    found: dict[tuple[str, str], Path] = {}
    for encoder in sorted(p.name for p in root.iterdir()) if root.is_dir() else ():
        base = root / encoder
        for folder, _, names in os.walk(base):
            inside = Path(folder).relative_to(base).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for name in names:
                if name.endswith(".h5") and not name.startswith("."):
                    found[encoder, prefix + name[:-3]] = Path(folder, name)
    return found


def _row_of_record(record: SlideRecord, encoder: str, result: SlideResult | None) -> SlideRow:
    common = {
        "slide_id": record.slide_id,
        "path": record.path,
        "encoder": encoder,
        "mpp": record.mpp,
        "mpp_source": record.mpp_source,
        "width": record.width,
        "height": record.height,
        "tissue_mm2": record.tissue_mm2,
    }
    if result is None:
        return SlideRow(status="pending", **common)  # type: ignore[arg-type]
    return SlideRow(
        status=result.status,
        reason=result.reason,
        tiles=result.tiles,
        bad_tiles=result.bad_tiles,
        precision=result.precision,
        seconds=result.seconds,
        quality=result.quality,
        **common,  # type: ignore[arg-type]
    )


def _row_of_file(slide_id: str, slide_path: str, encoder: str, file: Path) -> SlideRow:
    """The row of a feature file that has no record: what the file itself says."""
    row = SlideRow(slide_id=slide_id, path=slide_path, encoder=encoder, status="failed")
    try:
        with open_h5(file) as h5:
            coords, status, attrs = h5.get("coords"), h5.get("tile_status"), h5.attrs
            tiles = len(coords) if coords is not None else len(h5["features"])
            known = coords.attrs if coords is not None else {}
            return replace(
                row,
                status="done" if tiles else "empty",
                reason="" if tiles else "no tile with enough tissue",
                mpp=attrs.get("level0_mpp"),
                mpp_source=str(attrs.get("mpp_source", "")),
                width=known.get("level0_width"),
                height=known.get("level0_height"),
                tiles=tiles,
                bad_tiles=int(np.count_nonzero(status[()])) if status is not None else 0,
                precision=str(attrs.get("precision", "")),
                quality={
                    name.removeprefix("quality_"): float(attrs[name])
                    for name in attrs
                    if name.startswith("quality_")
                },
            )
    except KeyError:
        return replace(row, reason="no dataset `features` in its file")
    except StoreError as error:
        return replace(row, reason=error.reason)


def result_of_file(encoder: str, file: Path) -> SlideResult:
    """What a whole feature file says of itself, as a result to record."""
    row = _row_of_file("", "", encoder, file)
    return SlideResult(
        encoder=encoder,
        status=row.status,
        reason=row.reason,
        tiles=row.tiles or 0,
        bad_tiles=row.bad_tiles or 0,
        precision=row.precision,
        identity=str(read_attrs(file).get("identity", "")),
        stamp=file_stamp(file),
        quality=row.quality,
    )


def fold(
    out: str | Path,
    expected: Iterable[tuple[str, str]] = (),
    encoders: Sequence[str] = (),
    records: Iterable[SlideRecord] | None = None,
) -> tuple[list[SlideRow], list[dict[str, str]]]:
    """The state of a run, from its files.

    Args:
        out: Folder of the run.
        expected: (slide_id, path) of slides that belong to it; those without files are pending.
            Slides that the present `slides.csv` lists belong to it, too.
        encoders: Folder names below `features/` that each slide is expected in.
        records: All records of the run, where they have been read already.

    Returns:
        Rows sorted by slide and encoder, and the lines of `failures.csv`.
    """
    out = Path(out)
    files = feature_files(out)
    wanted: dict[tuple[str, str], str] = {
        (row.slide_id, row.encoder): row.path for row in read_slides_csv(out / "slides.csv")
    }
    wanted |= {(slide_id, name): path for slide_id, path in expected for name in encoders}
    wanted_encoders: dict[str, list[str]] = {}
    for slide_id, encoder in wanted:
        wanted_encoders.setdefault(slide_id, []).append(encoder)
    rows: dict[tuple[str, str], SlideRow] = {}
    failures: dict[tuple[str, str], dict[str, str]] = {}
    for record in Records(out).all() if records is None else records:
        for encoder in {*record.results, *wanted_encoders.get(record.slide_id, ())}:
            result = record.results.get(encoder)
            key = (record.slide_id, encoder)
            file = files.pop((encoder, record.slide_id), None)
            if result is not None and result.status in ("done", "empty") and file is None:
                result = None  # the file was removed: to be done again
            if result is None and file is not None:
                rows[key] = _row_of_file(record.slide_id, record.path, encoder, file)
                continue
            rows[key] = _row_of_record(record, encoder, result)
            if result is not None and result.status == "failed":
                line = (record.path, result.stage, result.error, result.remedy)
                failures.setdefault(
                    (record.slide_id, result.error),
                    dict(zip(FAILURES_COLUMNS, (record.slide_id, *line), strict=True)),
                )
    for (encoder, slide_id), file in files.items():
        key = (slide_id, encoder)
        rows[key] = _row_of_file(slide_id, wanted.get(key, ""), encoder, file)
    for (slide_id, encoder), path in wanted.items():
        if (slide_id, encoder) not in rows:
            rows[slide_id, encoder] = SlideRow(
                slide_id=slide_id, path=path, encoder=encoder, status="pending"
            )
    return [rows[key] for key in sorted(rows)], [failures[key] for key in sorted(failures)]


def count_statuses(rows: Iterable[SlideRow]) -> dict[str, int]:
    """How many rows are done, empty, failed, pending (all four, zeros too)."""
    counts = Counter(row.status for row in rows)
    return {status: counts[status] for status in ("done", "empty", "failed", "pending")}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_text(value) for value in line] for line in lines)
    return buffer.getvalue()


def write_tables(
    out: str | Path,
    expected: Iterable[tuple[str, str]] = (),
    encoders: Sequence[str] = (),
) -> list[SlideRow]:
    """Rebuild `slides.csv`, and `failures.csv` where there are failures; see `fold`.

    Returns:
        The rows that were written.

    Raises:
        OutputError: They cannot be written.
    """
    out = Path(out)
    rows, failures = fold(out, expected, encoders)
    publish_text(out / "slides.csv", _csv(*_slides_table(rows)))
    if failures:
        lines = ([line[name] for name in FAILURES_COLUMNS] for line in failures)
        publish_text(out / "failures.csv", _csv(FAILURES_COLUMNS, lines))
    else:
        (out / "failures.csv").unlink(missing_ok=True)
    return rows


def _slides_table(rows: Sequence[SlideRow]) -> tuple[list[str], Iterator[list[object]]]:
    """Columns and lines; behind the usual ones those of quality, where a slide was measured."""
    measures = list(dict.fromkeys(name for row in rows for name in row.quality))
    unlike = find_outliers(rows) if measures else {}

    def line(row: SlideRow) -> list[object]:
        found: list[object] = [getattr(row, name) for name in SLIDES_COLUMNS]
        if measures:
            found += [row.quality.get(name) for name in measures]
            found.append("; ".join(unlike.get((row.slide_id, row.encoder), ())))
        return found

    columns = [*SLIDES_COLUMNS, *measures, *(["outlier"] if measures else [])]
    return columns, (line(row) for row in rows)


def find_outliers(rows: Iterable[SlideRow]) -> dict[tuple[str, str], list[str]]:
    """Slides that are unlike the others of the same encoder in tissue area or quality.

    Returns:
        (slide_id, encoder) -> in what ("focus low"); see `wsipipe.tissue.quality.flag_outliers`.
    """
    from wsipipe.tissue.quality import flag_outliers

    grouped: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.status in ("done", "empty"):
            area = {} if row.tissue_mm2 is None else {"tissue_mm2": row.tissue_mm2}
            grouped.setdefault(row.encoder, {})[row.slide_id] = {**area, **row.quality}
    return {
        (slide_id, encoder): flags
        for encoder, slides in grouped.items()
        for slide_id, flags in flag_outliers(slides).items()
    }


def read_slides_csv(path: str | Path) -> list[SlideRow]:
    """The slides that a former run listed: id, path, encoder and status; [] if it is not there."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return []
    rows = []
    for line in csv.DictReader(io.StringIO(text)):
        status = line.get("status")
        if line.get("slide_id") and status in ("done", "empty", "failed", "pending"):
            rows.append(
                SlideRow(
                    slide_id=line["slide_id"],
                    path=line.get("path") or "",
                    encoder=line.get("encoder") or "",
                    status=status,  # type: ignore[arg-type]
                )
            )
    return rows
