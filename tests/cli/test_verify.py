"""`wsipipe verify` ends with 1 where something is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
from test_status import add_slide, wsipipe


@pytest.fixture
def out(tmp_path: Path) -> Path:
    add_slide(tmp_path / "out", "case/a", 5)
    add_slide(tmp_path / "out", "b", 0)
    return tmp_path / "out"


def test_a_sound_run_ends_with_0(out: Path) -> None:
    done = wsipipe("verify", out)
    assert done.returncode == 0
    assert "2 feature files with 5 tiles" in done.stdout


def test_damage_ends_with_1_and_names_the_file(out: Path) -> None:
    with h5py.File(out / "features/texture/case/a.h5", "r+") as h5:
        h5["features"][0, 0] = 9
    done = wsipipe("verify", out)
    assert done.returncode == 1
    assert "features/texture/case/a.h5" in done.stdout
    document = json.loads(wsipipe("verify", out, "--json").stdout)
    assert document["damaged"] is True
    assert document["findings"][0]["severity"] == "damage"
    assert wsipipe("verify", out, "--quick").returncode == 0


def test_a_folder_without_features_is_a_usage_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        assert wsipipe("verify", folder).returncode == 2
