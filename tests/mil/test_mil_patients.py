"""A model of whole patients predicts whole patients."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from mil_kit import make_cohort

from wsipipe.errors import ConfigError
from wsipipe.mil.crossval import train
from wsipipe.mil.prediction import predict
from wsipipe.mil.settings import TrainSettings

SETTINGS = TrainSettings(
    aggregator_settings={"hidden": 16, "attention_dim": 8},
    epochs=4, lr=1e-2, inner=1, batch_bags=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """Forty slides of thirty patients, and a run over patients in `out`."""
    folder = tmp_path_factory.mktemp("joined")
    make_cohort(folder)
    train(
        folder / "features", folder / "labels.csv", target="label", folds=3, slides_together=True,
        out=folder / "out", settings=SETTINGS,
    )  # fmt: skip
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def test_slides_of_a_patient_are_predicted_as_one_bag(joined, tmp_path):
    heard: list[str] = []
    predict(
        joined / "out", joined / "features", tmp_path / "p.csv",
        patients=joined / "labels.csv", say=heard.append,
    )  # fmt: skip
    cross = {r["slide_id"]: r["p_1"] for r in _rows(joined / "out" / "predictions.csv")}
    rows = _rows(tmp_path / "p.csv")
    assert [r["slide_id"] for r in rows] == sorted(cross)
    for row in rows:
        assert float(row["p_1"]) == pytest.approx(float(cross[row["slide_id"]]), abs=1e-5)
    assert not any("one bag" in h for h in heard)


def test_without_patients_each_slide_speaks_and_that_is_said(joined, tmp_path):
    heard: list[str] = []
    alone = predict(joined / "out", joined / "features", say=heard.append)
    assert any("40 slide(s) are not known (--patients)" in h for h in heard)
    cross = {r["slide_id"]: float(r["p_1"]) for r in _rows(joined / "out" / "predictions.csv")}
    differ = [r for r in alone.rows if abs(float(r["p_1"]) - cross[r["slide_id"]]) > 1e-5]
    assert len(differ) == 20  # the slides of the ten patients that have two
    table = tmp_path / "some.csv"
    table.write_text("slide_id,patient_id\ns00,p00\ns30,p00\n")
    heard.clear()
    some = predict(joined / "out", joined / "features", patients=table, say=heard.append)
    said = {r["slide_id"]: float(r["p_1"]) for r in some.rows}
    assert said["s00"] == pytest.approx(cross["s00"], abs=1e-5)
    assert any("38 slide(s) are not known" in h for h in heard)


def test_an_outside_cohort_is_judged_by_the_unit_of_the_model(joined, tmp_path):
    """Its labels name the patients: no --patients needed."""
    make_cohort(tmp_path, n=20, seed=9)
    for path in (tmp_path / "features").glob("*.h5"):
        path.rename(path.with_name(f"x{path.name}"))
    text = (tmp_path / "labels.csv").read_text().replace("\ns", "\nxs").replace(",p", ",xp")
    (tmp_path / "labels.csv").write_text(text.replace("slide_id,xpatient", "slide_id,patient"))
    found = predict(joined / "out", tmp_path / "features", labels=tmp_path / "labels.csv")
    said = {r["slide_id"]: r["p_1"] for r in found.rows}
    assert said["xs00"] == said["xs10"]
    assert found.metrics["label"]["auroc"]["n_patients"] == 10


def test_patients_for_a_model_of_slides_are_refused(joined, tmp_path):
    (tmp_path / "out").mkdir()
    shutil.copytree(joined / "features", tmp_path / "features")
    train(
        tmp_path / "features", joined / "labels.csv", target="label", folds=2,
        out=tmp_path / "out", settings=SETTINGS,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="single slides"):
        predict(tmp_path / "out", joined / "features", patients=joined / "labels.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text("slide_id,who\ns00,p00\n")
    with pytest.raises(ConfigError, match="no columns slide_id and patient_id"):
        predict(joined / "out", joined / "features", patients=bad)
