"""Given splits, read and written: ours, CLAM's, Patho-Bench's, STAMP's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from wsipipe.errors import ConfigError
from wsipipe.mil.cohort import read_table
from wsipipe.mil.splits import Fold

__all__ = ["read_splits", "splits_csv", "write_splits"]

_PARTS = ("train", "val", "test")


def read_splits(path: str | Path, patient_of: Mapping[str, str]) -> list[Fold]:
    """Read folds from a file or, for CLAM, a folder of `splits_K.csv`.

    Forms, told by their columns: ours (`slide_id,repeat,fold,part`, or `slide_id,fold` = the fold
    that tests it, or patient_id for slide_id); CLAM (`train,val,test` with slide ids, or the
    `_bool` form); Patho-Bench (`case_id,...,fold_0,...` holding train, val, test); STAMP
    (`{"splits": [{"train_patients", "test_patients"}]}`).

    Args:
        patient_of: slide id -> patient, of the slides that take part; others are passed over.

    Raises:
        ConfigError: Unknown form, a patient in two parts, or a patient that is in no part.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(
            (f for f in path.glob("splits_*.csv") if re.fullmatch(r"splits_\d+", f.stem)),
            key=lambda f: int(f.stem.split("_")[1]),
        )
        if not files:
            raise ConfigError(f"{path}: no splits_K.csv in it.")
        parts = [_clam(read_table(f)) for f in files]
        return [_fold(p, 0, k, patient_of, path) for k, p in enumerate(parts)]
    if path.suffix == ".json":
        return _stamp(path, patient_of)
    rows = read_table(path)
    columns = set(rows[0])
    if {"train", "test"} <= columns:
        return [_fold(_clam(rows), 0, 0, patient_of, path)]
    numbered = sorted(
        (c for c in columns if re.fullmatch(r"fold_\d+", c)), key=lambda c: int(c[5:])
    )
    name = next((c for c in ("slide_id", "patient_id", "case_id") if c in columns), None)
    if name and numbered:
        return [
            _fold(_grouped(rows, name, column, path), 0, k, patient_of, path)
            for k, column in enumerate(numbered)
        ]
    if name and "fold" in columns:
        return _ours(rows, name, patient_of, path)
    raise ConfigError(
        f"{path}: no known form of splits (columns: {', '.join(sorted(columns))}).",
        "Use slide_id,fold or slide_id,repeat,fold,part, or CLAM's, Patho-Bench's, STAMP's form.",
    )


def _clam(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    flags = {str(r.get("train", "")).lower() for r in rows}
    if flags <= {"true", "false"}:  # splits_K_bool.csv: the first, unnamed column holds the id
        key = next((k for k in rows[0] if k not in _PARTS), None)
        if key is None:
            raise ConfigError("CLAM's boolean splits need a column of slide ids.")
        return {p: [r[key] for r in rows if r.get(p, "").lower() == "true"] for p in _PARTS}
    return {p: [r[p] for r in rows if r.get(p)] for p in _PARTS}


def _grouped(
    rows: Sequence[Mapping[str, str]], name: str, column: str, path: Path
) -> dict[str, list[str]]:
    out: dict[str, list[str]] = defaultdict(list)
    for line, row in enumerate(rows, start=2):
        if row[column] in _PARTS:
            out[row[column]].append(row[name])
        elif row[column]:
            raise ConfigError(
                f"{path}, line {line}: {column} is {row[column]!r}.",
                "It is train, val or test, or empty.",
            )
    return out


def _ours(
    rows: Sequence[Mapping[str, str]], name: str, patient_of: Mapping[str, str], path: Path
) -> list[Fold]:
    table: dict[tuple[int, int], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    given = "part" in rows[0]
    for line, row in enumerate(rows, start=2):
        place = (_number(row, "repeat", path, line), _number(row, "fold", path, line))
        table[place][row["part"] if given else "test"].append(row[name])
    if not given:
        for (repeat, fold), parts in table.items():
            parts["train"] = [
                s
                for (r, f), other in table.items()
                if r == repeat and f != fold
                for s in other["test"]
            ]
    return [_fold(p, r, f, patient_of, path) for (r, f), p in sorted(table.items())]


def _number(row: Mapping[str, str], column: str, path: Path, line: int) -> int:
    text = row.get(column, "")
    if column == "repeat" and not text:
        return 0
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise ConfigError(
            f"{path}, line {line}: {column} is {text!r}, not a number from 0 on.",
            "Columns are slide_id,fold (the fold that tests it) or slide_id,repeat,fold,part with "
            "part = train, val or test.",
        )
    return value


def _stamp(path: Path, patient_of: Mapping[str, str]) -> list[Fold]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        parts = [
            {"train": [*map(str, s["train_patients"])], "test": [*map(str, s["test_patients"])]}
            for s in said["splits"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not STAMP's splits ({error!r}).") from error
    return [_fold(p, 0, k, patient_of, path) for k, p in enumerate(parts)]


def _fold(
    parts: Mapping[str, Sequence[str]],
    repeat: int,
    fold: int,
    patient_of: Mapping[str, str],
    path: Path,
) -> Fold:
    """Slides or patients of each part as patients; a patient in two parts is refused later."""
    patients = set(patient_of.values())
    base: dict[str, set[str]] = defaultdict(set)
    for slide_id, patient in patient_of.items():
        base[slide_id.rsplit("/", 1)[-1]].add(patient)
    out: dict[str, set[str]] = {}
    for part in parts:
        if part not in _PARTS:
            raise ConfigError(f"{path}: part '{part}' is not train, val or test.")
        out[part] = set()
        for name in parts[part]:
            short = name.rsplit("/", 1)[-1]
            if name in patient_of:
                out[part].add(patient_of[name])
            elif name in patients:
                out[part].add(name)
            elif len(base.get(short, ())) == 1:
                out[part] |= base[short]
    return Fold(
        repeat,
        fold,
        tuple(sorted(out.get("train", ()))),
        tuple(sorted(out.get("test", ()))),
        tuple(sorted(out.get("val", ()))),
    )


def splits_csv(folds: Sequence[Fold], slides_of: Mapping[str, Sequence[str]]) -> str:
    """Our form: `slide_id,patient_id,repeat,fold,part`."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["slide_id", "patient_id", "repeat", "fold", "part"])
    for f in folds:
        for part, who in (("train", f.train), ("val", f.val), ("test", f.test)):
            for patient in who:
                for slide in slides_of[patient]:
                    out.writerow([slide, patient, f.repeat, f.fold, part])
    return text.getvalue()


def write_splits(
    path: str | Path, folds: Sequence[Fold], slides_of: Mapping[str, Sequence[str]], form: str
) -> None:
    """Write folds for other tools: "wsipipe", "clam" (a folder), "patho-bench", "stamp"."""
    from wsipipe.store.publish import publish_text

    path = Path(path)
    if form == "wsipipe":
        publish_text(path, splits_csv(folds, slides_of))
    elif form == "clam":
        path.mkdir(parents=True, exist_ok=True)
        for k, fold in enumerate(folds):
            publish_text(path / f"splits_{k}.csv", _clam_csv(fold, slides_of))
    elif form == "patho-bench":
        publish_text(path, _patho_bench_tsv(folds, slides_of))
    elif form == "stamp":
        said = [
            {"train_patients": [*f.train, *f.val], "test_patients": list(f.test)} for f in folds
        ]
        publish_text(path, json.dumps({"splits": said}, indent=1) + "\n")
    else:
        raise ConfigError(f"Splits are written as wsipipe, clam, patho-bench or stamp, not {form}.")


def _clam_csv(fold: Fold, slides_of: Mapping[str, Sequence[str]]) -> str:
    columns = [[s for p in who for s in slides_of[p]] for who in (fold.train, fold.val, fold.test)]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["", *_PARTS])
    out.writerows([i, *row] for i, row in enumerate(zip_longest(*columns, fillvalue="")))
    return text.getvalue()


def _patho_bench_tsv(folds: Sequence[Fold], slides_of: Mapping[str, Sequence[str]]) -> str:
    lines = ["\t".join(["case_id", "slide_id", *(f"fold_{k}" for k in range(len(folds)))])]
    part_of = [
        {p: n for n, who in (("train", f.train), ("val", f.val), ("test", f.test)) for p in who}
        for f in folds
    ]
    for patient in sorted(slides_of):
        for slide in slides_of[patient]:
            lines.append("\t".join([patient, slide, *(m.get(patient, "") for m in part_of)]))
    return "\n".join(lines) + "\n"
