"""`wsipipe synth` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def synth(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsipipe", "synth", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_folder_holds_slides_labels_and_truth(tmp_path: Path) -> None:
    done = synth(
        str(tmp_path), "-n", "2", "--size", "400x300", "--mpp", "2", "--seed", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [slide["slide_id"] for slide in report["slides"]] == ["slide-3-0001", "slide-3-0002"]
    assert {slide["label"] for slide in report["slides"]} == {"tumour", "normal"}
    assert all(slide["width"] == "400" and slide["height"] == "300" for slide in report["slides"])
    for name in ("slide-3-0001.svs", "labels.csv", "truth/tissue/slide-3-0001.geojson"):
        assert (tmp_path / name).is_file()
    header = (tmp_path / "labels.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["slide_id", "label", "patient_id", "site", "tumour_fraction"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "big"], "--size"),
        (["--size", "10x10x10"], "--size"),
        (["--size", "0"], "width is 0 px"),
        (["--size", "999999999"], "width is 999999999 px"),
        (["-n", "0"], "number of slides is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--mpp", "0"], "mpp is 0"),
        (["--mpp", "nan"], "mpp is nan"),
        (["--artefact", "coffee"], "pen"),
        (["--codec", "webp"], "jp2k"),
        (["--tumour-fraction", "much"], "--tumour-fraction"),
        (["--workers", "-3"], "workers"),
    ],
)
def test_nonsense_is_exit_2_with_what_is_allowed(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "out"
    done = synth(str(out), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_out_that_is_a_file_is_exit_4(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    done = synth(str(tmp_path / "out"), "-n", "1", "--size", "100", "--mpp", "4")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
