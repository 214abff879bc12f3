"""`verify` finds every kind of damage, and calls harmless things harmless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsipipe.errors import SlideError
from wsipipe.owner import Owner
from wsipipe.store import FeatureFile, Records, SlideResult, write_features, write_tables
from wsipipe.store.verify import verify_run
from wsipipe.store.verify_file import verify_features


def grid_coords(rows: int) -> np.ndarray:
    index = np.arange(rows)
    return np.stack([index % 10 * 448, index // 10 * 448], axis=1)


@pytest.fixture
def sound(make_file) -> FeatureFile:
    file = make_file(40)
    return replace(file, coords=grid_coords(40))


def test_a_sound_file_has_no_problem(tmp_path: Path, sound: FeatureFile) -> None:
    path = write_features(tmp_path / "a.h5", sound)
    problems, attrs = verify_features(path)
    assert problems == []
    assert attrs["rows"] == 40
    path = write_features(tmp_path / "b.h5", replace(sound, **_empty(sound)))
    assert verify_features(path)[0] == []


def _empty(file: FeatureFile) -> dict[str, np.ndarray]:
    names = ("features", "coords", "tissue_fraction", "tile_status")
    return {name: getattr(file, name)[:0] for name in names}


def _set(name: str, index: object, value: object):
    def change(h5: h5py.File) -> None:
        h5[name][index] = value

    return change


def _delete(name: str):
    def change(h5: h5py.File) -> None:
        del h5[name]

    return change


def _attribute(name: str, value: object):
    def change(h5: h5py.File) -> None:
        h5.attrs[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_set("features", (3, 2), 9.0), "sha256"),
        (_set("features", (3, 2), np.nan), "no failed read explains"),
        (_set("features", 3, 0.0), "zeros only"),
        (_set("tile_status", 3, 1), "have numbers"),
        (_set("tile_status", 3, 7), "tile_status"),
        (_set("tissue_fraction", 0, 1.5), "tissue_fraction"),
        (_set("coords", 0, (46000, 0)), "outside"),
        (_set("coords", 1, (0, 0)), "row-major"),
        (_delete("tile_status"), "no dataset tile_status"),
        (_delete("feats"), "feats"),
        (_attribute("identity", "0" * 64), "identity"),
        (_attribute("encoding-version", "9"), "encoding"),
    ],
)
def test_each_kind_of_damage_is_found(
    tmp_path: Path, sound: FeatureFile, change, word: str
) -> None:
    path = write_features(tmp_path / "features" / "texture" / "case" / "a.h5", sound)
    assert not verify_run(tmp_path).damaged
    with h5py.File(path, "r+") as h5:
        change(h5)
    result = verify_run(tmp_path)
    assert result.damaged
    assert any(word in f.problem for f in result.findings), result.findings
    assert result.findings[0].path == "features/texture/case/a.h5"
    assert result.findings[0].remedy


def test_a_flipped_bit_is_found_unless_only_the_structure_is_asked(
    tmp_path: Path, sound: FeatureFile
) -> None:
    path = write_features(tmp_path / "features" / "texture" / "case" / "a.h5", sound)
    data = bytearray(path.read_bytes())
    with h5py.File(path) as h5:
        data[h5["features"].id.get_offset() + 5] ^= 1
    path.write_bytes(data)
    assert not verify_run(tmp_path, quick=True).damaged
    assert "sha256" in verify_run(tmp_path).findings[0].problem
    path.write_bytes(data[: len(data) // 2])
    assert "HDF5" in verify_run(tmp_path, quick=True).findings[0].problem


def test_a_file_under_another_slides_name_is_damage(tmp_path: Path, sound: FeatureFile) -> None:
    write_features(tmp_path / "features" / "texture" / "b.h5", sound)
    assert "case/a" in verify_run(tmp_path).findings[0].problem


def test_a_file_that_was_lost_is_damage_one_never_made_is_not(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = records.begin("a", "a.svs", ["texture"])
    records.finish(record, [SlideResult(encoder="texture", status="failed")])
    assert not verify_run(tmp_path).damaged
    records.finish(record, [SlideResult(encoder="texture", status="done")])
    assert "not there" in verify_run(tmp_path).findings[0].problem
    (tmp_path / "attempts" / "a.json").unlink()
    assert not verify_run(tmp_path).damaged
    write_tables(tmp_path)
    text = (tmp_path / "slides.csv").read_text()
    (tmp_path / "slides.csv").write_text(text + "b,b.svs,texture,done,,,,,,,,,,\n")
    assert "slides.csv calls it done" in verify_run(tmp_path).findings[0].problem


def test_mixed_precision_and_leftovers_are_notes(tmp_path: Path, sound: FeatureFile) -> None:
    folder = tmp_path / "features" / "texture" / "case"
    write_features(folder / "a.h5", sound)
    meta = replace(sound.meta, slide_id="case/b", precision="bf16")
    write_features(folder / "b.h5", replace(sound, meta=meta))
    dead = Owner("elsewhere", 3, "x")
    (folder / f".c.h5.{dead}.0.tmp").write_bytes(b"")
    result = verify_run(tmp_path)
    assert not result.damaged
    assert result.files == 2
    assert result.tiles == 80
    notes = {f.problem.split(" (")[0].split(" of ")[0] for f in result.findings}
    assert notes == {"mixed precision", "temporary"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("attempts/a.json", b"{"),
        ("tissue/a.geojson", b'{"type": "Feature"}'),
        ("thumbnails/a.jpg", b"\xff\xd8cut"),
    ],
)
def test_damaged_side_files_are_found(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)
    result = verify_run(tmp_path)
    assert [f.path for f in result.findings if f.severity == "damage"] == [name]


def test_side_files_that_cannot_be_read_do_not_end_the_search(tmp_path: Path) -> None:
    names = ["thumbnails/a.jpg", "tissue/a.geojson", "tissue/b.geojson"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    found = sorted(f.path for f in verify_run(tmp_path).findings if f.severity == "damage")
    assert found == names


def test_samples_are_compared_with_what_is_stored(tmp_path: Path, sound: FeatureFile) -> None:
    for k in range(3):
        meta = replace(sound.meta, slide_id=f"s{k}")
        write_features(tmp_path / "features" / "texture" / f"s{k}.h5", replace(sound, meta=meta))
    asked = []

    def faithful(bag, rows):
        asked.extend((bag.path.stem, int(r)) for r in rows)
        return bag.features[rows].astype(np.float32) * 1.001

    result = verify_run(tmp_path, sample=20, embed=faithful)
    assert not result.damaged
    assert result.sampled == 20 == len(set(asked))
    assert {name for name, _ in asked} == {"s0", "s1", "s2"}
    assert result.worst_cosine == pytest.approx(1, abs=1e-3)

    def other_model(bag, rows):
        return np.random.default_rng(0).standard_normal((len(rows), 8))

    assert verify_run(tmp_path, sample=20, embed=other_model).damaged

    def slide_is_gone(bag, rows):
        raise SlideError("s.svs", "gone")

    result = verify_run(tmp_path, sample=20, embed=slide_is_gone)
    assert not result.damaged
    assert "not sampled" in result.findings[0].problem
