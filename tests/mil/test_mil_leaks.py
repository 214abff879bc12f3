"""A copied slide on both sides of a split is refused, whichever tool wrote the files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import find_bags
from wsipipe.mil.crossval import train
from wsipipe.mil.leaks import find_duplicates
from wsipipe.mil.settings import TrainSettings


def _wsipipe(path: Path, x: np.ndarray) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as h5:
        h5["features"], h5.attrs["encoding-type"] = x.astype(np.float16), "wsipipe-features"


def _trident(path: Path, x: np.ndarray) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as h5:
        h5.create_dataset("features", data=x, chunks=(1, x.shape[1]))
        h5["coords"] = np.zeros((len(x), 2), int)
        h5["coords"].attrs["patch_size_level0"] = 512


def _clam(path: Path, x: np.ndarray) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as h5:
        h5.create_dataset("features", data=x, chunks=(4, x.shape[1]), maxshape=(None, x.shape[1]))
        h5["coords"] = np.zeros((len(x), 2), int)
        h5["coords"].attrs["patch_level"] = 0


def _stamp(path: Path, x: np.ndarray) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as h5:
        h5["feats"], h5.attrs["stamp_version"] = x.astype(np.float16), "2.5.0"


def _atlaspatch(path: Path, x: np.ndarray) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as h5:
        h5["features/uni"] = x


def _pt(path: Path, x: np.ndarray) -> None:
    torch.save(torch.from_numpy(x), path.with_suffix(".pt"))


def _pt_with_coords(path: Path, x: np.ndarray) -> None:
    said = {"features": torch.from_numpy(x)[None], "coords": torch.zeros(len(x), 2)}
    torch.save(said, path.with_suffix(".pt"))


def _npy(path: Path, x: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), x)


TOOLS = [_wsipipe, _trident, _clam, _stamp, _atlaspatch, _pt, _pt_with_coords, _npy]


def _cohort(folder: Path, writers: list, copy_of: int | None, patient: str = "p11") -> None:
    """Twelve slides of one length; the last is a copy of another where asked."""
    rng = np.random.default_rng(0)
    # Values of float16, as after any tool's mixed precision.
    bags = [rng.normal(size=(6, 5)).astype(np.float16).astype(np.float32) for _ in range(12)]
    if copy_of is not None:
        bags[11] = bags[copy_of]
    (folder / "f").mkdir()
    for i, x in enumerate(bags):
        writers[i % len(writers)](folder / "f" / f"s{i:02}", x)
    who = [*(f"p{i:02}" for i in range(11)), patient]
    rows = [f"s{i:02},{who[i]},{i % 2}" for i in range(12)]
    (folder / "labels.csv").write_text("\n".join(["slide_id,patient_id,label", *rows]) + "\n")
    rows = [f"s{i:02},{i // 2 % 2}" for i in range(11)] + [f"s11,{int(patient == 'p11')}"]
    (folder / "splits.csv").write_text("\n".join(["slide_id,fold", *rows]) + "\n")


def _train(folder: Path) -> None:
    settings = TrainSettings(
        aggregator_settings={"hidden": 4, "attention_dim": 2}, epochs=1, inner=1, batch_bags=4
    )
    train(
        folder / "f", folder / "labels.csv", target="label", splits=folder / "splits.csv",
        out=folder / "out", settings=settings,
    )  # fmt: skip


@pytest.mark.parametrize("write", TOOLS)
def test_equal_files_of_one_tool_are_found(tmp_path, write):
    _cohort(tmp_path, [write], copy_of=4)
    assert find_duplicates(find_bags(tmp_path / "f")) == [("s04", "s11")]
    with pytest.raises(ConfigError, match=r"'s04', 's11' have equal features .* train and test"):
        _train(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", TOOLS[1:], ids=lambda w: w.__name__)
def test_one_slide_in_the_files_of_two_tools_is_found(tmp_path, other):
    """float16 in one block here; float32, in chunks or pickled there: other bytes, same slide."""
    _cohort(tmp_path, [_wsipipe, other], copy_of=4)
    assert find_duplicates(find_bags(tmp_path / "f")) == [("s04", "s11")]


def test_a_copy_within_one_patient_or_one_side_is_no_leak(tmp_path):
    _cohort(tmp_path, [_npy], copy_of=9, patient="p09")
    assert find_duplicates(find_bags(tmp_path / "f")) == [("s09", "s11")]
    _train(tmp_path)


def test_slides_that_differ_in_one_value_are_no_copies(tmp_path):
    _cohort(tmp_path, [_npy], copy_of=4)
    x = np.load(tmp_path / "f" / "s11.npy")
    x[3, 2] += 0.5
    np.save(tmp_path / "f" / "s11.npy", x)
    assert find_duplicates(find_bags(tmp_path / "f")) == []
