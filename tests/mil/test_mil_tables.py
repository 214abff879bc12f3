"""Tables as people and spreadsheets make them: read as they mean, or refused by line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.mil.cohort import read_table
from wsipipe.mil.crossval import train
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import make_targets

QUICK = TrainSettings(
    aggregator_settings={"hidden": 8, "attention_dim": 4}, epochs=2, lr=1e-2, inner=1
)


def _train(folder: Path, out: str = "out", **more):
    more = {"target": "label", "folds": 3, "settings": QUICK, **more}
    return train(folder / "features", folder / "labels.csv", out=folder / out, **more)


def _relabel(folder: Path, change):
    path = folder / "labels.csv"
    with path.open(newline="") as f:
        rows = [change(r) for r in csv.DictReader(f)]
    with path.open("w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def test_a_spreadsheet_leaves_lines_without_values(tmp_path):
    text = "\ufeffslide_id;label;\na;1;\nb;0\n;;\n \t;;\n"
    (tmp_path / "t.csv").write_text(text.replace("\t", " "), encoding="utf-8")
    rows = read_table(tmp_path / "t.csv")
    assert [(r["slide_id"], r["label"]) for r in rows] == [("a", "1"), ("b", "0")]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("slide_id,note,label\na,x,1\nb,x, y,0\n", "line 3: 4 values for 3 columns"),
        ("slide_id,label,label\na,1,0\nb,0,1\n", "two columns are called 'label'"),
        ('slide_id,note,label\na,"x,1\nb,y,0\n', "quote"),
        ("slide_id,label\n", "no lines"),
        ("", "no lines"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(tmp_path, text, match):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["1", "1.0", "2."], ("1", "2")),
        (["007", "7"], ("007", "7")),
        (["1_0", "10"], ("10", "1_0")),
        (["1E2", "100"], ("100", "1E2")),
        (["12345678901000119103", "1"], ("1", "12345678901000119103")),
        (["x", "y", "#N/A", "<NA>", "NaN"], ("x", "y")),
    ],
)
def test_codes_are_names_and_not_numbers(values, classes):
    rows = [{"label": v} for v in values * 5]
    (target,) = make_targets(rows, ["label"], task="classification")
    assert sorted(target.classes) == sorted(classes)


def test_names_that_only_python_reads_as_numbers_are_classes():
    rows = [{"label": f"1_{i}"} for i in range(12)] * 6
    assert make_targets(rows, ["label"])[0].task == "classification"


def test_a_target_named_twice_is_refused():
    with pytest.raises(ConfigError, match="named twice"):
        make_targets([{"label": "1"}, {"label": "0"}], ["label", "label"])


def test_a_class_that_no_slide_with_features_bears_is_no_class(cohort):
    lines = "".join(f"z{i},z{i},c0,0,rare,1,1,1\n" for i in range(4))
    labels = cohort / "labels.csv"
    labels.write_text(labels.read_text() + lines)
    found = _train(cohort, target="kind").metrics
    assert "No slide with features is of class 'rare' of 'kind'." in found["notes"]
    assert not any("label is missing" in note for note in found["notes"])
    assert found["metrics"]["auroc"]["pooled"] is not None
    assert {"auroc_a", "auroc_b", "auroc_c"} < set(found["metrics"])
    assert "auroc_rare" not in found["metrics"]


def test_site_preserved_folds_say_how_uneven_they_are_and_need_every_site(cohort):
    notes = _train(cohort, site_preserved=True).metrics["notes"]
    assert any("away from an equal share" in note for note in notes)
    _relabel(cohort, lambda r: {**r, "site": ""} if r["patient_id"] in ("p01", "p02") else r)
    with pytest.raises(ConfigError, match="have no site"):
        _train(cohort, "other", site_preserved=True)
    with pytest.raises(ConfigError, match="does not go with"):
        _train(cohort, "third", site_preserved=True, monte_carlo=0.3)


def test_a_training_part_of_one_site_is_refused_before_training(cohort):
    _relabel(cohort, lambda r: {**r, "site": str(int(r["patient_id"][1:]) // 15)})
    with pytest.raises(ConfigError, match="of one site"):
        _train(cohort, site_preserved=True, folds=2)
    assert not (cohort / "out").exists()


def test_many_small_draws_still_have_an_interval(cohort):
    found = _train(cohort, monte_carlo=0.2, folds=20).metrics["metrics"]["auroc"]
    assert len(found["per_fold"]) == 20
    assert np.isfinite([found["ci_low"], found["ci_high"]]).all()


def test_the_order_of_lines_changes_nothing(cohort):
    _train(cohort)
    labels = cohort / "labels.csv"
    head, *lines = labels.read_text().splitlines()
    labels.write_text("\n".join([head, *reversed(lines)]) + "\n")
    _train(cohort, "other")
    for name in ("splits.csv", "predictions.csv", "models/fold-0/model.safetensors"):
        assert (cohort / "out" / name).read_bytes() == (cohort / "other" / name).read_bytes()
