"""`wsipipe predict`: trained folds on slides they have not seen."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import BagFile, find_bags
from wsipipe.mil.bank import FeatureBank, all_finite
from wsipipe.mil.cohort import join_cohort, match_slides, read_table
from wsipipe.mil.ensemble import Ensemble, load_ensemble
from wsipipe.mil.evaluation import OutOfFold, evaluate
from wsipipe.mil.fitting import pick_device
from wsipipe.mil.targets import Target, is_missing

__all__ = ["PredictResult", "load_ensemble", "predict"]


@dataclass(frozen=True)
class PredictResult:
    """What was predicted.

    Attributes:
        rows: One dictionary a slide and target, as in the file.
        skipped: Slides without a readable tile.
        seen: Slides of the training cohort; folds that held them out spoke about them.
        metrics: Figures at frozen thresholds, where labels were given.
    """

    rows: tuple[dict[str, Any], ...]
    skipped: tuple[str, ...]
    seen: tuple[str, ...]
    metrics: dict[str, Any] | None = None


def predict(
    model: str | Path,
    features: str | Path,
    out: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    patients: str | Path | None = None,
    feature_key: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> PredictResult:
    """Predict every slide of a folder with the mean of all trained folds.

    Args:
        model: OUT of `wsipipe train`, or one fold of it.
        features: Folder of feature files of the model's encoder, mpp and tile size.
        out: .csv to write: `slide_id,y_pred,p_<class>...` (or `risk`), `disagreement` (spread of
            the folds), `tiles`.
        labels: Evaluate on an outside cohort: thresholds and calibration stay as they are, and
            patients of the training cohort are refused.
        patients: .csv with `slide_id` and `patient_id`, for a model that was trained with
            `slides_together`: the slides of a patient are one bag, and each is given the patient's
            prediction. Where `labels` name patients, they need not be given again.

    Raises:
        ConfigError: Features of another kind, an outside cohort that is not outside, or `patients`
            for a model that looks at single slides.
    """
    from wsipipe.store.publish import publish_text

    say = say or (lambda _text: None)
    ensemble = load_ensemble(model)
    files = find_bags(features, key=feature_key)
    for note in ensemble.check_features(files.values()):
        say(note)
    seen = ensemble.seen(list(files))
    targets = [Target.from_description(t) for t in ensemble.info["targets"]]
    if labels is not None:
        _refuse_overlap(ensemble, labels, seen)
        _check_labels(targets, labels, files)
    held_out = sum(ensemble.folds_for(s)[1] for s in seen)
    if held_out:
        say(f"{held_out} slide(s) of the training cohort: left to the folds that held them out.")
    if held_out < len(seen):
        say(f"{len(seen) - held_out} slide(s) that every fold learned from: fit, not prediction.")
    place = pick_device(device)
    for fold in ensemble.folds:
        fold.to(place)
    bank = FeatureBank(files, device="cpu", budget_bytes=0)
    rows, skipped = [], []
    outputs: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for members in _bags(ensemble, files, patients, labels, say):
        parts = {s: bank.array(s) for s in members}
        skipped += [s for s, part in parts.items() if len(part) == 0]
        parts = {s: part for s, part in parts.items() if len(part)}
        for slide_id, part in parts.items():
            if not all_finite(part):
                raise ConfigError(f"{files[slide_id].path}: NaN in the features of readable tiles.")
        if not parts:
            continue
        bag = next(iter(parts.values())) if len(parts) == 1 else np.concatenate([*parts.values()])
        speakers = Ensemble(ensemble.folds_for(*parts)[0])
        for t, target in enumerate(targets):
            with torch.no_grad():
                said, spread, _ = speakers.predict(bag, t)
            for slide_id, part in parts.items():
                outputs[slide_id, t] = said
                rows.append(_row(slide_id, target, said, spread, len(part), len(targets) > 1))
    place_of = {s: i for i, s in enumerate(files)}
    rows.sort(key=lambda r: place_of[r["slide_id"]])
    for slide_id in skipped:
        say(f"{slide_id}: no readable tile, no prediction.")
    if out is not None:
        publish_text(Path(out), _csv(rows))
    metrics = None
    if labels is not None:
        metrics = _external(ensemble, targets, labels, files, outputs, say)
    return PredictResult(tuple(rows), tuple(skipped), tuple(seen), metrics)


def _bags(
    ensemble: Ensemble,
    files: Mapping[str, BagFile],
    patients: str | Path | None,
    labels: str | Path | None,
    say: Callable[[str], None],
) -> list[tuple[str, ...]]:
    """What is predicted as one: a slide, or all slides of a patient, in the order of the table."""
    if not ensemble.slides_together:
        if patients is not None:
            raise ConfigError(
                "--patients: this model looks at single slides.",
                "Leave it out, or train with --slides-together.",
            )
        return [(s,) for s in files]
    table = patients or labels
    rows = [] if table is None else read_table(table)
    if patients is not None and not {"slide_id", "patient_id"} <= set(rows[0]):
        raise ConfigError(f"{patients}: no columns slide_id and patient_id.")
    named = {r["slide_id"]: r["patient_id"] for r in rows if r.get("patient_id")}
    match = match_slides(list(named), files)
    together: dict[str, list[str]] = defaultdict(list)
    for name, slide_id in match.items():
        together[named[name]].append(slide_id)
    alone = [(s,) for s in files if s not in set(match.values())]
    if alone:
        say(
            "The model was judged on all slides of a patient as one bag; the patients of "
            f"{len(alone)} slide(s) are not known (--patients), each speaks for itself."
        )
    return [*map(tuple, together.values()), *alone]


def _row(
    slide_id: str, target: Target, said: Any, spread: float, tiles: int, several: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"slide_id": slide_id}
    if several:
        row["target"] = target.name
    if target.task == "classification":
        row["y_pred"] = target.classes[int(said.argmax())]
        row |= {f"p_{c}": f"{p:.6g}" for c, p in zip(target.classes, said, strict=True)}
    elif target.task == "regression":
        row["y_pred"] = f"{said[0]:.8g}"
    else:
        row["risk"] = f"{said[0]:.8g}"
    return {**row, "disagreement": f"{spread:.4g}", "tiles": tiles}


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(k for r in rows for k in r)) or ["slide_id"]
    out = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    out.writeheader()
    out.writerows(rows)
    return text.getvalue()


def _refuse_overlap(ensemble: Ensemble, labels: str | Path, seen: list[str]) -> None:
    rows = read_table(labels)
    names = {r[c] for r in rows for c in ("patient_id", "slide_id") if r.get(c)}
    shared = sorted({*ensemble.seen(sorted(names)), *seen})
    if shared:
        raise ConfigError(
            f"{len(shared)} patient(s) or slide(s) of this cohort took part in training: "
            f"{', '.join(shared[:5])}.",
            "An outside cohort shares nobody with the training cohort: leave them out.",
        )


def _check_labels(targets: list[Target], labels: str | Path, files: Mapping[str, BagFile]) -> None:
    """What cannot be judged is said before anything is predicted."""
    rows = read_table(labels)
    if not any(set(t.columns) <= set(rows[0]) for t in targets):
        raise ConfigError(
            f"{labels}: none of the model's targets is a column of it.",
            f"The model says {', '.join(t.name for t in targets)}; there are {', '.join(rows[0])}.",
        )
    match = match_slides([r.get("slide_id", "") for r in rows], files)
    for target in targets:
        if target.task != "classification":
            continue
        texts = {r.get(target.name, "") for r in rows if r.get("slide_id") in match}
        strange = sorted(x for x in texts - {""} if not is_missing(x) and not target.knows(x))
        if strange:
            raise ConfigError(
                f"{labels}: {', '.join(map(repr, strange[:5]))} is no class of '{target.name}' "
                f"that the model knows ({', '.join(target.classes)}).",
                "Spell classes as in training; leave labels of other classes empty.",
            )


def _external(
    ensemble: Ensemble,
    targets: list[Target],
    labels: str | Path,
    files: dict[str, Any],
    outputs: dict[tuple[str, int], Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Figures on the outside cohort, by patient, at the frozen thresholds."""
    found: dict[str, Any] = {}
    columns = set(read_table(labels)[0])
    for t, target in enumerate(targets):
        if not set(target.columns) <= columns:
            say(f"{labels}: no column '{target.name}', not judged.")
            continue
        cohort = join_cohort(
            read_table(labels),
            {s: f for s, f in files.items() if (s, t) in outputs},
            [target],
            labels_name=str(labels),
        )
        for note in cohort.notes:
            say(note if len(targets) == 1 else f"{target.name}: {note}")
        y = cohort.patient_y()[:, 0]
        said = np.array(
            [
                np.mean(
                    [
                        outputs[s, t]
                        for s, p in zip(cohort.slide_ids, cohort.patients, strict=True)
                        if p == patient
                    ],
                    axis=0,
                )
                for patient in cohort.patient_list
            ]
        )
        cuts = [f.info["calibration"][t].get("thresholds", {}) for f in ensemble.folds]
        thresholds = {
            name: {0: np.full(len(y), float(np.mean([c[name] for c in cuts])))} for name in cuts[0]
        }
        data = OutOfFold(
            cohort.patient_list, y, {0: said}, {0: np.zeros(len(y), dtype=np.int64)}, thresholds
        )
        found[target.name] = evaluate(target, data)
    return found
