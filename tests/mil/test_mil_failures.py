"""What fails, fails alone; what cannot work is said before a folder is claimed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.bags import inspect_bag
from wsipipe.mil.compare import compare_runs
from wsipipe.mil.crossval import train
from wsipipe.mil.fold_training import FoldTrainer
from wsipipe.mil.settings import TrainSettings

SMALL = {"hidden": 16, "attention_dim": 8}
QUICK = TrainSettings(aggregator_settings=SMALL, epochs=2, lr=1e-2, inner=1, batch_bags=8)


def _train(folder: Path, out: str = "out", **more):
    more = {"target": "label", "folds": 3, "settings": QUICK, **more}
    return train(folder / "features", folder / "labels.csv", out=folder / out, **more)


def test_a_fold_whose_loss_is_no_number_fails_alone(cohort, monkeypatch):
    choose = FoldTrainer._choose

    def fail_second(self, k, runs):
        if k == 1:
            for run in runs:
                run.best_loss = float("nan")
        return choose(self, k, runs)

    monkeypatch.setattr(FoldTrainer, "_choose", fail_second)
    result = _train(cohort)
    assert [fold for fold, _ in result.failed] == ["fold-1"]
    per_fold = result.metrics["metrics"]["auroc"]["per_fold"]
    assert len(per_fold) == 3
    assert per_fold[1] is None
    assert None not in (per_fold[0], per_fold[2])
    assert (cohort / "out" / "report.html").is_file()
    monkeypatch.undo()
    assert not _train(cohort).failed


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"aggregator": "bogus"}, "bogus"),
        ({"aggregator_settings": {"hidden": -3}}, "cannot be made"),
        ({"grid": {"aggregator.hidden": [8, "a"]}}, "cannot be made"),
        ({"grid": {"lr": ["a", "b"]}}, "lr is 'a'"),
        ({"grid": {"epochs": [1.5]}}, "epochs is 1.5"),
        ({"grid": {"class_weights": ["balanced", "none"]}}, "one for all points"),
        ({"grid": {"survival_loss": ["cox", "nll"]}}, "one for all points"),
        ({"seed": -1}, "seed is -1"),
        ({"aggregator": "rrt", "aggregator_settings": {"kernel": 4}}, "cannot be made"),
        ({"aggregator": "ilra", "aggregator_settings": {"hidden": 10}}, "cannot be made"),
        ({"aggregator": "transmil", "aggregator_settings": {"landmarks": 0}}, "cannot be made"),
        ({"aggregator": "transformer", "aggregator_settings": {"depth": 0}}, "cannot be made"),
        ({"aggregator": "wikg", "aggregator_settings": {"gate": "foo"}}, "gate is"),
        ({"aggregator": "linear", "aggregator_settings": {"c": 0}}, "c > 0"),
        ({"aggregator": "knn", "aggregator_settings": {"k": 0}}, "above 0"),
        ({"aggregator": "panther", "aggregator_settings": {"prototypes": 0}}, "prototypes"),
        ({"aggregator": "clam-sb", "aggregator_settings": {"k_sample": 0}}, "k_sample >= 1"),
        ({"aggregator_settings": {"dropout": 2}}, "share of the units"),
        ({"aggregator": "coxnet"}, "coxnet needs --time"),
    ],
)
def test_settings_that_do_not_fit_claim_no_folder(cohort, settings, match):
    def attempt():
        chosen = TrainSettings(**{"epochs": 1, **settings})
        _train(cohort, settings=chosen, aggregator=chosen.aggregator)

    with pytest.raises(ConfigError, match=match):
        attempt()
    assert not (cohort / "out").exists()


def test_a_damaged_record_and_a_file_in_the_place_of_the_folder_are_said(cohort):
    (cohort / "out").mkdir()
    (cohort / "out" / "run.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"run\.json"):
        _train(cohort)
    (cohort / "file").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        _train(cohort, out="file")


def test_a_vector_in_chunks_is_a_bag_of_one(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("features", data=np.ones(8, np.float32), chunks=(4,))
    assert (inspect_bag(tmp_path / "a.h5").rows, inspect_bag(tmp_path / "a.h5").dim) == (1, 8)


def test_classes_named_by_numbers_are_compared_in_the_models_own_order(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.arange(40) % 2
    for name, skill in (("good", 3.0), ("poor", 0.3)):
        (tmp_path / name).mkdir()
        document = {"task": "classification", "splits_sha256": "x", "metrics": {}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(document))
        p = 1 / (1 + np.exp(-(skill * (2 * truth - 1) + rng.normal(size=40))))
        with (tmp_path / name / "predictions.csv").open("w", newline="") as f:
            out = csv.writer(f)
            out.writerow(
                ["slide_id", "patient_id", "fold", "repeat", "y_true", "y_pred", "p_2", "p_10"]
            )
            for i, (t, q) in enumerate(zip(truth, p, strict=True)):
                said = (2, 10)[int(q > 0.5)]
                out.writerow([f"s{i}", f"p{i}", 0, 0, (2, 10)[t], said, 1 - q, q])
    (row,) = compare_runs([tmp_path / "good", tmp_path / "poor"])
    assert row["metric"] == "auroc"
    assert row["difference"] > 0.1


def test_an_empty_slide_ends_no_heatmap_of_the_others(cohort):
    from wsipipe.cli import main

    _train(cohort)
    for name, edge in (("empty", 0), ("dead", 3)):
        with h5py.File(cohort / "features" / f"{name}.h5", "w") as h5:
            h5["features"] = np.zeros((edge, 8), np.float16)
            h5["coords"] = np.zeros((edge, 2), int)
            h5["tile_status"] = np.ones(edge, np.uint8)
            h5.attrs["encoding-type"] = "wsipipe-features"
            h5.attrs["encoder"] = "toy"
    words = ["heatmap", "--model", cohort / "out", "--features", cohort / "features"]
    words += ["--out", cohort / "maps", "--no-tiff"]
    for name in ("dead", "empty", "s00"):
        words += ["--slide-id", name]
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert not stop.value.code
    assert sorted(p.name for p in (cohort / "maps").iterdir()) == ["s00.geojson", "s00.png"]


def test_what_predict_cannot_check_is_said(cohort):
    from wsipipe.mil.prediction import predict

    _train(cohort)
    (cohort / "bare").mkdir()
    np.save(cohort / "bare" / "x.npy", np.ones((4, 8), np.float32))
    said: list[str] = []
    predict(cohort / "out", cohort / "bare", say=said.append)
    assert any("do not say their encoder" in text for text in said)


def test_a_model_of_whole_patients_says_that_it_speaks_of_slides_now(cohort):
    from wsipipe.mil.prediction import predict

    _train(cohort, slides_together=True)
    said: list[str] = []
    predict(cohort / "out", cohort / "features", say=said.append)
    assert any("as one bag" in text for text in said)


def test_a_cell_may_hold_a_line_break(tmp_path):
    from wsipipe.mil.cohort import read_table

    (tmp_path / "t.csv").write_text('slide_id,note,label\na,"one\ntwo",1\nb,\u2028,0\n')
    assert [r["label"] for r in read_table(tmp_path / "t.csv")] == ["1", "0"]


def test_one_encoder_with_two_sets_of_weights_is_a_mixture(cohort):
    for i, name in enumerate(("s00", "s01")):
        with h5py.File(cohort / "features" / f"{name}.h5", "r+") as h5:
            h5.attrs["identity_json"] = json.dumps({"encoder": {"weights_sha256": f"{i:064}"}})
    with pytest.raises(ConfigError, match="weights is"):
        _train(cohort)


def test_a_slide_without_mpp_is_drawn_at_that_of_its_features(cohort):
    import tifffile

    from wsipipe.cli import main

    _train(cohort)
    (cohort / "slides").mkdir()
    pixels = np.full((448, 5376, 3), 200, np.uint8)
    tifffile.imwrite(cohort / "slides" / "s00.tif", pixels, tile=(256, 256), photometric="rgb")
    words = ["heatmap", "--model", cohort / "out", "--features", cohort / "features"]
    words += ["--out", cohort / "maps", "--slides", cohort / "slides", "--slide-id", "s00"]
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert not stop.value.code
    made = sorted(p.name for p in (cohort / "maps").iterdir())
    assert made == ["s00-tiles.png", "s00.geojson", "s00.png", "s00.tif"]


def test_a_heatmap_of_features_that_are_no_numbers_says_so(cohort, capsys):
    from wsipipe.cli import main

    _train(cohort)
    with h5py.File(cohort / "features" / "s00.h5", "r+") as h5:
        h5["features"][0] = np.nan
    words = ["heatmap", "--model", cohort / "out", "--features", cohort / "features"]
    words += ["--out", cohort / "maps", "--no-tiff", "--slide-id", "s00"]
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert stop.value.code == 2
    assert "NaN in the features" in capsys.readouterr().err
