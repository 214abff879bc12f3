"""Training is honest, exact, resumable; what is wrong is said before it starts."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil import fold_training
from wsipipe.mil.bags import find_bags
from wsipipe.mil.bank import FeatureBank
from wsipipe.mil.crossval import train
from wsipipe.mil.ensemble import load_ensemble, load_fold
from wsipipe.mil.fitting import fit_runs, resolve_precision
from wsipipe.mil.losses import fit_criterion
from wsipipe.mil.prediction import predict
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.runs import BagSet, Run
from wsipipe.mil.settings import TrainSettings
from wsipipe.mil.targets import Target

SMALL = {"hidden": 16, "attention_dim": 8}
QUICK = TrainSettings(aggregator_settings=SMALL, epochs=6, lr=1e-2, inner=1, batch_bags=3)


def _train(folder: Path, out: str = "out", **more):
    settings = more.pop("settings", QUICK)
    more = {"target": "label", "folds": 3, **more}
    return train(
        folder / "features", folder / "labels.csv", out=folder / out, settings=settings, **more
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def _relabel(folder: Path, change) -> None:
    rows = _rows(folder / "labels.csv")
    out = [r for r in (change(dict(r)) for r in rows) if r is not None]
    with (folder / "labels.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(out[0]))
        writer.writeheader()
        writer.writerows(out)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    from mil_kit import make_cohort

    folder = tmp_path_factory.mktemp("trained")
    make_cohort(folder)
    _train(folder)
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A cohort with a finished run in `out`, to be changed at will."""
    shutil.copytree(trained_once, tmp_path / "t")
    return tmp_path / "t"


def test_a_run_writes_what_the_contract_says(cohort):
    result = _train(cohort, repeats=2)
    out = cohort / "out"
    said = json.loads((out / "metrics.json").read_text())
    assert said == result.metrics
    auroc = said["metrics"]["auroc"]
    assert {"mean", "per_fold", "pooled", "ci_low", "ci_high", "n_patients", "method"} <= set(auroc)
    assert auroc["n_patients"] == 30
    assert len(auroc["per_fold"]) == 6
    assert auroc["ci_low"] <= auroc["pooled"] <= auroc["ci_high"]
    assert auroc["pooled"] > 0.9
    assert "2000 draws" in auroc["method"]
    assert "training" in said["caveat"]
    rows = _rows(out / "predictions.csv")
    head = ["slide_id", "patient_id", "fold", "repeat", "y_true", "y_pred", "p_0", "p_1"]
    assert list(rows[0]) == head
    assert len(rows) == 80
    for row in rows[:5]:
        assert float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=1e-5)
    splits = _rows(out / "splits.csv")
    where = {(r["repeat"], r["fold"], r["slide_id"]): r["part"] for r in splits}
    assert all(where[r["repeat"], r["fold"], r["slide_id"]] == "test" for r in rows)
    for k in range(6):
        assert (out / "models" / f"fold-{k}" / "model.safetensors").is_file()
        assert (out / "models" / f"fold-{k}" / "model.json").is_file()
    page = (out / "report.html").read_text()
    for remote in ("http://", "https://", "<script", 'src="/', "@import"):
        assert remote not in page
    assert said["splits_sha256"] in page
    assert "Kaplan" not in page
    assert page.count("data:image/png;base64,") == 6


def test_pooled_figures_follow_from_the_predictions_file(trained):
    from sklearn.metrics import roc_auc_score

    said = _train(trained).metrics["metrics"]
    rows = _rows(trained / "out" / "predictions.csv")
    by_patient: dict[str, list[tuple[float, int, str]]] = {}
    for r in rows:
        by_patient.setdefault(r["patient_id"], []).append(
            (float(r["p_1"]), int(r["y_true"]), r["fold"])
        )
    p = np.array([np.mean([a for a, _, _ in v]) for v in by_patient.values()])
    y = np.array([v[0][1] for v in by_patient.values()])
    fold = np.array([v[0][2] for v in by_patient.values()])
    assert said["auroc"]["pooled"] == pytest.approx(roc_auc_score(y, p), abs=1e-4)
    each = [roc_auc_score(y[fold == k], p[fold == k]) for k in ("0", "1", "2")]
    assert said["auroc"]["per_fold"] == pytest.approx(each, abs=1e-4)
    assert said["auroc"]["mean"] == pytest.approx(np.mean(each), abs=1e-4)


def test_the_labels_of_the_test_fold_change_nothing_in_its_model(trained):
    splits = _rows(trained / "out" / "splits.csv")
    tested = {r["patient_id"] for r in splits if r["fold"] == "0" and r["part"] == "test"}
    before = load_fold(trained / "out" / "models" / "fold-0").info
    (trained / "splits.csv").write_text((trained / "out" / "splits.csv").read_text())

    def flip(row):
        if row["patient_id"] in tested:
            row["label"] = str(1 - int(row["label"]))
        return row

    _relabel(trained, flip)
    _train(trained, "flipped", splits=trained / "splits.csv")
    after = load_fold(trained / "flipped" / "models" / "fold-0").info
    assert after["weights_sha256"] == before["weights_sha256"]
    assert after["calibration"] == before["calibration"]
    other = load_fold(trained / "flipped" / "models" / "fold-1").info
    assert (
        other["weights_sha256"] != load_fold(trained / "out/models/fold-1").info["weights_sha256"]
    )


def test_standardising_uses_the_training_part_only(cohort):
    _train(cohort, standardize=True)
    model = load_fold(cohort / "out" / "models" / "fold-0")
    mean = model.norms[0][0]
    with h5py.File(cohort / "features" / "s00.h5", "r+") as h5:  # a patient of some test part
        tested = next(
            r["fold"]
            for r in _rows(cohort / "out" / "splits.csv")
            if r["slide_id"] == "s00" and r["part"] == "test"
        )
        h5["features"][...] = 100
    _train(cohort, "shifted", standardize=True, splits=cohort / "out" / "splits.csv")
    same = load_fold(cohort / "shifted" / "models" / f"fold-{tested}").norms[0][0]
    former = load_fold(cohort / "out" / "models" / f"fold-{tested}").norms[0][0]
    assert torch.equal(same, former)
    assert mean.shape == (8,)


def test_the_same_command_again_trains_nothing(trained):
    stamps = {p: p.stat().st_mtime_ns for p in trained.glob("out/models/*/*")}
    heard: list[str] = []
    again = _train(trained, say=heard.append)
    assert stamps == {p: p.stat().st_mtime_ns for p in trained.glob("out/models/*/*")}
    assert any("3 of 3 folds are finished" in h for h in heard)
    assert again.metrics["metrics"]["auroc"]["pooled"] is not None


def test_other_settings_in_the_same_folder_are_refused_by_name(trained):
    with pytest.raises(ConfigError, match="seed"):
        _train(trained, seed=1)
    assert _train(trained, seed=1, recompute=True).metrics["settings"]["seed"] == 1


def test_a_killed_run_goes_on_to_the_same_weights(cohort, monkeypatch):
    class Killed(BaseException):
        pass

    _train(cohort, "whole")
    monkeypatch.setattr(fold_training, "_SAVE_EVERY_S", -1.0)

    def kill(text: str) -> None:
        if "epoch 4" in text:
            raise Killed

    with pytest.raises(Killed):
        _train(cohort, "torn", say=kill)
    assert list(cohort.glob("torn/cache/progress-*.pt"))
    heard: list[str] = []
    _train(cohort, "torn", say=heard.append)
    assert any("Going on after epoch 3" in h for h in heard)
    for k in range(3):
        a, b = (
            load_fold(cohort / o / "models" / f"fold-{k}").info["weights_sha256"]
            for o in ("whole", "torn")
        )
        assert a == b
    assert not list(cohort.glob("torn/cache/progress-*.pt"))


def _bagset(folder: Path) -> tuple[BagSet, np.ndarray]:
    files = find_bags(folder / "features")
    rows = {r["slide_id"]: r for r in _rows(folder / "labels.csv")}
    y = np.array([[[float(rows[s]["months"]), float(rows[s]["died"])]] for s in files])
    return BagSet(FeatureBank(files), tuple((s,) for s in files)), y.astype(np.float32)


def _run(key: str, y: np.ndarray, target: Target, rows=slice(0, 30), **settings) -> Run:
    torch.manual_seed(0)
    model = create_aggregator("abmil", in_dim=8, n_classes=target.width, **SMALL, dropout=0.0)
    run = Run(
        key, model, (fit_criterion(target, 0, y[:, 0].astype(float), "balanced"),),
        np.arange(40)[rows], np.arange(30, 40), torch.from_numpy(y),
        TrainSettings(epochs=2, lr=1e-2, **settings), 0,
    )  # fmt: skip
    run.prepare(torch.device("cpu"))
    return run


COX = Target("t", "survival", ("months", "died"), loss="cox")
CPU = torch.device("cpu")


def test_a_run_gives_the_same_weights_alone_or_among_others(cohort):
    bags, y = _bagset(cohort)
    alone = _run("a", y, COX)
    fit_runs([alone], bags, device=CPU)
    among = _run("a", y, COX)
    fit_runs([_run("b", y, COX, slice(0, 20)), among, _run("c", y, COX)], bags, device=CPU)
    for p, q in zip(alone.model.parameters(), among.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("target", [COX, Target("v", "regression", ("months",), loss="mse")])
def test_small_packs_give_the_gradients_of_one_large_pack(cohort, target):
    bags, y = _bagset(cohort)
    runs = [_run("a", y, target, batch_bags=10, pack_tiles=n) for n in (1, 10**6)]
    for run in runs:
        fit_runs([run], bags, device=CPU)
    first, second = (dict(r.model.named_parameters()) for r in runs)
    # Softmax and risk sets do not see a constant: such a bias has no gradient but rounding,
    # which Adam scales.
    for name in first.keys() - {"score.w.bias", *(["head.bias"] if target is COX else [])}:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-3)


def test_a_bag_is_read_once_an_epoch_for_all_runs(cohort):
    bags, y = _bagset(cohort)
    bank = FeatureBank(find_bags(cohort / "features"), budget_bytes=0)
    mapped = BagSet(bank, bags.members)
    runs = [_run(str(i), y, COX) for i in range(6)]
    fit_runs(runs, mapped, device=CPU)
    total = sum(f.nbytes for f in bank.files.values())
    # The risk sets are filled, then two epochs; a validation bag is read once more for validating.
    assert bank.bytes_read <= 3 * total


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clam-sb", SMALL), ("dsmil", {"query_dim": 8}), ("dtfd", SMALL), ("acmil", SMALL),
        ("transformer", {"hidden": 16, "heads": 2, "mlp": 16}),
    ],
)  # fmt: skip
def test_other_aggregators_learn_through_the_same_door(cohort, name, settings):
    own = TrainSettings(aggregator_settings=settings, epochs=16, lr=1e-2, inner=1, batch_bags=3)
    result = _train(cohort, aggregator=name, settings=own)
    assert result.metrics["metrics"]["auroc"]["pooled"] > 0.75


@pytest.mark.parametrize(("name", "settings"), [("linear", {}), ("knn", {"k": 5})])
def test_models_on_slide_vectors_are_fitted_in_closed_form(cohort, name, settings):
    own = TrainSettings(aggregator_settings=settings, inner=1)
    result = _train(cohort, aggregator=name, settings=own)
    assert result.metrics["metrics"]["auroc"]["pooled"] > 0.75


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_linear_probe_is_scikit_learns(n_classes):
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (n_classes == 3) * (x[:, 1] > 1).long()
    target = Target("t", "classification", ("t",), tuple("abc"[:n_classes]))
    labels = torch.stack([y.float(), torch.zeros(60)], dim=1)
    criterion = fit_criterion(target, 0, labels.double().numpy(), "none")
    model = create_aggregator("linear", in_dim=5, n_classes=n_classes)
    assert model.fit_vectors(x, labels, criterion, 0)
    with torch.no_grad():
        said = torch.softmax(model.forward_bags(list(x[:, None])).logits, dim=1)
    wanted = LogisticRegression(C=0.5, max_iter=5000).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(said, wanted, atol=1e-5)


def test_the_cox_net_is_scikit_survivals(cohort):
    settings = TrainSettings(inner=1)
    said = {"target": [], "time": "months", "event": "died", "settings": settings}
    result = _train(cohort, aggregator="coxnet", **said)
    assert result.metrics["metrics"]["c_index"]["pooled"] > 0.6
    with pytest.raises(ConfigError, match="--time and --event"):
        _train(cohort, "x", aggregator="coxnet", settings=settings)


def test_prototypes_come_from_tiles_of_the_training_part(cohort):
    settings = TrainSettings(
        aggregator_settings={"prototypes": 3, "normalise": False}, epochs=2, inner=1, batch_bags=3
    )
    _train(cohort, aggregator="panther", settings=settings, folds=2)
    for k in range(2):
        centres = load_fold(cohort / "out" / "models" / f"fold-{k}").members[0].prototypes
        # One of three clusters is the odd tiles, at 3 in the first three columns.
        assert centres[:, :3].mean(dim=1).max() > 2


@pytest.mark.parametrize("loss", ["cox", "nll"])
def test_survival_says_c_index_ipcw_brier_and_log_rank(cohort, loss):
    settings = TrainSettings(epochs=30, batch_bags=32, lr=3e-2, inner=1, survival_loss=loss)
    said = {"target": [], "time": "months", "event": "died", "settings": settings}
    result = _train(cohort, loss, aggregator="mean", **said)
    assert 0.6 < result.metrics["metrics"]["c_index"]["pooled"] <= 1
    found = result.metrics["targets"]["months/died"]["survival"]
    assert found["ipcw_c"] is not None
    assert found["integrated_brier"] < 0.25, "worse than a coin"
    rows = _rows(cohort / loss / "predictions.csv")
    assert list(rows[0])[4:] == ["time", "event", "risk"]
    assert "Kaplan-Meier" in (cohort / loss / "report.html").read_text()


def test_regression_speaks_in_the_unit_of_the_label(cohort):
    settings = TrainSettings(aggregator_settings=SMALL, epochs=15, lr=1e-2, inner=2, batch_bags=3)
    result = _train(cohort, target="value", settings=settings)
    assert result.metrics["task"] == "regression"
    assert result.metrics["metrics"]["pearson"]["pooled"] > 0.5
    said = [float(r["y_pred"]) for r in _rows(cohort / "out" / "predictions.csv")]
    assert 0 < np.mean(said) < 4


def test_several_targets_with_missing_labels(cohort):
    def drop(row):
        if row["slide_id"] < "s08":
            row["kind"] = "NA"
        return row

    def agree(row):
        return row

    _relabel(cohort, agree)
    rows = _rows(cohort / "labels.csv")
    gone = {r["patient_id"] for r in rows if r["slide_id"] < "s08"}
    _relabel(cohort, lambda r: {**r, "kind": "NA"} if r["patient_id"] in gone else r)
    result = _train(cohort, target=["label", "kind"])
    assert set(result.metrics["targets"]) == {"label", "kind"}
    assert result.metrics["targets"]["kind"]["metrics"]["auroc"]["n_patients"] == 22
    assert (cohort / "out" / "predictions-kind.csv").is_file()


def test_the_grid_is_chosen_inside_the_training_part(cohort):
    settings = TrainSettings(
        aggregator_settings=SMALL, epochs=6, inner=2, grid={"lr": [1e-6, 1e-2]}
    )
    _train(cohort, settings=settings)
    for k in range(3):
        info = load_fold(cohort / "out" / "models" / f"fold-{k}").info
        assert len(info["grid_losses"]) == 2
        assert info["settings"]["lr"] == 1e-2
        assert info["members"] == 2


def test_missing_labels_weigh_the_same_in_one_pack_and_in_many():
    y = torch.zeros(8, 2, 2)
    y[:, 0, 0] = torch.arange(8) % 2
    y[:, 1] = torch.nan
    y[0, 1], y[5, 1] = torch.tensor([1.0, 0]), torch.tensor([3.0, 0])
    label = Target("a", "classification", ("a",), ("0", "1"))
    value = Target("v", "regression", ("v",), loss="mse")
    known = y.double().numpy()
    criteria = (
        fit_criterion(label, 0, known[:, 0], "none"), fit_criterion(value, 2, known[:, 1], "none")
    )  # fmt: skip
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for t, criterion in enumerate(criteria):
        parts = [criterion(z[i : i + 1], y[i : i + 1, t]) for i in range(8)]
        assert sum(p for p in parts if p is not None) / 8 == pytest.approx(criterion(z, y[:, t]))


def test_a_run_killed_between_two_folds_keeps_what_the_others_learned(cohort, monkeypatch):
    monkeypatch.setattr(fold_training, "_SAVE_EVERY_S", 0.0)
    save, saved = fold_training.save_fold, []

    def killed(folder, model):
        if saved:
            raise KeyboardInterrupt
        saved.append(folder)
        save(folder, model)

    with monkeypatch.context() as patch:
        patch.setattr(fold_training, "save_fold", killed)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort)
    said: list[str] = []
    _train(cohort, say=said.append)
    assert any(f"Going on after epoch {QUICK.epochs}" in text for text in said)
    assert not any("inner validation loss" in text for text in said)
    assert not list((cohort / "out" / "cache").glob("progress-*"))
    _train(cohort, "whole")
    for k in range(3):
        name = Path("models") / f"fold-{k}" / "model.safetensors"
        assert (cohort / "out" / name).read_bytes() == (cohort / "whole" / name).read_bytes()


def test_standardising_may_be_a_point_of_the_grid(cohort):
    settings = TrainSettings(
        aggregator_settings=SMALL, epochs=2, inner=1, grid={"standardize": [True]}
    )
    _train(cohort, settings=settings)
    fold = load_fold(cohort / "out" / "models" / "fold-0")
    assert fold.info["standardize"]
    assert fold.norms[0] is not None


def test_slides_of_a_patient_together_are_one_bag(cohort):
    _train(cohort, slides_together=True)
    rows = _rows(cohort / "out" / "predictions.csv")
    said: dict[str, set[str]] = {}
    for r in rows:
        said.setdefault(r["patient_id"], set()).add(r["p_1"])
    assert len(rows) == 40
    assert all(len(v) == 1 for v in said.values())


def test_site_preserved_folds_share_no_site(cohort):
    _train(cohort, site_preserved=True)
    site = {r["slide_id"]: r["site"] for r in _rows(cohort / "labels.csv")}
    for k in ("0", "1", "2"):
        own = [r for r in _rows(cohort / "out" / "splits.csv") if r["fold"] == k]
        sides = [{site[r["slide_id"]] for r in own if r["part"] == p} for p in ("train", "test")]
        assert not sides[0] & sides[1]


def test_shuffled_labels_give_chance(cohort):
    found = _train(cohort, permutation_run=True).metrics["targets"]["label"]["permutation"]
    assert found["ci_low"] < 0.5 < found["ci_high"]


# -- bad input ---------------------------------------------------------------------------------


def _set(**fields):
    return lambda row: {**row, **fields} if row["slide_id"] == "s00" else row


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: {**r, "label": "1"}, "one class only"),
        (_set(label="7" * 3), r"1 patient\(s\) of class '777'|contradicting"),
        (lambda r: {**r, "slide_id": "s01"}, "more than once"),
        (_set(patient_id=""), "no patient_id"),
        (lambda r: {**r, "slide_id": "x" + r["slide_id"]}, "No slide has both"),
        (lambda r: {k: v for k, v in r.items() if k != "label"}, "no column 'label'"),
        (lambda r: {("name" if k == "slide_id" else k): v for k, v in r.items()}, "'slide_id'"),
    ],
)
def test_wrong_labels_are_refused_before_training(cohort, change, match):
    _relabel(cohort, change)
    with pytest.raises(ConfigError, match=match):
        _train(cohort)
    assert not (cohort / "out" / "models").exists()


def test_contradicting_labels_of_a_patient_name_the_patient(cohort):
    _relabel(cohort, lambda r: {**r, "label": "1"} if r["slide_id"] == "s30" else r)
    with pytest.raises(ConfigError, match=r"contradicting labels: 'p00'"):
        _train(cohort)


def test_all_censored_and_negative_times_are_refused(cohort):
    kwargs = {"target": [], "time": "months", "event": "died"}
    rows = _rows(cohort / "labels.csv")
    _relabel(cohort, lambda r: {**r, "died": "0"})
    with pytest.raises(ConfigError, match="censored"):
        _train(cohort, **kwargs)
    assert rows
    _relabel(cohort, lambda r: {**r, "died": "1", "months": "-1"})
    with pytest.raises(ConfigError, match="negative"):
        _train(cohort, **kwargs)


def test_missing_partners_and_empty_bags_are_listed_or_stop(cohort):
    (cohort / "features" / "s00.h5").unlink()
    with h5py.File(cohort / "features" / "s01.h5", "r+") as h5:
        for key in ("features", "coords"):
            del h5[key]
            h5[key] = np.zeros((0, 8 if key == "features" else 2), np.float16)
    _relabel(cohort, lambda r: None if r["slide_id"] == "s02" else r)
    notes = _train(cohort).metrics["notes"]
    for what, slide in (
        ("labelled slide(s) without features", "s00"),
        ("slide(s) without any tile", "s01"),
        ("feature file(s) without a label", "s02"),
    ):
        assert any(what in n and slide in n for n in notes)
    with pytest.raises(ConfigError, match="without features"):
        _train(cohort, "strict", strict=True)


def test_nan_features_mixed_encoders_and_copies_are_refused(cohort):
    with h5py.File(cohort / "features" / "s05.h5", "r+") as h5:
        h5["features"][0, 0] = np.nan
    with pytest.raises(ConfigError, match=r"NaN.*s05"):
        _train(cohort)
    with h5py.File(cohort / "features" / "s05.h5", "r+") as h5:
        h5["features"][0, 0] = 0
        h5.attrs["encoder"] = "other"
    with pytest.raises(ConfigError, match="mixed: encoder"):
        _train(cohort)
    (cohort / "features" / "s05.h5").write_bytes((cohort / "features" / "s06.h5").read_bytes())
    with pytest.raises(ConfigError, match="equal features"):
        _train(cohort, folds=15)


def test_a_column_that_is_the_label_is_refused(cohort):
    label = {r["slide_id"]: float(r["label"]) for r in _rows(cohort / "labels.csv")}
    for path in (cohort / "features").glob("*.h5"):
        with h5py.File(path, "r+") as h5:
            x = h5["features"][()]
            del h5["features"]
            leaked = np.full((len(x), 1), label[path.stem], np.float16)
            h5["features"] = np.concatenate([x, leaked], axis=1)
    with pytest.raises(ConfigError, match=r"column\(s\) 8 .* leaked"):
        _train(cohort)


def test_without_patients_each_slide_is_one_and_that_is_recorded(cohort):
    _relabel(cohort, lambda r: {k: v for k, v in r.items() if k != "patient_id"})
    said = _train(cohort).metrics
    assert said["n_patients"] == 40
    assert not said["patients_given"]
    assert any("patient of its own" in n for n in said["notes"])


# -- prediction --------------------------------------------------------------------------------


def test_predict_leaves_training_slides_to_the_fold_that_held_them_out(trained):
    result = predict(trained / "out", trained / "features", trained / "p.csv")
    cross = {r["slide_id"]: r["p_1"] for r in _rows(trained / "out" / "predictions.csv")}
    rows = _rows(trained / "p.csv")
    assert list(rows[0]) == ["slide_id", "y_pred", "p_0", "p_1", "disagreement", "tiles"]
    for row in rows:
        assert float(row["p_1"]) == pytest.approx(float(cross[row["slide_id"]]), abs=1e-5)
    assert len(result.seen) == 40


def test_an_outside_cohort_is_judged_at_frozen_thresholds_and_must_be_outside(trained, tmp_path):
    from mil_kit import make_cohort

    other = tmp_path / "other"
    other.mkdir()
    make_cohort(other, n=20, seed=9)
    with pytest.raises(ConfigError, match="took part in training"):
        predict(trained / "out", other / "features", labels=other / "labels.csv")
    for path in (other / "features").glob("*.h5"):
        path.rename(path.with_name(f"x{path.name}"))
    _relabel(
        other, lambda r: {**r, "slide_id": "x" + r["slide_id"], "patient_id": "x" + r["patient_id"]}
    )
    found = predict(trained / "out", other / "features", labels=other / "labels.csv").metrics
    cuts = [f.info["calibration"][0]["thresholds"] for f in load_ensemble(trained / "out").folds]
    assert all({"youden", "sensitivity_95"} == set(c) for c in cuts)
    assert found["label"]["auroc"]["pooled"] > 0.8
    assert "sensitivity_at_youden" in found["label"]


def _outside(folder, change=lambda row: row):
    """A cohort that shares nobody with the training cohort."""
    from mil_kit import make_cohort

    folder.mkdir()
    make_cohort(folder, n=20, seed=9)
    for path in (folder / "features").glob("*.h5"):
        path.rename(path.with_name(f"x{path.name}"))
    _relabel(
        folder,
        lambda r: change(
            {**r, "slide_id": "x" + r["slide_id"], "patient_id": "x" + r["patient_id"]}
        ),
    )
    return folder


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda r: {**r, "label": {"1": "Yes"}.get(r["label"], "0")},
            "'Yes' is no class of 'label'",
        ),
        (lambda r: {k: v for k, v in r.items() if k != "label"}, "none of the model's targets"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused_and_not_left_out(
    trained, tmp_path, change, match
):
    other = _outside(tmp_path / "other", change)
    with pytest.raises(ConfigError, match=match):
        predict(trained / "out", other / "features", labels=other / "labels.csv")


def test_an_outside_cohort_says_what_it_lacks_and_is_predicted_before_it_is_judged(
    trained, tmp_path
):
    other = _outside(
        tmp_path / "other", lambda r: {**r, "label": r["label"] if r["slide_id"] != "xs01" else ""}
    )
    said: list[str] = []
    predict(trained / "out", other / "features", labels=other / "labels.csv", say=said.append)
    assert any("label is missing" in text and "xs01" in text for text in said)
    _relabel(other, lambda r: {**r, "label": "1"})
    with pytest.raises(ConfigError, match="one class only"):
        predict(
            trained / "out", other / "features", tmp_path / "p.csv", labels=other / "labels.csv"
        )
    assert len(_rows(tmp_path / "p.csv")) == 20


def test_slides_that_every_fold_learned_from_are_not_called_held_out(cohort):
    rows = [f"s{i:02},0,0,{'test' if i % 3 == 0 else 'train'}" for i in range(30)]
    (cohort / "s.csv").write_text("\n".join(["slide_id,repeat,fold,part", *rows]) + "\n")
    _train(cohort, splits=cohort / "s.csv")
    said: list[str] = []
    predict(cohort / "out", cohort / "features", say=said.append)
    assert any("every fold learned from" in text for text in said)
    assert not any(text.startswith("40 slide(s) of the training cohort") for text in said)


@pytest.mark.parametrize(("key", "value"), [("encoder", "phikon"), ("mpp", 0.25), ("tile_px", 512)])
def test_predict_refuses_features_of_another_kind(trained, key, value):
    with h5py.File(trained / "features" / "s03.h5", "r+") as h5:
        h5.attrs[key] = value
    with pytest.raises(ConfigError, match=rf"s03\.h5: {key} is"):
        predict(trained / "out", trained / "features")


def test_a_damaged_model_is_refused(trained):
    path = trained / "out" / "models" / "fold-0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"0000")
    with pytest.raises(CorruptFileError, match="are not those that"):
        predict(trained / "out", trained / "features")


def test_runs_are_compared_in_pairs_on_the_same_folds_only(cohort):
    from wsipipe.mil.compare import compare_runs

    _train(cohort, "good")
    splits = cohort / "good" / "splits.csv"
    weak = TrainSettings(
        aggregator_settings={"hidden": 4}, epochs=1, lr=1e-6, inner=1, batch_bags=9
    )
    _train(cohort, "weak", aggregator="mean", settings=weak, splits=splits)
    _train(cohort, "third", aggregator="linear", settings=TrainSettings(inner=1), splits=splits)
    rows = compare_runs([cohort / "good", cohort / "weak", cohort / "third"])
    assert len(rows) == 3
    assert rows[0]["difference"] > 0
    assert rows[0]["ci_low"] <= rows[0]["difference"] <= rows[0]["ci_high"]
    assert all(r["p_holm"] >= r["p"] for r in rows)
    _train(cohort, "other", seed=5)
    with pytest.raises(ConfigError, match="splits"):
        compare_runs([cohort / "good", cohort / "other"])


@pytest.mark.parametrize(
    ("in_hardware", "mean_tiles", "expected"),
    [(True, 5000, "bf16"), (True, 12, "fp32"), (False, 5000, "fp32")],
)
def test_precision_is_bf16_where_it_pays(monkeypatch, in_hardware, mean_tiles, expected):
    monkeypatch.setattr("wsipipe.mil.fitting.cpu_has_bf16", lambda: in_hardware)
    assert resolve_precision("auto", torch.device("cpu"), mean_tiles) == expected
    assert resolve_precision("fp32", torch.device("cpu"), mean_tiles) == "fp32"
