"""`wsipipe train`: audited cross-validation from feature files and labels to figures.

The order is fixed. Labels and features are checked; folds are laid and audited; every choice (when
to stop, which grid point, thresholds, calibration) is made on inner splits of the training part, by
models that hold no test label; the models are saved; only then are the test folds read, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsipipe.errors import ConfigError, MissingExtraError
from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank, check_settings
from wsipipe.mil.cohort import Cohort, join_cohort, read_table
from wsipipe.mil.fitting import pick_device
from wsipipe.mil.fold_training import FoldTrainer
from wsipipe.mil.leaks import find_duplicates, refuse_duplicates, scan_label_columns
from wsipipe.mil.plan import Plan, claim_folder, run_identity
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.results import write_results
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.sites import largest_deviation
from wsipipe.mil.split_files import read_splits
from wsipipe.mil.splits import Fold, check_folds, make_folds, separate_draws, strata
from wsipipe.mil.targets import Target, is_missing, make_targets

__all__ = ["Plan", "TrainResult", "train"]

Say = Callable[[str], None]
# What torch says of sizes and counts that do not fit together.
_MISFITS = (
    ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        out: Its folder.
        metrics: Content of `metrics.json`.
        failed: Folds that could not be trained, with the reason.
    """

    out: Path
    metrics: dict[str, Any]
    failed: tuple[tuple[str, str], ...] = ()


def train(
    features: str | Path,
    labels: str | Path,
    *,
    target: str | Sequence[str] = (),
    time: str | None = None,
    event: str | None = None,
    task: str = "auto",
    aggregator: str = "abmil",
    folds: int = 5,
    repeats: int = 1,
    splits: str | Path | None = None,
    monte_carlo: float = 0.0,
    site_preserved: bool = False,
    slides_together: bool = False,
    standardize: bool = False,
    seed: int = 0,
    out: str | Path = "wsipipe-mil",
    device: str = "auto",
    feature_key: str | None = None,
    strict: bool = False,
    recompute: bool = False,
    permutation_run: bool = False,
    settings: TrainSettings | None = None,
    say: Say | None = None,
    elsewhere: Callable[[FoldTrainer, list[int]], dict[int, str]] | None = None,
) -> TrainResult:
    """Train and evaluate by cross-validation. See `wsipipe train --help`.

    Args:
        features: Folder of feature files.
        labels: .csv with `slide_id`; optional `patient_id`, `site`.
        target: Column(s) to predict; or `time` and `event` for survival.
        splits: Given folds (file or CLAM folder) instead of drawn ones.
        monte_carlo: Share tested in each of `folds` random draws instead of k folds.
        site_preserved: No site on both sides of a fold.
        slides_together: One bag a patient instead of one a slide.
        recompute: Replace an earlier run of other settings.
        permutation_run: Train once more with shuffled labels: the figures must be chance.
        settings: How to train; `aggregator`, `standardize` and `seed` here win over it.
        say: Receives progress, a sentence at a time.
        elsewhere: Has folds trained by other processes; see `FoldTrainer.run`.

    Raises:
        ConfigError: Anything wrong with labels, features or folds; nothing was trained.
        MissingExtraError: The packages of the extra `mil` are not installed.
    """
    _need_packages()
    say = say or (lambda _text: None)
    base = settings or TrainSettings()
    chosen = TrainSettings(
        **{
            **base.describe(),
            "aggregator": aggregator,
            "standardize": standardize or base.standardize,
            "seed": seed,
        }
    )
    names = [target] if isinstance(target, str) else list(target)
    rows = read_table(labels)
    targets = make_targets(
        rows, names, task=task, time=time, event=event, survival_loss=chosen.survival_loss
    )
    files = find_bags(features, key=feature_key)
    cohort = join_cohort(rows, files, targets, strict=strict, labels_name=str(labels))
    cohort = cohort.without_absent_classes()
    targets = cohort.targets
    common = check_settings(cohort.files.values())
    laid = _lay_folds(cohort, folds, repeats, splits, monte_carlo, site_preserved, seed)
    notes = [*cohort.notes, *_about_files(cohort)]
    if site_preserved:
        notes.append(_about_sites(cohort, laid))
    untested = set(cohort.patient_list) - {p for f in laid for p in f.test}
    if untested:
        notes.append(f"{len(untested)} patient(s) are in no test part: no prediction for them.")
    notes += check_folds(
        laid,
        cohort.patient_list,
        cohort.patient_y()[:, 0],
        targets[0],
        cohort.patient_sites() if site_preserved else None,
    )
    place = pick_device(device)
    _try_models(chosen, int(common["dim"]), targets)
    out = Path(out)
    bank = FeatureBank(cohort.files, device=place, cache=out / "cache")
    _audit(cohort, bank, laid)
    plan = Plan(
        cohort,
        tuple(laid),
        chosen,
        common,
        tuple(notes),
        run_identity(cohort, laid, chosen, common, slides_together),
        site_preserved,
        slides_together,
    )
    for note in notes:
        say(note)
    claim_folder(out, plan, recompute)
    trainer = FoldTrainer(plan, bank, out, place, say)
    trained, failed = trainer.run(elsewhere)
    permuted = trainer.permuted() if permutation_run else None
    metrics = write_results(plan, trainer, trained, out, failed, permuted, say)
    return TrainResult(out, metrics, tuple(failed))


def _try_models(settings: TrainSettings, in_dim: int, targets: Sequence[Target]) -> None:
    """Use every model of the grid once: a setting that does not fit is said before any work."""
    n_outputs = sum(t.width for t in targets)
    for point in settings.points:
        tried = settings.with_values(point)
        try:
            model = create_aggregator(
                tried.aggregator, in_dim=in_dim, n_classes=n_outputs, **tried.aggregator_settings
            )
            model.check_targets(targets)
            model.forward_bags([torch.zeros(2, in_dim)])
        except _MISFITS as error:
            raise ConfigError(
                f"Aggregator '{tried.aggregator}' cannot be made with "
                f"{tried.aggregator_settings}: {error}"
            ) from error


def _need_packages() -> None:
    import importlib.util

    wanted = {"sklearn": "scikit-learn", "lifelines": "lifelines", "sksurv": "scikit-survival"}
    lacking = [p for m, p in wanted.items() if importlib.util.find_spec(m) is None]
    if lacking:
        raise MissingExtraError("mil", "wsipipe train", lacking)


def _lay_folds(
    cohort: Cohort,
    folds: int,
    repeats: int,
    splits: str | Path | None,
    monte_carlo: float,
    site_preserved: bool,
    seed: int,
) -> list[Fold]:
    if site_preserved:
        _check_sites(cohort, monte_carlo)
    if splits is None:
        return make_folds(
            cohort.patient_list,
            cohort.patient_y()[:, 0],
            cohort.targets[0],
            folds=folds,
            repeats=repeats,
            seed=seed,
            sites=cohort.patient_sites() if site_preserved else None,
            monte_carlo=monte_carlo,
        )
    patient_of = dict(zip(cohort.slide_ids, cohort.patients, strict=True))
    given = read_splits(splits, patient_of)
    placed = {p for f in given for p in (*f.train, *f.val, *f.test)}
    if not placed:
        raise ConfigError(f"{splits}: none of its slides or patients is in the labels.")
    return separate_draws(given)


def _check_sites(cohort: Cohort, monte_carlo: float) -> None:
    if cohort.sites is None:
        raise ConfigError("--site-preserved needs a column 'site' in the labels.")
    if monte_carlo:
        raise ConfigError("--monte-carlo draws patients: it does not go with --site-preserved.")
    lacking = [s for s, at in zip(cohort.slide_ids, cohort.sites, strict=True) if is_missing(at)]
    if lacking:
        raise ConfigError(
            f"--site-preserved: {len(lacking)} slide(s) have no site: {', '.join(lacking[:5])}.",
            "Fill the column 'site', or leave these slides out of the labels.",
        )


def _about_sites(cohort: Cohort, folds: Sequence[Fold]) -> str:
    layer = strata(cohort.patient_y()[:, 0], cohort.targets[0])
    place = {p: i for i, p in enumerate(cohort.patient_list)}
    worst = 0.0
    for repeat in {f.repeat for f in folds}:
        own = [f for f in folds if f.repeat == repeat]
        part = np.concatenate([np.full(len(f.test), k) for k, f in enumerate(own)])
        rows = [place[p] for f in own for p in f.test]
        worst = max(worst, largest_deviation(part, layer[rows], len(own)))
    return (
        "Folds keep sites apart; the count of a class in a fold is up to "
        f"{worst:.0%} away from an equal share."
    )


def _about_files(cohort: Cohort) -> list[str]:
    notes = []
    silent = [s for s, f in cohort.files.items() if not f.settings]
    if silent:
        notes.append(
            f"{len(silent)} of {len(cohort.files)} feature files do not say their encoder, mpp and "
            "tile size; that they agree is taken on trust."
        )
    return notes


def _audit(cohort: Cohort, bank: FeatureBank, folds: Sequence[Fold]) -> None:
    """NaN, copies on both sides, columns that are the label: refused before training."""
    bad = bank.check()
    if bad:
        raise ConfigError(
            f"{len(bad)} feature file(s) hold NaN or infinite values: {', '.join(bad[:5])}.",
            "Extract them again, or leave the slides out of the labels.",
        )
    gone = [s for s in cohort.slide_ids if bank.rows(s) == 0]
    if gone:
        raise ConfigError(f"No readable tile in: {', '.join(gone[:5])}.", "Leave them out.")
    patient_of = dict(zip(cohort.slide_ids, cohort.patients, strict=True))
    refuse_duplicates(find_duplicates(cohort.files), patient_of, folds)
    for t, target in enumerate(cohort.targets):
        if target.task != "classification":
            continue
        labels = np.nan_to_num(cohort.y[:, t, 0], nan=-1).astype(np.int64)
        leaks = scan_label_columns(bank, cohort.slide_ids, labels)
        if leaks:
            raise ConfigError(
                f"Feature column(s) {', '.join(str(x.column) for x in leaks[:5])} are constant "
                f"within bags and say the label of '{target.name}' "
                f"({leaks[0].agreement:.1%} of bags): the label has leaked into the features.",
                "Remove the column(s); any figure from these files would be worthless.",
            )
