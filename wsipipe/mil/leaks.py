"""Signs that a figure would be too good: copied files, and columns that are the label.

Two published MIL papers trained on distributions of MUSK and FOX whose last column is the bag's
label; the scan here refuses such data by what it looks for, not by name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import BagFile, open_rows
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.splits import Fold

__all__ = ["Leak", "find_duplicates", "refuse_duplicates", "scan_label_columns"]

# Share of tiles, and of bags, that must agree before a column counts as the label itself: the
# column that leaked into ELEPHANT equals the label in 99.6 % of the instances.
_SAME = 0.99
_FEWEST_BAGS = 8


@dataclass(frozen=True)
class Leak:
    """A column of the features that says the label.

    Attributes:
        column: Index into the features.
        constant: Share of tiles that hold their bag's median.
        agreement: Share of bags whose median lies at their class's value.
    """

    column: int
    constant: float
    agreement: float


def find_duplicates(files: Mapping[str, BagFile]) -> list[tuple[str, ...]]:
    """Groups of slides with equal features, whatever the layout. Only files of one size are read.

    Equal means equal as float16: a tool that stores float32 and one that stores float16 make
    different bytes of the same slide.
    """
    by_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    for slide_id, file in files.items():
        by_size[file.rows, file.dim].append(slide_id)
    groups: dict[str, list[str]] = defaultdict(list)
    for alike in by_size.values():
        if len(alike) > 1:
            for slide_id in alike:
                groups[_content_digest(files[slide_id])].append(slide_id)
    return [tuple(sorted(g)) for g in groups.values() if len(g) > 1]


def _content_digest(file: BagFile) -> str:
    digest = hashlib.sha256()
    rows = open_rows(file)
    with np.errstate(over="ignore"):  # beyond float16: infinite in both
        for start in range(0, len(rows), 8192):
            # + 0: -0 and 0 are one value.
            digest.update((rows[start : start + 8192].astype(np.float16) + 0).tobytes())
    return digest.hexdigest()


def refuse_duplicates(
    duplicates: Sequence[tuple[str, ...]], patient_of: Mapping[str, str], folds: Sequence[Fold]
) -> None:
    """Raise where equal features stand on both sides of a division.

    Raises:
        ConfigError: Naming the slides.
    """
    for group in duplicates:
        owners = {patient_of[s] for s in group}
        for fold in folds:
            trained = owners & {*fold.train, *fold.val}
            tested = owners & set(fold.test)
            if trained and tested:
                raise ConfigError(
                    f"Slides {', '.join(repr(s) for s in group)} have equal features and stand in "
                    f"train and test of repeat {fold.repeat}, fold {fold.fold}.",
                    "Remove the copy, or give both the same patient_id.",
                )


def scan_label_columns(
    bank: FeatureBank, slide_ids: Sequence[str], labels: NDArray[np.int64]
) -> list[Leak]:
    """Columns that are constant within bags and one to one with the label.

    A column is reported if 99 % of tiles hold their bag's median of it, and the medians of 99 % of
    the bags lie at their own class's value and at no other (within 2 % of the column's range).

    Args:
        labels: (S,) class of each slide, -1 = unknown.
    """
    medians, held, weight, y = [], [], [], []
    for slide_id, label in zip(slide_ids, labels, strict=True):
        if label < 0:
            continue
        # An even sample tells as much: 256 tiles of 15,000 take 1/60 of the time.
        x = bank.thin(slide_id, 256).float()
        middle = x.median(dim=0).values
        medians.append(middle.cpu().numpy())
        held.append(
            ((x - middle).abs() <= 1e-3 * (1e-3 + middle.abs())).float().mean(0).cpu().numpy()
        )
        weight.append(len(x) if len(x) > 1 else 0)
        y.append(int(label))
    if len(y) < _FEWEST_BAGS:
        return []
    level, truth = np.array(medians, dtype=np.float64), np.array(y)
    # A bag of one tile is constant in every column and says nothing.
    weights = np.array(weight, dtype=np.float64)
    weights = np.ones(len(y)) if weights.sum() == 0 else weights
    constant = np.average(np.array(held), axis=0, weights=weights)
    classes = np.unique(truth)
    centres = np.array([np.median(level[truth == c], axis=0) for c in classes])
    spread = np.ptp(level, axis=0)
    near = np.abs(level[:, None, :] - centres[None]) <= 0.02 * spread
    own = near[np.arange(len(y)), np.searchsorted(classes, truth)]
    agreement = (own & (near.sum(axis=1) == 1)).mean(axis=0)
    columns = np.flatnonzero((constant >= _SAME) & (agreement >= _SAME) & (spread > 0))
    return [Leak(int(c), float(constant[c]), float(agreement[c])) for c in columns]
