"""Several finished training runs in one table, best first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsipipe.errors import ConfigError
from wsipipe.mil.compare import compare_runs

__all__ = ["RunRow", "RunTable", "run_table", "run_table_csv"]

_ERRORS = ("brier", "ece", "mae", "rmse")


@dataclass(frozen=True)
class RunRow:
    """One run of the table.

    Attributes:
        figures: Metric -> {"pooled", "ci_low", "ci_high", "mean", ...}.
        p_to_best: Two-sided p of the paired test against the best run, Holm-adjusted over all pairs
            of the table; None for the best itself, and where runs cannot be paired.
    """

    folder: str
    encoder: str
    aggregator: str
    n_patients: int
    figures: dict[str, dict[str, Any]]
    p_to_best: float | None


@dataclass(frozen=True)
class RunTable:
    """Finished runs, best first, and their paired tests.

    Attributes:
        metric: What they are sorted by.
        pairs: Every pair as in `compare_runs`; empty where runs cannot be paired.
        untested: Why they were not tested against each other, or "".
    """

    rows: tuple[RunRow, ...]
    metric: str
    pairs: tuple[dict[str, Any], ...]
    untested: str


def run_table(folders: Sequence[str | Path], metric: str | None = None) -> RunTable:
    """Read finished runs of `wsipipe train`.

    Args:
        folders: Their `--out` folders.
        metric: What to sort by; by default the first that all runs have.

    Raises:
        ConfigError: A folder is no finished run, or the metric is not in all of them.
    """
    documents = [_document(Path(folder)) for folder in folders]
    shared = [m for m in documents[0]["metrics"] if all(m in d["metrics"] for d in documents)]
    chosen = metric or (shared[0] if shared else "")
    if chosen not in shared:
        raise ConfigError(
            f"Not all of these runs have the metric '{chosen}'.",
            f"They share: {', '.join(shared) or 'none'}.",
        )
    sign = 1 if chosen in _ERRORS else -1

    def rank(i: int) -> float:
        value = documents[i]["metrics"][chosen]["pooled"]
        return float("inf") if value is None else sign * float(value)

    order = sorted(range(len(folders)), key=rank)
    pairs, why = _tested([folders[i] for i in order])
    p_values = [None, *(pair["p_holm"] for pair in pairs[: len(order) - 1])]
    p_values += [None] * (len(order) - len(p_values))
    rows = [
        RunRow(
            str(folders[i]),
            str(documents[i].get("features", {}).get("encoder", "")),
            str(documents[i]["aggregator"]),
            int(documents[i]["n_patients"]),
            documents[i]["metrics"],
            p,
        )
        for i, p in zip(order, p_values, strict=True)
    ]
    return RunTable(tuple(rows), chosen, tuple(pairs), why)


def run_table_csv(rows: Sequence[RunRow]) -> str:
    """One line a run: who, how many patients, each metric with its interval, p against the best."""
    names = [name for name in rows[0].figures if all(name in row.figures for row in rows)]
    parts = ("pooled", "ci_low", "ci_high", "mean")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = [f"{name}_{part}" for name in names for part in parts]
    writer.writerow(["folder", "encoder", "aggregator", "n_patients", *head, "p_to_best_holm"])
    for row in rows:
        values = [row.figures[name].get(part) for name in names for part in parts]
        texts = ["" if v is None else f"{v:.6g}" for v in [*values, row.p_to_best]]
        writer.writerow([row.folder, row.encoder, row.aggregator, row.n_patients, *texts])
    return buffer.getvalue()


def _document(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no finished training run ({error}).", "Name --out folders of train."
        ) from error
    if not isinstance(document, dict) or not document.get("metrics"):
        raise ConfigError(f"{path} holds no metrics.")
    return document


def _tested(folders: Sequence[str | Path]) -> tuple[list[dict[str, Any]], str]:
    """Paired tests, those against the first folder first; or none, and why."""
    if len(folders) < 2:
        return [], ""
    try:
        return compare_runs(folders), ""
    except ConfigError as error:
        return [], error.problem
