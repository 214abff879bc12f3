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


def test_tiles_are_embedded_anew_from_the_slide(tmp_path: Path) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    assert wsipipe("synth", slides, "-n", "1", "--size", "1536").returncode == 0
    done = wsipipe("extract", slides, "--encoder", "texture", "--out", out)
    assert done.returncode == 0, done.stderr
    document = json.loads(wsipipe("verify", out, "--sample", "5", "--json").stdout)
    assert document["sampled"] == 5
    assert document["worst_cosine"] > 0.999
    (path,) = (out / "features/texture").glob("*.h5")
    with h5py.File(path, "r+") as h5:
        # Rows that belong to other tiles: every number is sound, none is in its place.
        h5["features"][:] = h5["features"][:][::-1]
        del h5.attrs["content_sha256"]
    assert wsipipe("verify", out).returncode == 0
    assert wsipipe("verify", out, "--sample", "5").returncode == 1
