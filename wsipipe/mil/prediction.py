"""`wsipipe predict`: trained folds on slides they have not seen."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank, all_finite
from wsipipe.mil.cohort import join_cohort, read_table
from wsipipe.mil.ensemble import Ensemble, load_ensemble
from wsipipe.mil.evaluation import OutOfFold, evaluate
from wsipipe.mil.fitting import pick_device
from wsipipe.mil.targets import Target

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

    Raises:
        ConfigError: Features of another kind, or an outside cohort that is not outside.
    """
    from wsipipe.store.publish import publish_text

    say = say or (lambda _text: None)
    ensemble = load_ensemble(model)
    files = find_bags(features, key=feature_key)
    for note in ensemble.check_features(files.values()):
        say(note)
    seen = ensemble.seen(list(files))
    if labels is not None:
        _refuse_overlap(ensemble, labels, seen)
    elif seen:
        say(f"{len(seen)} slide(s) of the training cohort: left to the folds that held them out.")
    place = pick_device(device)
    for fold in ensemble.folds:
        fold.to(place)
    bank = FeatureBank(files, device="cpu", budget_bytes=0)
    rows, skipped = [], []
    targets = [Target.from_description(t) for t in ensemble.info["targets"]]
    outputs: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for slide_id in files:
        bag = bank.array(slide_id)
        if len(bag) == 0:
            skipped.append(slide_id)
            continue
        if not all_finite(bag):
            raise ConfigError(f"{files[slide_id].path}: NaN in the features of readable tiles.")
        for t, target in enumerate(targets):
            with torch.no_grad():
                chosen, _ = ensemble.folds_for(slide_id)
                said, spread, _ = Ensemble(chosen).predict(bag, t)
            outputs[slide_id, t] = said
            rows.append(_row(slide_id, target, said, spread, len(bag), len(targets) > 1))
    for slide_id in skipped:
        say(f"{slide_id}: no readable tile, no prediction.")
    metrics = _external(ensemble, targets, labels, files, outputs) if labels is not None else None
    if out is not None:
        publish_text(Path(out), _csv(rows))
    return PredictResult(tuple(rows), tuple(skipped), tuple(seen), metrics)


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


def _external(
    ensemble: Ensemble,
    targets: list[Target],
    labels: str | Path,
    files: dict[str, Any],
    outputs: dict[tuple[str, int], Any],
) -> dict[str, Any]:
    """Figures on the outside cohort, by patient, at the frozen thresholds."""
    found: dict[str, Any] = {}
    for t, target in enumerate(targets):
        cohort = join_cohort(
            read_table(labels),
            {s: f for s, f in files.items() if (s, t) in outputs},
            [target],
            labels_name=str(labels),
        )
        y = cohort.patient_y()[:, 0]
        if target.task == "classification" and np.isnan(y).any():
            raise ConfigError(f"{labels}: a class of '{target.name}' that the model does not know.")
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
