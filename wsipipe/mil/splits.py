"""Who trains and who is tested. The unit is the patient; a patient is never on both sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.targets import Target

__all__ = [
    "Fold",
    "check_folds",
    "inner_splits",
    "make_folds",
    "separate_draws",
    "splits_digest",
    "strata",
]


@dataclass(frozen=True)
class Fold:
    """One division of the patients.

    Attributes:
        repeat, fold: Its place.
        train, test: Patients; disjoint.
        val: Patients of the training part that a given split sets aside for choices; usually empty,
            then the choices are made on inner splits of `train`.
    """

    repeat: int
    fold: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] = ()


def strata(y: NDArray[np.float64], target: Target) -> NDArray[np.int64]:
    """(P,) the stratum of each patient: class, event, or quarter of the values; -1 = missing."""
    first = y[:, 0]
    out = np.full(len(y), -1, dtype=np.int64)
    known = ~np.isnan(first)
    if target.task == "classification":
        out[known] = first[known].astype(np.int64)
    elif target.task == "survival":
        out[known] = y[known, 1].astype(np.int64)
    elif known.any():
        edges = np.quantile(first[known], [0.25, 0.5, 0.75])
        out[known] = np.searchsorted(edges, first[known])
    return out


def make_folds(
    patients: Sequence[str],
    y: NDArray[np.float64],
    target: Target,
    *,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    sites: Sequence[str] | None = None,
    monte_carlo: float = 0.0,
) -> list[Fold]:
    """Stratified folds over patients.

    Args:
        patients: Each once.
        y: (P, 2) the first target.
        sites: Site of each patient: then no site is on both sides (integer programme).
        monte_carlo: Share of patients tested in each of `folds` random draws, instead of k folds;
            each draw is a repeat of its own.

    Raises:
        ConfigError: Fewer patients of a class, or fewer sites, than folds; draws too small to hold
            every class.
    """
    if folds < 2 or repeats < 1 or not 0 <= monte_carlo < 1:
        raise ConfigError("--folds must be >= 2, --repeats >= 1 and --monte-carlo in [0, 1).")
    layer = strata(y, target)
    names = np.array(patients)
    out = []
    if monte_carlo:
        from sklearn.model_selection import StratifiedShuffleSplit

        draws = StratifiedShuffleSplit(folds * repeats, test_size=monte_carlo, random_state=seed)
        try:
            for i, (train, test) in enumerate(draws.split(names, _filled(layer, 2))):
                out.append(Fold(i, 0, tuple(names[train]), tuple(names[test])))
        except ValueError as error:
            raise ConfigError(
                f"--monte-carlo {monte_carlo} of {len(names)} patients: {error}",
                "Both parts need patients of every class: use another share, or join classes.",
            ) from error
        return out
    _check_counts(layer, target, folds)
    for repeat in range(repeats):
        if sites is not None:
            from wsipipe.mil.sites import site_preserved_folds

            part = site_preserved_folds(sites, layer, folds, seed=seed + repeat).fold_of
        else:
            from sklearn.model_selection import StratifiedGroupKFold

            part = np.zeros(len(names), dtype=np.int64)
            cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
            for k, (_, test) in enumerate(cut.split(names, _filled(layer, folds), groups=names)):
                part[test] = k
        for k in range(folds):
            out.append(Fold(repeat, k, tuple(names[part != k]), tuple(names[part == k])))
    return out


def _filled(layer: NDArray[np.int64], pieces: int) -> NDArray[np.int64]:
    """Patients without a label are a stratum where there are enough, else of the largest one."""
    unknown = layer < 0
    if unknown.sum() >= pieces or unknown.all():
        return layer
    return np.where(unknown, np.bincount(layer[~unknown]).argmax(), layer)


def _check_counts(layer: NDArray[np.int64], target: Target, folds: int) -> None:
    if len(layer) < 2 * folds:
        raise ConfigError(f"{len(layer)} patients are too few for {folds} folds.")
    if target.task == "regression":
        return
    for value, count in zip(*np.unique(layer[layer >= 0], return_counts=True), strict=True):
        if count < folds:
            what = (
                f"class '{target.classes[value]}'"
                if target.task == "classification"
                else ("events" if value else "censored patients")
            )
            raise ConfigError(
                f"{count} patient(s) of {what} for {folds} folds: a fold would have none.",
                f"Use --folds {max(2, int(count))} or fewer, or join classes.",
            )


def inner_splits(
    patients: Sequence[str],
    layer: NDArray[np.int64],
    *,
    count: int,
    seed: int,
    groups: Sequence[str] | None = None,
    survival: bool = False,
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(train, validation) inside a training part: one 80/20 split, or `count` inner folds.

    Args:
        groups: Sites, where sites must not be on both sides of the inner split either.
        survival: Is `layer` events? Then there are as many pieces as hold two events each: beside
            a single event there may be nobody at risk, and its Cox loss is 0 whatever is learned.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names = np.array(patients)
    pieces = min(max(2, 5 if count == 1 else count), len(names))
    layer = _filled(layer, pieces)
    counts = np.bincount(layer + 1)
    smallest = int(counts[counts > 0].min())
    if smallest < 2:
        layer = np.zeros_like(layer)
    else:
        pieces = min(pieces, smallest)
    if survival:
        pieces = min(pieces, int((layer == 1).sum()) // 2)
    owner = names if groups is None else np.array(groups)
    pieces = max(2, min(pieces, len(set(owner.tolist()))))
    cut = StratifiedGroupKFold(pieces, shuffle=True, random_state=seed)
    out = []
    for train, val in cut.split(names, layer, groups=owner):
        if len(train) and len(val):
            out.append((tuple(names[train].tolist()), tuple(names[val].tolist())))
        if len(out) == count:
            break
    return out


def check_folds(
    folds: Sequence[Fold],
    patients: Sequence[str],
    y: NDArray[np.float64],
    target: Target,
    sites: Sequence[str] | None = None,
) -> list[str]:
    """Refuse leaking or untrainable divisions; say what is merely awkward.

    Returns:
        Sentences on folds whose test part lacks a class, and the like.

    Raises:
        ConfigError: A patient (or a site, where `sites` is given) is in two parts, or a training
            part lacks a class or any event.
    """
    index = {p: i for i, p in enumerate(patients)}
    layer = strata(y, target)
    wanted = set(layer[layer >= 0].tolist()) if target.task != "regression" else set()
    notes = []
    for fold in folds:
        where = f"repeat {fold.repeat}, fold {fold.fold}"
        parts = {"train": set(fold.train), "val": set(fold.val), "test": set(fold.test)}
        for a, b in (("train", "test"), ("train", "val"), ("val", "test")):
            shared = sorted(parts[a] & parts[b])
            if shared:
                raise ConfigError(f"Patient '{shared[0]}' is in {a} and {b} of {where}.")
        if not fold.train or not fold.test:
            raise ConfigError(f"{where} has an empty part.")
        if sites is not None:
            at = {p: sites[index[p]] for p in index}
            shared = sorted({at[p] for p in (*fold.train, *fold.val)} & {at[p] for p in fold.test})
            if shared:
                raise ConfigError(f"Site '{shared[0]}' is in train and test of {where}.")
            if not fold.val and len({at[p] for p in fold.train}) < 2:
                raise ConfigError(
                    f"The training part of {where} is of one site: none is left to choose by.",
                    "Use more --folds, or give --splits with a val part.",
                )
        for name in ("train", "test"):
            present = {int(layer[index[p]]) for p in parts[name]} - {-1}
            lacking = sorted(wanted - present)
            if target.task == "survival":
                lacking = [v for v in lacking if v == 1]
            if not lacking:
                continue
            what = (
                ", ".join(f"'{target.classes[v]}'" for v in lacking)
                if target.task == "classification"
                else "any event"
            )
            if name == "train":
                raise ConfigError(f"The training part of {where} lacks {what}.")
            notes.append(f"The test part of {where} lacks {what}: no figure for it alone.")
    tested: dict[int, list[str]] = {}
    for fold in folds:
        tested.setdefault(fold.repeat, []).extend(fold.test)
    for repeat, who in tested.items():
        if len(who) != len(set(who)):
            raise ConfigError(f"A patient is tested more than once in repeat {repeat}.")
    return notes


def separate_draws(folds: Sequence[Fold]) -> list[Fold]:
    """Given divisions that test a patient more than once in a repeat become repeats of their own.

    CLAM's ten splits are random draws, not folds: pooling them would count patients several times.
    """
    tested: dict[int, set[str]] = {}
    for fold in folds:
        seen = tested.setdefault(fold.repeat, set())
        if seen & set(fold.test):
            return [Fold(i, 0, f.train, f.test, f.val) for i, f in enumerate(folds)]
        seen |= set(fold.test)
    return list(folds)


def splits_digest(folds: Sequence[Fold]) -> str:
    """sha256 of who is where; stored with each model and checked when it is used."""
    said = [
        [f.repeat, f.fold, sorted(f.train), sorted(f.val), sorted(f.test)]
        for f in sorted(folds, key=lambda f: (f.repeat, f.fold))
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
