"""What is predicted: classes, numbers, survival times; one column of logits or several each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError

__all__ = ["Target", "is_missing", "make_targets", "parse_number"]

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "unknown", "?"})
TASKS = ("classification", "regression", "survival")
_MAX_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """One thing to predict.

    Attributes:
        name: Column of the labels ("time/event" for survival).
        task: One of `TASKS`.
        classes: Names of the classes in order, for classification.
        columns: Columns of the labels that it is read from.
        loss: "ce"; "mse"; "cox" or "nll".
        bins: Time bins of the discrete-time likelihood.
    """

    name: str
    task: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    loss: str = "ce"
    bins: int = 4

    @property
    def width(self) -> int:
        """Columns of the logits."""
        if self.task == "classification":
            return len(self.classes)
        return self.bins if self.loss == "nll" else 1

    def parse(self, row: Mapping[str, str]) -> tuple[float, float]:
        """(class index, 0), (value, 0) or (time, event) of one line; NaN where it is missing."""
        texts = [str(row.get(c, "")).strip() for c in self.columns]
        if any(is_missing(t) for t in texts):
            return math.nan, math.nan
        if self.task == "classification":
            name = canonical(texts[0])
            return float(self.classes.index(name)) if self.knows(name) else math.nan, 0.0
        if self.task == "regression":
            return parse_number(texts[0], self.columns[0]), 0.0
        time, event = parse_number(texts[0], self.columns[0]), parse_event(texts[1])
        if time < 0:
            raise ConfigError(f"Column '{self.columns[0]}' holds a negative time ({texts[0]}).")
        return time, event

    def knows(self, text: str) -> bool:
        """Is it one of the classes?"""
        return canonical(text) in self.classes

    def describe(self) -> dict[str, Any]:
        """As it goes into `model.json`."""
        return {
            "name": self.name,
            "task": self.task,
            "columns": list(self.columns),
            "classes": list(self.classes),
            "loss": self.loss,
            "bins": self.bins,
        }

    @classmethod
    def from_description(cls, said: Mapping[str, Any]) -> Target:
        """Inverse of `describe`."""
        return cls(
            name=said["name"],
            task=said["task"],
            columns=tuple(said["columns"]),
            classes=tuple(said["classes"]),
            loss=said["loss"],
            bins=int(said["bins"]),
        )


def is_missing(text: str) -> bool:
    """Does the text stand for no value?"""
    return text.strip().lower() in MISSING


def canonical(text: str) -> str:
    """Class names as text: 1, 1.0 and "1" are one class; codes (007, 1_2) stay as they are."""
    whole = re.fullmatch(r"(-?\d+)\.0*", text)
    return whole[1] if whole else text


def _float(text: str) -> float:
    """As `float`, but 1_2 is a name: Python alone reads it as 12."""
    return float(text.replace("_", "?"))


def parse_number(text: str, column: str) -> float:
    """A finite number.

    Raises:
        ConfigError: It is none.
    """
    try:
        value = _float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"Column '{column}' holds {text!r} where a number is needed.")
    return value


def parse_event(text: str) -> float:
    """1.0 = the event was seen, 0.0 = censored."""
    word = text.strip().lower()
    if word in {"1", "1.0", "true", "yes", "dead", "deceased", "1:deceased", "event"}:
        return 1.0
    if word in {"0", "0.0", "false", "no", "alive", "living", "0:living", "censored"}:
        return 0.0
    raise ConfigError(
        f"The event column holds {text!r}.", "Use 1 = the event was seen, 0 = censored."
    )


def make_targets(
    rows: Sequence[Mapping[str, str]],
    names: Sequence[str],
    *,
    task: str = "auto",
    time: str | None = None,
    event: str | None = None,
    survival_loss: str = "cox",
    bins: int = 4,
) -> tuple[Target, ...]:
    """Targets of a run from the columns that were asked for.

    Args:
        names: Columns given with --target.
        task: "auto" tells classes from numbers by what the column holds.

    Raises:
        ConfigError: A column is missing, has one class only, or the flags contradict each other.
    """
    if task not in ("auto", *TASKS):
        raise ConfigError(f"--task is auto, {', '.join(TASKS)}; not '{task}'.")
    columns = set(rows[0]) if rows else set()
    for column in [*names, *(c for c in (time, event) if c)]:
        if column not in columns:
            raise ConfigError(
                f"The labels have no column '{column}'.",
                f"They have: {', '.join(sorted(columns))}.",
            )
    if task == "survival" or time or event:
        if not (time and event) or names or task not in ("auto", "survival"):
            raise ConfigError(
                "Survival needs --time COLUMN and --event COLUMN, and no --target.",
                "The event column holds 1 where the event was seen and 0 where it was censored.",
            )
        if survival_loss not in ("cox", "nll"):
            raise ConfigError(f"The survival loss is cox or nll, not '{survival_loss}'.")
        return (Target(f"{time}/{event}", "survival", (time, event), (), survival_loss, bins),)
    if not names:
        raise ConfigError("Say what to predict: --target COLUMN, or --time and --event.")
    if len(set(names)) < len(names):
        raise ConfigError(f"A --target is named twice ({', '.join(names)}).")
    return tuple(_target(rows, name, task) for name in names)


def _target(rows: Sequence[Mapping[str, str]], name: str, task: str) -> Target:
    texts = [str(r[name]).strip() for r in rows]
    values = [t for t in texts if not is_missing(t)]
    if not values:
        raise ConfigError(f"Column '{name}' is empty.")
    found = task if task != "auto" else _guess(values)
    if found == "regression":
        for value in values:
            parse_number(value, name)
        return Target(name, "regression", (name,), loss="mse")
    classes = sorted({canonical(v) for v in values}, key=_order)
    if len(classes) < 2:
        raise ConfigError(
            f"Column '{name}' holds one class only ('{classes[0]}').",
            "A classifier needs two; check the labels, or join cohorts.",
        )
    if len(classes) > max(_MAX_CLASSES, len(values) // 5):
        raise ConfigError(
            f"Column '{name}' holds {len(classes)} classes among {len(values)} labels.",
            "Is it the right column? Numbers are predicted with --task regression.",
        )
    return Target(name, "classification", (name,), tuple(classes))


def _order(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _guess(values: Sequence[str]) -> str:
    """Numbers with more than ten distinct values, or fractions, are regressed; all else classes."""
    try:
        numbers: NDArray[np.float64] = np.array([_float(v) for v in values])
    except ValueError:
        return "classification"
    whole = bool((numbers == np.round(numbers)).all())
    return "classification" if whole and len(np.unique(numbers)) <= 10 else "regression"
