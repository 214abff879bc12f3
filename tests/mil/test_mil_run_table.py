"""Several runs in one table: best first, tested where the patients and folds are the same."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.mil.run_table import run_table, run_table_csv


def make_run(folder: Path, auroc: float, scores: list[float], splits: str = "s") -> Path:
    folder.mkdir()
    figure = {"pooled": auroc, "ci_low": auroc - 0.1, "ci_high": 1.0, "mean": auroc}
    document = {
        "metrics": {"auroc": figure}, "aggregator": "abmil", "n_patients": len(scores),
        "features": {"encoder": folder.name}, "task": "classification", "splits_sha256": splits,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(document))
    lines = ["slide_id,patient_id,fold,repeat,y_true,y_pred,p_a,p_b"]
    for i, score in enumerate(scores):
        truth = "b" if i % 2 else "a"
        lines.append(f"s{i},p{i:03d},0,0,{truth},{truth},{1 - score},{score}")
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    truth = np.arange(80) % 2
    good = (truth * 0.6 + rng.random(80) * 0.4).tolist()
    return [
        make_run(tmp_path / "chance", 0.5, rng.random(80).tolist()),
        make_run(tmp_path / "good", 1.0, good),
    ]


def test_best_first_with_a_paired_test_against_it(runs: list[Path]) -> None:
    table_ = run_table(runs)
    rows = table_.rows
    assert table_.metric == "auroc"
    assert table_.untested == ""
    assert [p["first"] for p in table_.pairs] == ["good"]
    assert [row.encoder for row in rows] == ["good", "chance"]
    assert rows[0].p_to_best is None
    assert rows[1].p_to_best is not None
    assert rows[1].p_to_best < 1e-6
    table = list(csv.DictReader(io.StringIO(run_table_csv(rows))))
    assert [line["auroc_pooled"] for line in table] == ["1", "0.5"]
    assert float(table[1]["p_to_best_holm"]) == pytest.approx(rows[1].p_to_best, rel=1e-4)


def test_runs_of_other_folds_are_listed_without_a_test(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", 0.7, [0.5] * 80, splits="other")
    found = run_table([*runs, other])
    rows, untested = found.rows, found.untested
    assert found.pairs == ()
    assert [row.encoder for row in rows] == ["good", "other", "chance"]
    assert all(row.p_to_best is None for row in rows)
    assert "splits" in untested


def test_folders_without_a_run_and_unknown_metrics_are_refused(
    runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no finished training run"):
        run_table([runs[0], tmp_path])
    with pytest.raises(ConfigError, match="They share: auroc"):
        run_table(runs, "c_index")


def test_of_errors_the_smaller_is_the_better(tmp_path: Path) -> None:
    for name, value in (("near", 1.0), ("far", 2.0)):
        folder = make_run(tmp_path / name, 0.5, [0.2, 0.7, 0.1, 0.9])
        document = json.loads((folder / "metrics.json").read_text())
        document["metrics"] = {"rmse": {**document["metrics"]["auroc"], "pooled": value}}
        (folder / "metrics.json").write_text(json.dumps(document))
    rows = run_table([tmp_path / "far", tmp_path / "near"], "rmse").rows
    assert [row.encoder for row in rows] == ["near", "far"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        make_run(tmp_path / parent / "mil", 0.5, [0.2, 0.7, 0.1, 0.9, 0.4, 0.6])
    (pair,) = run_table([tmp_path / "a" / "mil", tmp_path / "b" / "mil"]).pairs
    assert pair["first"] != pair["second"]
