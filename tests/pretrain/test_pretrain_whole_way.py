"""Slides -> encoder -> features -> model, by the commands a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsipipe.synth import make_cohort


def wsipipe(*words: object) -> str:
    """Stdout of a command that must end with 0."""
    command = [sys.executable, "-m", "wsipipe", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.full
@pytest.mark.timeout(600)
def test_an_encoder_trained_on_slides_serves_extract_and_train(tmp_path: Path) -> None:
    slides, feats, mil = tmp_path / "slides", tmp_path / "feats", tmp_path / "mil"
    make_cohort(slides, n=8, width=2048)
    wsipipe(
        "pretrain", "--recipe", "dinov2", "--scale", "smoke", "--slides", slides,
        "--out", tmp_path / "run", "--set", "optim.steps=6", "--set", "optim.batch=16",
    )  # fmt: skip
    encoder = tmp_path / "run" / "encoder"
    assert {"config.json", "model.safetensors"} <= {p.name for p in encoder.iterdir()}
    said = json.loads(wsipipe("extract", slides, "--encoder", encoder, "--out", feats, "--json"))
    assert len(said["done"]) == 8
    (features,) = (feats / "features").iterdir()
    metrics = json.loads(
        wsipipe(
            "train",
            "--features",
            features,
            "--labels",
            slides / "labels.csv",
            "--target",
            "label",
            "--folds",
            2,
            "--epochs",
            3,
            "--out",
            mil,
            "--json",
        )
    )
    assert 0 <= metrics["metrics"]["auroc"]["pooled"] <= 1
    model = json.loads((mil / "models" / "fold-0" / "model.json").read_text())
    assert model["features"]["encoder"] == features.name
