"""`wsipipe tissue` and `wsipipe tile` as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image


def wsipipe(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsipipe", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def picture(seed: int = 0) -> np.ndarray:
    """300 x 400 px with a square of tissue of 200 x 200 px."""
    rng = np.random.default_rng(seed)
    rgb = np.full((300, 400, 3), 243, np.uint8)
    rgb[50:250, 100:300] = rng.integers((170, 110, 160), (230, 170, 215), (200, 200, 3))
    return rgb


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A manifest of two slides of 8 µm, one of glass, and one that is missing."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    Image.fromarray(picture(1)).save(tmp_path / "b.png")
    Image.fromarray(np.full((300, 400, 3), 243, np.uint8)).save(tmp_path / "glass.png")
    manifest = tmp_path / "slides.csv"
    manifest.write_text("path,mpp\na.png,8\nb.png,8\nglass.png,8\nlost.png,8\n")
    return manifest


def statuses(answer: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {s["slide_id"]: s["status"] for s in json.loads(answer.stdout)["slides"]}


@pytest.mark.parametrize("workers", [1, 2])
def test_tissue_of_all_slides_and_a_bad_one_stops_no_other(
    slides: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    answer = wsipipe("tissue", slides, "--out", out, "--json", "--workers", workers)
    assert answer.returncode == 1, answer.stderr
    assert statuses(answer) == {"a": "done", "b": "done", "glass": "empty", "lost": "failed"}
    found = {s["slide_id"]: s for s in json.loads(answer.stdout)["slides"]}
    assert found["a"]["tissue_mm2"] == pytest.approx(2.56, rel=0.05)
    assert found["lost"]["remedy"]
    for slide_id in ("a", "b", "glass"):
        assert (out / "tissue" / f"{slide_id}.geojson").exists()
        assert (out / "thumbnails" / f"{slide_id}.jpg").exists()
    assert "the file does not exist. Check the path." in answer.stderr


def test_the_same_command_again_does_nothing(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wsipipe("tissue", slides, "--out", out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    answer = wsipipe("tissue", slides, "--out", out, "--json")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    kept = {s["slide_id"]: s["kept"] for s in json.loads(answer.stdout)["slides"]}
    assert kept == {"a": True, "b": True, "glass": True, "lost": False}


def test_other_settings_are_refused_before_anything_starts(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wsipipe("tissue", slides, "--out", out)
    (out / "tissue" / "a.geojson").unlink()
    answer = wsipipe("tissue", slides, "--out", out, "--tissue", "auto?close_um=8")
    assert answer.returncode == 2
    assert "close_um" in answer.stderr
    assert not (out / "tissue" / "a.geojson").exists()
    again = wsipipe("tissue", slides, "--out", out, "--tissue", "auto?close_um=8", "--recompute")
    assert again.returncode == 1
    assert (out / "tissue" / "a.geojson").exists()


def test_a_mask_that_was_edited_is_spared(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wsipipe("tissue", slides, "--out", out)
    path = out / "tissue" / "a.geojson"
    document = json.loads(path.read_text())
    del document["wsipipe"]
    path.write_text(json.dumps(document))
    edited = path.read_bytes()
    answer = wsipipe("tissue", slides, "--out", out, "--json")
    assert statuses(answer)["a"] == "failed"
    assert path.read_bytes() == edited
    # It can be used, from the very folder it lies in.
    using = wsipipe("tissue", slides, "--out", out, "--tissue", out / "tissue", "--json")
    assert statuses(using)["a"] == "done", using.stderr
    assert path.read_bytes() == edited


def test_a_slide_that_changed_fails_until_recompute(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wsipipe("tissue", slides, "--out", out)
    Image.fromarray(picture(5)).save(tmp_path / "a.png")
    assert statuses(wsipipe("tissue", slides, "--out", out, "--json"))["a"] == "failed"
    answer = wsipipe("tissue", slides, "--out", out, "--json", "--recompute")
    assert statuses(answer)["a"] == "done"


@pytest.mark.parametrize("wrong", ["ostu", "auto?x=1"])
def test_a_wrong_method_is_the_command_lines_fault(
    slides: Path, tmp_path: Path, wrong: str
) -> None:
    answer = wsipipe("tissue", slides, "--out", tmp_path / "out", "--tissue", wrong)
    assert answer.returncode == 2
    assert not (tmp_path / "out").exists()


def test_missing_weights_end_with_three_and_the_licence_is_said(
    slides: Path, tmp_path: Path
) -> None:
    answer = wsipipe(
        "tissue", slides, "--out", tmp_path / "out", "--tissue", "grandqc",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"), HF_HUB_CACHE="",
    )  # fmt: skip
    assert answer.returncode == 3
    assert "CC-BY-NC-SA-4.0" in answer.stderr


def test_tile_writes_coordinates_and_quality(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ("tile", slides, "--out", out, "--tile-px", 50, "--mpp", 8, "--quality", "--json")
    answer = wsipipe(*args)
    assert answer.returncode == 1
    assert statuses(answer) == {"a": "done", "b": "done", "glass": "empty", "lost": "failed"}
    path = out / "tiles" / "50px-8mpp" / "a.h5"
    with h5py.File(path) as h5:
        expected = {(x, y) for x in range(100, 300, 50) for y in range(50, 250, 50)}
        assert expected <= set(map(tuple, h5["coords"][()].tolist()))
        assert h5["coords"].attrs["patch_size"] == 50
        assert h5["coords"].attrs["patch_size_level0"] == 50
        assert (h5["tissue_fraction"][()] >= 0.25).all()
        assert set(h5["quality"]) == {"focus", "pen", "blood", "black", "saturation"}
        assert h5["quality/saturation"].shape == h5["tissue_fraction"].shape
        assert h5.attrs["encoding-type"] == "wsipipe-tiles"
    before = path.stat().st_mtime_ns
    wsipipe(*args)
    assert path.stat().st_mtime_ns == before
    other = wsipipe(*args, "--overlap", 0.5)
    assert other.returncode == 2
    assert "overlap" in other.stderr


def test_tile_stays_within_a_region_and_above_a_filter(slides: Path, tmp_path: Path) -> None:
    ring = [[100, 50], [200, 50], [200, 250], [100, 250], [100, 50]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
              "properties": {"classification": {"name": "Tumor"}}}  # fmt: skip
    (tmp_path / "roi").mkdir()
    (tmp_path / "roi" / "a.geojson").write_text(json.dumps(region))
    base = ("tile", tmp_path / "a.png", "--slide-mpp", 8, "--tile-px", 50, "--mpp", 8, "--json")
    roi = ("--roi", tmp_path / "roi", "--roi-class", "tumor")
    found = json.loads(wsipipe(*base, *roi, "--out", tmp_path / "o1").stdout)["slides"][0]
    assert found["tiles"] == 8
    none = wsipipe(*base, "--min-saturation", 0.99, "--out", tmp_path / "o2")
    assert none.returncode == 0
    assert json.loads(none.stdout)["slides"][0]["status"] == "empty"
    wrong = wsipipe(*base, "--roi", tmp_path / "nowhere", "--out", tmp_path / "o3")
    assert wrong.returncode == 2
