"""`wsipipe inspect`: what it says is what extract does, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import wsipipe as wp
from tests.pipeline.conftest import NULL_ENCODER, write_svs


def inspect(*arguments: Any) -> Any:
    from typer import Typer

    from wsipipe.cli.inspect import command

    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "mean.py"
    path.write_text(NULL_ENCODER.format(name="mean", tile_px=64, mpp=0.5, scale=1.0, act="pass"))
    return path


def test_what_it_promises_is_what_extract_makes(tmp_path: Path, encoder: Path) -> None:
    folder = tmp_path / "slides"
    write_svs(folder / "a.svs")
    write_svs(folder / "fine.svs", mpp=0.25, seed=1)
    before = sorted(tmp_path.rglob("*"))
    ran = inspect(folder, "--encoder", encoder, "--json")
    assert ran.exit_code == 0, ran.output
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before
    document = json.loads(ran.stdout)
    facts = {slide["slide_id"]: slide for slide in document["slides"]}
    assert facts["a"]["size"] == [1024, 768]
    assert facts["a"]["mpp"] == [0.5, 0.5]
    assert facts["fine"]["read"]["mean"].startswith("area")
    wp.extract(folder, encoder=str(encoder), out=tmp_path / "out")
    for name, fact in facts.items():
        bag = wp.read_features(tmp_path / "out" / "features" / "mean" / f"{name}.h5")
        assert fact["tiles"]["mean"] == len(bag)
    low, high = document["total"]["hours"]
    assert 0 < low <= high < 1


def test_a_slide_that_would_fail_is_said_with_its_remedy(tmp_path: Path, encoder: Path) -> None:
    write_svs(tmp_path / "slides" / "nompp.svs", mpp=None)
    ran = inspect(tmp_path / "slides", "--encoder", encoder)
    assert ran.exit_code == 1
    assert "WOULD FAIL" in ran.stdout
    assert "--slide-mpp" in ran.stdout
    assert "unknown" in ran.stdout
