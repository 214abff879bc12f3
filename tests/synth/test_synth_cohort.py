"""A cohort has patients, sites and labels; making it again does nothing twice."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from wsipipe.errors import ConfigError
from wsipipe.synth import make_cohort

TINY = {"width": 320, "mpp": 4.0}


def labels(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_half_of_the_patients_have_tumour_and_the_table_says_which(tmp_path: Path) -> None:
    paths = make_cohort(tmp_path, n=8, slides_per_patient=2, **TINY)
    rows = labels(tmp_path)
    assert [row["slide_id"] for row in rows] == [path.stem for path in paths]
    by_patient = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], []).append((row["label"], row["site"]))
    assert len(by_patient) == 4
    assert all(first == second for first, second in by_patient.values())
    assert sorted(pairs[0] for pairs in by_patient.values()) == [
        ("normal", "site-A"), ("normal", "site-B"), ("tumour", "site-A"), ("tumour", "site-B"),
    ]  # fmt: skip
    for row in rows:
        assert (float(row["tumour_fraction"]) > 0) == (row["label"] == "tumour")


def test_without_labels_every_slide_has_tumour(tmp_path: Path) -> None:
    make_cohort(tmp_path, n=3, labels=False, **TINY)
    assert {row["label"] for row in labels(tmp_path)} == {"tumour"}


def test_slides_of_one_site_share_a_stain_and_sites_differ(tmp_path: Path) -> None:
    import json

    make_cohort(tmp_path, n=6, sites=2, **TINY)
    stains: dict[str, set[int]] = {}
    for row in labels(tmp_path):
        summary = json.loads((tmp_path / "truth" / f"{row['slide_id']}.json").read_text())
        stains.setdefault(row["site"], set()).add(summary["settings"]["stain_seed"])
    assert len(stains) == 2
    assert all(len(seeds) == 1 for seeds in stains.values())
    assert stains["site-A"] != stains["site-B"]


def test_again_makes_only_what_is_missing_or_was_asked_otherwise(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def made() -> list[str]:
        names = [slide_id for slide_id, new in seen if new]
        seen.clear()
        return names

    def report(slide_id: str, new: bool) -> None:
        seen.append((slide_id, new))

    first = make_cohort(tmp_path, n=2, progress=report, **TINY)
    assert made() == ["slide-0001", "slide-0002"]
    content = first[0].read_bytes()
    make_cohort(tmp_path, n=2, progress=report, **TINY)
    assert made() == []
    first[0].unlink()
    make_cohort(tmp_path, n=2, progress=report, **TINY)
    assert made() == ["slide-0001"]
    assert first[0].read_bytes() == content
    make_cohort(tmp_path, n=2, codec="lzw", progress=report, **TINY)
    assert made() == ["slide-0001", "slide-0002"]


@pytest.mark.parametrize("name", ["labels.csv", "slide-0001.svs"])
def test_files_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("slide_id,label\nmine,1\n")
    with pytest.raises(ConfigError, match="Choose another folder"):
        make_cohort(tmp_path, n=1, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "slide_id,label\nmine,1\n"


def test_a_table_with_added_columns_is_kept(tmp_path: Path) -> None:
    make_cohort(tmp_path, n=1, **TINY)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace(",seed\n", ",seed,survival\n"))
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        make_cohort(tmp_path, n=1, **TINY)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from wsipipe.store import publish\n"
        "with publish.publishing(Path(sys.argv[1]) / 'slide-0001.svs'): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(".slide-0001.svs.*.tmp"))) == 1
    make_cohort(tmp_path, n=1, **TINY)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 0},
        {"n": -1},
        {"seed": -1},
        {"slides_per_patient": 0},
        {"sites": 0},
        {"tumour_fraction": (0.5, 0.1)},
        {"width": 7},
        {"codec": "webp"},
    ],
)
def test_bad_cohorts_are_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        make_cohort(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_cohorts_of_other_seeds_share_no_slide_and_no_patient(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_cohort(tmp_path / str(seed), n=2, seed=seed, **TINY)
    for column in ("slide_id", "patient_id"):
        first, second = ({row[column] for row in labels(tmp_path / str(s))} for s in (0, 1))
        assert not first & second
