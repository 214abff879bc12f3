"""Labels and feature files brought together, one row a slide, checked before anything starts."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import BagFile
from wsipipe.mil.targets import Target, is_missing

__all__ = ["Cohort", "join_cohort", "read_table"]


@dataclass(frozen=True)
class Cohort:
    """Slides with features and labels.

    Attributes:
        slide_ids: (S,) as the feature files are called, sorted.
        patients: (S,) patient of each slide.
        sites: (S,) site of each slide, or None.
        y: (S, T, 2) float64: class index or value or time, and event; NaN = missing.
        targets: (T,).
        files: slide id -> feature file.
        notes: What the user should know, in sentences; recorded in `metrics.json`.
        patients_given: Does the label file name patients?
    """

    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    sites: tuple[str, ...] | None
    y: NDArray[np.float64]
    targets: tuple[Target, ...]
    files: Mapping[str, BagFile]
    notes: tuple[str, ...] = ()
    patients_given: bool = True

    @property
    def patient_list(self) -> tuple[str, ...]:
        """Each patient once, sorted."""
        return tuple(sorted(set(self.patients)))

    def patient_y(self) -> NDArray[np.float64]:
        """(P, T, 2) in the order of `patient_list`; all slides of a patient agree."""
        index = {p: i for i, p in enumerate(self.patient_list)}
        out = np.full((len(index), len(self.targets), 2), np.nan)
        for i, patient in enumerate(self.patients):
            known = ~np.isnan(self.y[i])
            out[index[patient]][known] = self.y[i][known]
        return out

    def without_absent_classes(self) -> Cohort:
        """Classes that only slides without features bear are no classes of this cohort."""
        y, targets, notes = self.y.copy(), list(self.targets), list(self.notes)
        for t, target in enumerate(self.targets):
            known = ~np.isnan(y[:, t, 0])
            present = np.unique(y[known, t, 0]).astype(int)
            absent = [c for i, c in enumerate(target.classes) if i not in present]
            if not absent:
                continue
            notes.append(f"No slide with features is of class {_few(absent)} of '{target.name}'.")
            targets[t] = replace(target, classes=tuple(target.classes[i] for i in present))
            y[known, t, 0] = np.searchsorted(present, y[known, t, 0])
        return replace(self, y=y, targets=tuple(targets), notes=tuple(notes))

    def patient_sites(self) -> tuple[str, ...] | None:
        """Site of each patient in the order of `patient_list`."""
        if self.sites is None:
            return None
        found = dict(zip(self.patients, self.sites, strict=True))
        return tuple(found[p] for p in self.patient_list)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a .csv or .tsv with a header line.

    Lines without any value are passed over: spreadsheets leave them at the end.

    Raises:
        ConfigError: No such file, no header, nothing in it, two columns of one name, a line with
            more values than columns, or a quote that is never closed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    first = text.split("\n", 1)[0]
    delimiter = "\t" if "\t" in first else ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [v.strip() for v in values]) for values in reader]
    except csv.Error as error:
        raise ConfigError(
            f"{path}, line {reader.line_num}: {error}.", "Is a quote opened and never closed?"
        ) from error
    lines = [(number, values) for number, values in lines if any(values)]
    if len(lines) < 2:
        raise ConfigError(f"{path}: no lines in it.", "Its first line names the columns.")
    head = lines[0][1]
    twice = [name for name, n in Counter(head).items() if name and n > 1]
    if twice:
        raise ConfigError(f"{path}: two columns are called '{twice[0]}'.", "Rename one of them.")
    for number, values in lines[1:]:
        if any(values[len(head) :]):
            raise ConfigError(
                f"{path}, line {number}: {len(values)} values for {len(head)} columns.",
                "Put quotes around a text that holds the separator.",
            )
    return [dict(zip_longest(head, v[: len(head)], fillvalue="")) for _, v in lines[1:]]


def match_slides(wanted: Sequence[str], files: Mapping[str, BagFile]) -> dict[str, str]:
    """slide_id of the labels -> id of its feature file: equal, or a base name that is unique."""
    by_base: dict[str, list[str]] = defaultdict(list)
    for slide_id in files:
        by_base[slide_id.rsplit("/", 1)[-1]].append(slide_id)
    found = {}
    for name in wanted:
        base = name.rsplit("/", 1)[-1]
        if name in files:
            found[name] = name
        elif len(by_base.get(base, ())) == 1:
            found[name] = by_base[base][0]
    return found


def join_cohort(
    rows: Sequence[Mapping[str, str]],
    files: Mapping[str, BagFile],
    targets: Sequence[Target],
    *,
    strict: bool = False,
    labels_name: str = "labels",
) -> Cohort:
    """Bring labels and features together.

    Args:
        rows: Lines of the label file.
        strict: Refuse a label without features, features without a label, and empty bags; else they
            are left out and said.

    Raises:
        ConfigError: No `slide_id`, duplicated ids, contradicting labels or sites of a patient, no
            slide left, all events censored, one class left.
    """
    if "slide_id" not in rows[0]:
        raise ConfigError(f"{labels_name}: no column 'slide_id'.", f"It has: {', '.join(rows[0])}.")
    ids = [r["slide_id"] for r in rows]
    twice = [k for k, n in Counter(ids).items() if n > 1]
    if twice:
        raise ConfigError(f"{labels_name}: slide_id {_few(twice)} occurs more than once.")
    match = match_slides(ids, files)
    doubled = [k for k, n in Counter(match.values()).items() if n > 1]
    if doubled:
        raise ConfigError(
            f"{labels_name}: several lines mean the feature file(s) {_few(doubled)}.",
            "Write the whole slide id, with folders.",
        )
    notes: list[str] = []
    parsed = {r["slide_id"]: [t.parse(r) for t in targets] for r in rows}
    missing = [k for k in ids if k not in match]
    unlabelled = [k for k in ids if k in match and all(math.isnan(a) for a, _ in parsed[k])]
    extra = sorted(set(files) - set(match.values()))
    empty = [k for k in ids if k in match and files[match[k]].rows == 0]
    problems = {
        "labelled slide(s) without features": missing,
        "feature file(s) without a label": extra,
        "slide(s) whose label is missing": unlabelled,
        "slide(s) without any tile": empty,
    }
    for what, which in problems.items():
        if which:
            notes.append(f"{len(which)} {what}, left out: {_few(which)}.")
            if strict:
                raise ConfigError(
                    f"{len(which)} {what}: {_few(which)}.",
                    "Correct the labels, or run without --strict to leave them out.",
                )
    dropped = {*missing, *unlabelled, *empty}
    # By id, not as the lines stand: whoever sorts the table anew trains the same models.
    kept = sorted(
        (r for r in rows if r["slide_id"] not in dropped), key=lambda r: match[r["slide_id"]]
    )
    if not kept:
        raise ConfigError(
            f"No slide has both a label and features ({len(rows)} labels, {len(files)} files).",
            f"Labels say {_few(ids)}; files are {_few(sorted(files))}.",
        )
    patients, given = _patients(kept, notes)
    sites = tuple(r["site"] for r in kept) if "site" in kept[0] else None
    cohort = Cohort(
        slide_ids=tuple(match[r["slide_id"]] for r in kept),
        patients=patients,
        sites=sites,
        y=np.array([parsed[r["slide_id"]] for r in kept], dtype=np.float64),
        targets=tuple(targets),
        files={match[r["slide_id"]]: files[match[r["slide_id"]]] for r in kept},
        notes=tuple(notes),
        patients_given=given,
    )
    _check_labels(cohort)
    return cohort


def _patients(kept: Sequence[Mapping[str, str]], notes: list[str]) -> tuple[tuple[str, ...], bool]:
    if "patient_id" not in kept[0]:
        notes.append(
            "The labels name no patients (column patient_id): each slide counts as a patient of "
            "its own. If a patient has several slides, the figures are too good."
        )
        return tuple(r["slide_id"] for r in kept), False
    lacking = [r["slide_id"] for r in kept if is_missing(r["patient_id"])]
    if lacking:
        raise ConfigError(
            f"{len(lacking)} slide(s) have no patient_id: {_few(lacking)}.",
            "Fill the column, or remove it if every slide is a patient of its own.",
        )
    return tuple(r["patient_id"] for r in kept), True


def _check_labels(cohort: Cohort) -> None:
    seen: dict[tuple[str, int], tuple[float, float]] = {}
    contradicting = set()
    for patient, values in zip(cohort.patients, cohort.y, strict=True):
        for t, pair in enumerate(values):
            if np.isnan(pair).any():
                continue
            known = seen.setdefault((patient, t), (float(pair[0]), float(pair[1])))
            if known != (float(pair[0]), float(pair[1])):
                contradicting.add(patient)
    if contradicting:
        raise ConfigError(
            f"{len(contradicting)} patient(s) have slides with contradicting labels: "
            f"{_few(sorted(contradicting))}.",
            "A patient has one label; give slide-level tasks a patient_id per specimen.",
        )
    if cohort.sites is not None:
        sites = defaultdict(set)
        for patient, site in zip(cohort.patients, cohort.sites, strict=True):
            sites[patient].add(site)
        torn = sorted(p for p, s in sites.items() if len(s) > 1)
        if torn:
            raise ConfigError(f"Patient(s) at several sites: {_few(torn)}.")
    y = cohort.patient_y()
    for t, target in enumerate(cohort.targets):
        first = y[:, t, 0]
        first = first[~np.isnan(first)]
        if target.task == "classification":
            present = sorted({target.classes[int(v)] for v in first})
            if len(present) < 2:
                raise ConfigError(
                    f"After joining with the features, '{target.name}' has one class only "
                    f"({', '.join(present) or 'none'})."
                )
        if target.task == "survival" and not np.nansum(y[:, t, 1]) > 0:
            raise ConfigError(
                "All patients are censored: no event was seen.",
                "1 in the event column means that the event was seen; is it inverted?",
            )
        if target.task == "regression" and len(first) > 1 and np.ptp(first) == 0:
            raise ConfigError(f"'{target.name}' has the same value in every patient.")


def _few(names: Sequence[str], n: int = 5) -> str:
    shown = ", ".join(f"'{x}'" for x in names[:n])
    return shown + (f" and {len(names) - n} more" if len(names) > n else "")
