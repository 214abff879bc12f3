"""`wsipipe train`, `predict`, `heatmap` and `mil` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from wsipipe.cli import main


def _cohort(folder, n=40):
    rng = np.random.default_rng(0)
    (folder / "f").mkdir()
    lines = ["slide_id,patient_id,label"]
    for i in range(n):
        x = rng.normal(size=(6, 8))
        x[:2, :3] += 4 * (i % 2)
        with h5py.File(folder / "f" / f"s{i:02}.h5", "w") as h5:
            h5["features"] = x.astype(np.float32)
            h5["coords"] = np.stack([np.arange(6) * 100, np.zeros(6)], axis=1).astype(np.int64)
        lines.append(f"s{i:02},p{i:02},{'yes' if i % 2 else 'no'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _run(*args) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture
def trained(tmp_path):
    _cohort(tmp_path)
    args = [
        "train", "--features", tmp_path / "f", "--labels", tmp_path / "labels.csv",
        "--target", "label", "--folds", 2, "--out", tmp_path / "out", "--epochs", 12,
        "--batch-bags", 3,
        "--lr", "1e-2", "--inner", 1, "--set", "hidden=16", "--set", "attention_dim=8",
    ]  # fmt: skip
    return tmp_path, args


def test_train_then_predict_then_heatmap(trained, capsys):
    folder, args = trained
    assert _run(*args, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["metrics"]["auroc"]["pooled"] > 0.8
    assert _run("predict", "--model", folder / "out", "--features", folder / "f",
                "--out", folder / "p.csv", "--json") == 0  # fmt: skip
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 40
    assert (folder / "p.csv").read_text().startswith("slide_id,y_pred,p_no,p_yes")
    heat = ["heatmap", "--model", folder / "out", "--features", folder / "f",
            "--out", folder / "h", "--slide-id", "s03"]  # fmt: skip
    # The files do not say the unit of their coordinates: asked for, never guessed.
    assert _run(*heat) == 2
    assert "--coords-unit" in capsys.readouterr().err
    assert _run(*heat, "--coords-unit", "px0", "--tile-size", 100, "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["held_out"]
    assert one["what"] == "attention"
    assert (folder / "h" / "s03.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((folder / "h" / "s03.geojson").read_text())["features"]) == 6


def test_a_table_and_the_report_are_named(trained, capsys):
    _, args = trained
    assert _run(*args) == 0
    out = capsys.readouterr().out
    assert "auroc" in out
    assert "report.html" in out


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--aggregator", "abmill"], "Did you mean 'abmil'"),
        (["--folds", 1], "--folds"),
        (["--grid", "lr"], "KEY=A,B"),
        (["--set", "nothing=1"], "no setting 'nothing'"),
        (["--features", "/nonexistent"], "no such folder"),
        (["--resume", "--recompute"], "contradict"),
    ],
)
def test_wrong_command_lines_end_with_two(trained, capsys, extra, match):
    _, args = trained
    assert _run(*args, *extra) == 2
    assert match in capsys.readouterr().err


def test_a_model_without_attention_shows_contributions(trained, capsys):
    folder, args = trained
    del args[-4:]
    assert _run(*args, "--aggregator", "mean") == 0
    capsys.readouterr()
    heat = ["heatmap", "--model", folder / "out", "--features", folder / "f", "--out", folder / "h",
            "--coords-unit", "px0", "--tile-size", 100, "--slide-id", "s01", "--json"]  # fmt: skip
    assert _run(*heat) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["what"] == "contribution"
    assert _run(*heat, "--kind", "attention") == 2


def test_mil_list_names_every_aggregator(capsys):
    assert _run("mil", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"abmil", "transmil", "clam-mb"} <= {r["name"] for r in rows}


@pytest.mark.full
def test_selftest_tells_a_causal_model_from_one_that_learns_the_poison(capsys):
    assert _run("mil", "selftest", "--aggregator", "abmil", "--aggregator", "max", "--bags", 60,
                "--epochs", 6, "--json") == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)
    assert {r["test"] for r in rows} == {"single-concept", "multi-concept", "false-frequency"}
    single = {r["aggregator"]: r for r in rows if r["test"] == "single-concept"}
    assert min(r["train_auc"] for r in single.values()) > 0.9
    # The mean over tiles sees the poison in negative bags and takes it for "negative"; a maximum
    # of one score cannot be lowered by anything.
    assert single["abmil"]["test_auc"] < 0.5
    assert single["max"]["verdict"] == "pass"


@pytest.mark.parametrize("command", ["train", "predict", "heatmap", "mil"])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys\nsys.argv = ['wsipipe', sys.argv[1], '--help']\n"
        "from wsipipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "bad = {'torch', 'h5py', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code, command], check=True, capture_output=True)
