"""Open the test folds, once, and write what was found: predictions, metrics, report."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe import __version__
from wsipipe.mil.ensemble import FoldModel
from wsipipe.mil.evaluation import OutOfFold, evaluate
from wsipipe.mil.fold_training import FoldTrainer
from wsipipe.mil.splits import splits_digest
from wsipipe.mil.targets import Target

if TYPE_CHECKING:
    from wsipipe.mil.plan import Plan

__all__ = ["write_results"]

DRAWS = 2000
CAVEAT = (
    "Intervals say how the figures of these models vary with the patients drawn (bootstrap, "
    "95 %); they do not cover the variance of training itself."
)


def write_results(
    plan: Plan,
    trainer: FoldTrainer,
    trained: Mapping[int, FoldModel],
    out: Path,
    failed: Sequence[tuple[str, str]],
    permuted: Mapping[int, FoldModel] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write `predictions.csv`, `metrics.json` and `report.html`; returns the metrics."""
    from wsipipe.report.mil_page import write_mil_page
    from wsipipe.store.publish import publish_text

    logits = _test_logits(plan, trainer, trained)
    document: dict[str, Any] = {
        "metrics": {},
        "targets": {},
        "aggregator": plan.settings.aggregator,
        "n_slides": len(plan.cohort.slide_ids),
        "n_patients": len(trainer.patients),
        "patients_given": plan.cohort.patients_given,
        "folds": len(plan.folds),
        "splits_sha256": splits_digest(plan.folds),
        "identity": plan.identity,
        "features": plan.features,
        "settings": plan.settings.describe(),
        "precision": trainer.precision,
        "tier": trainer.bank.tier,
        "notes": list(plan.notes),
        "caveat": CAVEAT,
        "failed": [{"fold": f, "reason": r} for f, r in failed],
        "wsipipe_version": __version__,
        "unreadable_tiles_left_out": sum(trainer.bank.dropped.values()),
    }
    page: list[dict[str, Any]] = []
    for t, target in enumerate(plan.cohort.targets):
        data, slides = _collect(plan, trainer, trained, logits, t)
        if not data.outputs:
            continue
        figures = evaluate(target, data, draws=DRAWS, seed=plan.settings.seed)
        found: dict[str, Any] = {"task": target.task, "metrics": figures}
        found["baselines"] = _baselines(plan, trainer, target, data, t)
        if target.task == "survival":
            found["survival"] = _survival_extras(plan, trainer, target, trained, logits, data, t)
        if permuted is not None:
            found["permutation"] = _permutation(plan, trainer, permuted, target, t)
        document["targets"][target.name] = found
        name = "predictions.csv" if t == 0 else f"predictions-{_safe(target.name)}.csv"
        publish_text(out / name, _predictions_csv(plan, target, slides, t))
        page.append({"target": target, "data": data, "found": found})
    if page:
        first = document["targets"][plan.cohort.targets[0].name]
        document["metrics"] = first["metrics"]
        document["task"] = first["task"]
    publish_text(out / "metrics.json", json.dumps(document, indent=1) + "\n")
    write_mil_page(out / "report.html", document, page, plan, trainer, trained)
    for name, value in list(document["metrics"].items())[:1]:
        say(f"{name}: {value['pooled']} ({value['ci_low']} to {value['ci_high']})")
    return document


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _test_logits(
    plan: Plan, trainer: FoldTrainer, trained: Mapping[int, FoldModel]
) -> dict[int, dict[int, NDArray[np.float64]]]:
    """fold -> bag -> (members, all columns). Each bag is read once for all folds that test it."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for k in trained:
        for bag in trainer.bags_of(plan.folds[k].test).tolist():
            wanted[bag].append(k)
    for model in trained.values():
        model.to(trainer.device)
    out: dict[int, dict[int, NDArray[np.float64]]] = {k: {} for k in trained}
    for bag in sorted(wanted):
        x = trainer.bags.get(bag)
        for k in wanted[bag]:
            out[k][bag], _ = trained[k].forward_bag(x)
    return out


def _collect(
    plan: Plan,
    trainer: FoldTrainer,
    trained: Mapping[int, FoldModel],
    logits: Mapping[int, Mapping[int, NDArray[np.float64]]],
    t: int,
) -> tuple[OutOfFold, list[tuple[int, int, int, NDArray[np.float64]]]]:
    """Out-of-fold outputs by patient (mean of the patient's bags), and by bag."""
    y = trainer.patient_y[:, t]
    tested = {p for k in trained for p in plan.folds[k].test}
    judged = np.array([p in tested for p in trainer.patients])
    labelled = np.flatnonzero(~np.isnan(y[:, 0]) & judged)
    place = {trainer.patients[i]: row for row, i in enumerate(labelled)}
    outputs: dict[int, NDArray[np.float64]] = {}
    fold_of: dict[int, NDArray[np.int64]] = {}
    cuts: dict[str, dict[int, NDArray[np.float64]]] = defaultdict(dict)
    slides = []
    for k, model in sorted(trained.items()):
        fold = plan.folds[k]
        sums: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for bag, z in sorted(logits[k].items()):
            said = model.outputs(z[:, None], t)[0]
            sums[trainer.owners[bag]].append(said)
            slides.append((fold.repeat, fold.fold, bag, said))
        for patient, said_by_bag in sums.items():
            if patient not in place:
                continue
            row, mean = place[patient], np.mean(said_by_bag, axis=0)
            shape = (len(labelled), len(mean))
            outputs.setdefault(fold.repeat, np.full(shape, np.nan))[row] = mean
            fold_of.setdefault(fold.repeat, np.full(len(labelled), -1))[row] = fold.fold
            for name, cut in model.info["calibration"][t].get("thresholds", {}).items():
                cuts[name].setdefault(fold.repeat, np.full(len(labelled), np.nan))[row] = cut
    names = tuple(trainer.patients[i] for i in labelled)
    laid = tuple((f.repeat, f.fold) for f in plan.folds)
    return OutOfFold(names, y[labelled], outputs, fold_of, cuts, laid), slides


def _predictions_csv(
    plan: Plan,
    target: Target,
    slides: Sequence[tuple[int, int, int, NDArray[np.float64]]],
    t: int,
) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    head = ["slide_id", "patient_id", "fold", "repeat"]
    if target.task == "classification":
        head += ["y_true", "y_pred", *(f"p_{c}" for c in target.classes)]
    elif target.task == "regression":
        head += ["y_true", "y_pred"]
    else:
        head += ["time", "event", "risk"]
    out.writerow(head)
    cohort = plan.cohort
    rows: dict[str, list[int]] = defaultdict(list)
    for i, (slide, patient) in enumerate(zip(cohort.slide_ids, cohort.patients, strict=True)):
        rows[patient if plan.slides_together else slide].append(i)
    keys = cohort.patient_list if plan.slides_together else cohort.slide_ids
    for repeat, fold, bag, said in slides:
        for i in rows[keys[bag]]:
            line: list[Any] = [cohort.slide_ids[i], cohort.patients[i], fold, repeat]
            y = cohort.y[i, t]
            missing = bool(np.isnan(y[0]))
            if target.task == "classification":
                line.append("" if missing else target.classes[int(y[0])])
                line.append(target.classes[int(said.argmax())])
                line += [f"{p:.6g}" for p in said]
            elif target.task == "regression":
                line += ["" if missing else f"{y[0]:.8g}", f"{said[0]:.8g}"]
            else:
                line += ["" if missing else f"{y[0]:.8g}", "" if missing else int(y[1])]
                line.append(f"{said[0]:.8g}")
            out.writerow(line)
    return text.getvalue()


def _baselines(
    plan: Plan, trainer: FoldTrainer, target: Target, data: OutOfFold, t: int
) -> dict[str, Any]:
    """What a model would reach that never looks at tissue: slides, tiles, and site alone."""
    from wsipipe.mil.metrics.classification import auroc

    if target.task != "classification" or len(target.classes) != 2:
        return {}
    truth = data.y[:, 0] == 1
    ones = np.ones((1, len(truth)))
    tiles: dict[str, int] = defaultdict(int)
    slides: dict[str, int] = defaultdict(int)
    for slide, patient in zip(plan.cohort.slide_ids, plan.cohort.patients, strict=True):
        tiles[patient] += trainer.bank.rows(slide)
        slides[patient] += 1
    out: dict[str, Any] = {}
    for name, by in (("tile_count_auroc", tiles), ("slide_count_auroc", slides)):
        value = float(auroc(np.array([by[p] for p in data.patients], float), truth, ones)[0])
        out[name] = round(max(value, 1 - value), 4)
    sites = plan.cohort.patient_sites()
    if sites is not None:
        at = dict(zip(trainer.patients, sites, strict=True))
        repeat = min(data.fold_of)
        part = data.fold_of[repeat]
        rate = np.full(len(truth), truth.mean())
        for i, patient in enumerate(data.patients):
            # As a model would: the rate of the site among patients of the other folds.
            same = [at[p] == at[patient] for p in data.patients]
            others = np.array(same) & (part != part[i])
            rate[i] = (truth[others].sum() + truth.mean()) / (others.sum() + 1)
        areas = []
        for k in sorted(set(part.tolist()) - {-1}):
            rows = part == k
            value = float(auroc(rate[rows], truth[rows], np.ones((1, int(rows.sum()))))[0])
            areas += [value] if np.isfinite(value) else []
        out["site_only_auroc"] = round(float(np.mean(areas)), 4) if areas else None
    return out


def _by_patient(
    logits: Mapping[int, NDArray[np.float64]], trainer: FoldTrainer, patients: Sequence[str]
) -> list[NDArray[np.float64]]:
    """(members, bags, all columns) of each patient's bags."""
    bags: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for bag, z in sorted(logits.items()):
        bags[trainer.owners[bag]].append(z)
    return [np.stack(bags[patient], axis=1) for patient in patients]


def _survival_extras(
    plan: Plan,
    trainer: FoldTrainer,
    target: Target,
    trained: Mapping[int, FoldModel],
    logits: Mapping[int, Mapping[int, NDArray[np.float64]]],
    data: OutOfFold,
    t: int,
) -> dict[str, Any]:
    """IPCW-C and integrated Brier by fold; log-rank at the median risk of each training part."""
    from wsipipe.mil.metrics.survival import (
        breslow_survival,
        discrete_survival,
        integrated_brier,
        ipcw_concordance,
        log_rank,
    )

    row_of = {p: i for i, p in enumerate(data.patients)}
    high = {r: np.zeros(len(data.patients), dtype=bool) for r in data.outputs}
    uno, ibs = [], []
    for k, model in sorted(trained.items()):
        fold = plan.folds[k]
        rows = np.array([row_of[p] for p in fold.test if p in row_of])
        own = [p for p in (*fold.train, *fold.val) if p in row_of]
        train_rows = np.array([row_of[p] for p in own])
        time, event = data.y[:, 0], data.y[:, 1]
        risk = data.outputs[fold.repeat][rows, 0]
        bags = trainer.bags_of(own)
        by_patient: dict[str, list[float]] = defaultdict(list)
        for bag in bags.tolist():
            z, _ = model.forward_bag(trainer.bags.get(bag))
            by_patient[trainer.owners[bag]].append(float(model.outputs(z[:, None], t)[0, 0]))
        train_risk = np.array([np.mean(by_patient[p]) for p in own])
        high[fold.repeat][rows] = risk > np.median(train_risk)
        known = (time[train_rows], event[train_rows])
        uno.append(ipcw_concordance(*known, time[rows], event[rows], risk))
        seen = time[rows][event[rows] == 1]
        if len(seen) >= 3:
            at = np.unique(np.quantile(seen, np.linspace(0.1, 0.9, 15)))
            at = at[(at > time[rows].min()) & (at < time[rows].max())]
            if target.loss == "cox":
                # The model's own log hazards, not those in units of their spread.
                scale = model.info["calibration"][t]["scale"]
                curves = breslow_survival(*known, train_risk * scale, risk * scale, at)
            else:
                edges = np.array(model.info["targets"][t]["edges"])
                parts = _by_patient(logits[k], trainer, [data.patients[row] for row in rows])
                last = float(known[0].max())
                curves = np.stack(
                    [
                        discrete_survival(model.hazards(z, t), edges, last, at).mean(axis=0)
                        for z in parts
                    ]
                )
            if len(at) >= 2:
                ibs.append(integrated_brier(*known, time[rows], event[rows], curves, at))
    out: dict[str, Any] = {
        "ipcw_c_per_fold": [_rounded(v) for v in uno],
        "integrated_brier_per_fold": [_rounded(v) for v in ibs],
        "high_risk": {},
    }
    for repeat, flags in high.items():
        tested = data.fold_of[repeat] >= 0
        p = log_rank(data.y[tested, 0], data.y[tested, 1], flags[tested])
        out["high_risk"][str(repeat)] = {
            "log_rank_p": _rounded(p, 8),
            "patients": [int(v) for v in np.flatnonzero(flags & tested)],
        }
    for name, values in (("ipcw_c", uno), ("integrated_brier", ibs)):
        finite = [v for v in values if np.isfinite(v)]
        out[name] = _rounded(float(np.mean(finite))) if finite else None
    return out


def _rounded(value: float, digits: int = 6) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None


def _permutation(
    plan: Plan,
    trainer: FoldTrainer,
    permuted: Mapping[int, FoldModel],
    target: Target,
    t: int,
) -> dict[str, Any]:
    """Figures of models that learned shuffled labels, held against the shuffled labels."""
    rng = np.random.default_rng([plan.settings.seed, 1])
    true_y = trainer.patient_y
    trainer.patient_y = true_y[rng.permutation(len(true_y))]
    try:
        logits = _test_logits(plan, trainer, permuted)
        data, _ = _collect(plan, trainer, permuted, logits, t)
    finally:
        trainer.patient_y = true_y
    figures = evaluate(target, data, draws=DRAWS, seed=plan.settings.seed)
    name = {"classification": "auroc", "regression": "r2", "survival": "c_index"}[target.task]
    found = figures[name]
    return {"metric": name, **{k: found[k] for k in ("pooled", "ci_low", "ci_high")}}
