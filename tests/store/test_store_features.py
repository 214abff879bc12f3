"""The feature file holds what the contract says, byte for byte what was given."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsipipe.errors import CorruptFileError, IdentityMismatchError, StoreError
from wsipipe.store import FeatureFile, check_file, read_attrs, read_features, write_features
from wsipipe.store._layout import lay_out


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [0, 1, 5, 4097])
def test_what_is_read_is_what_was_written(tmp_path: Path, make_file, rows: int, dtype: str) -> None:
    file = make_file(rows, 33, dtype)
    blur = np.linspace(0, 1, rows, dtype=np.float32)
    file = replace(file, quality={"blur": blur})
    write_features(tmp_path / "a.h5", file)
    for lazy in (False, True):
        bag = read_features(tmp_path / "a.h5", lazy=lazy)
        assert bag.features.dtype == dtype
        assert bag.features.shape == (rows, 33)
        np.testing.assert_array_equal(bag.features, file.features)
        np.testing.assert_array_equal(bag.coords, file.coords)
        np.testing.assert_array_equal(bag.tissue_fraction, file.tissue_fraction)
        np.testing.assert_array_equal(bag.tile_status, file.tile_status)
        np.testing.assert_array_equal(bag.quality["blur"], blur)


def test_the_layout_is_the_contract(tmp_path: Path, make_file) -> None:
    write_features(tmp_path / "a.h5", make_file(7))
    with h5py.File(tmp_path / "a.h5") as h5:
        kinds = {name: (h5[name].dtype, h5[name].shape) for name in h5}
        assert kinds == {
            "features": (np.float16, (7, 8)),
            "feats": (np.float16, (7, 8)),
            "coords": (np.int64, (7, 2)),
            "tissue_fraction": (np.float32, (7,)),
            "tile_status": (np.uint8, (7,)),
        }
        assert h5["features"].chunks is None
        assert h5["features"].id.get_offset() == h5["feats"].id.get_offset()
        expected = {
            "patch_size": 224,
            "patch_size_level0": 448,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 56,
            "level0_width": 46000,
            "level0_height": 32914,
            "name": "a",
        }
        assert dict(h5["coords"].attrs) == expected
        integers = [n for n in expected if n != "name"]
        assert all(h5["coords"].attrs[n].dtype.kind == "i" for n in integers)
        assert set(h5.attrs) == {
            *("encoding-type", "encoding-version", "wsipipe_version", "slide_id"),
            *("slide_fingerprint", "encoder", "encoder_revision", "pooling", "mpp"),
            *("mpp_effective", "tile_px", "level0_mpp", "mpp_source", "overlap", "precision"),
            *("identity", "identity_json", "created_utc", "content_sha256"),
        }
        text = h5.attrs["identity_json"]
        assert h5.attrs["identity"] == hashlib.sha256(text.encode()).hexdigest()
        assert json.loads(text)["tissue"] == {"method": "auto", "version": 1}
        assert h5.attrs["encoding-type"] == "wsipipe-features"
        assert h5.attrs["encoding-version"] == "1"


def test_memory_does_not_grow_with_the_features(tmp_path: Path, make_file) -> None:
    small = make_file(0)
    rows = 60_000
    # 120 MB of zeros that no page of memory stands behind.
    features = np.memmap(tmp_path / "raw", np.float16, mode="w+", shape=(rows, 1024))
    features[-1] = 7
    big = FeatureFile(
        features=features,
        coords=np.zeros((rows, 2), np.int64),
        tissue_fraction=np.ones(rows, np.float32),
        tile_status=np.zeros(rows, np.uint8),
        meta=small.meta,
    )
    tracemalloc.start()
    write_features(tmp_path / "a.h5", big)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    lazy = read_features(tmp_path / "a.h5", lazy=True)
    assert isinstance(lazy.features, np.memmap)
    assert (lazy.features[-1] == 7).all()
    assert not lazy.features[:-1:5000].any()


def test_forty_gigabytes_are_laid_out_in_a_few_pages() -> None:
    class Bulk:
        """Stands for an array that nobody could hold."""

        shape, dtype, size, nbytes = (
            (20_000_000, 1024),
            np.dtype("f2"),
            20_480_000_000,
            40_960_000_000,
        )

    layout = lay_out({"features": Bulk()})  # type: ignore[dict-item]
    assert layout.size > 40_960_000_000
    assert len(layout.pages) < 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"coords": np.zeros((4, 2), np.int64)},
        {"coords": np.zeros((5, 2), np.int32)},
        {"coords": np.zeros((5, 3), np.int64)},
        {"features": np.zeros((5, 8), np.float64)},
        {"tile_status": np.zeros(5, np.int64)},
        {"quality": {"blur": np.zeros(3, np.float32)}},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(make_file, wrong: dict) -> None:
    with pytest.raises(ValueError, match="case/a"):
        replace(make_file(5), **wrong)


def test_check_tells_done_missing_mismatch_and_corrupt(tmp_path: Path, make_file) -> None:
    file = make_file(50)
    path = write_features(tmp_path / "a.h5", file)
    wanted = file.meta.identity
    assert check_file(path, wanted).state == "done"
    assert check_file(tmp_path / "b.h5", wanted).state == "missing"
    other = check_file(path, {**wanted, "mpp": 0.25, "tissue": {"method": "auto", "version": 2}})
    assert other.state == "mismatch"
    assert other.fields == {"mpp": (0.5, 0.25), "tissue.version": (1, 2)}
    with pytest.raises(IdentityMismatchError, match=r"mpp: 0.5 there, 0.25 asked") as caught:
        other.raise_if_unusable()
    assert caught.value.exit_code == 2
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert check_file(path, wanted).state == "corrupt"
        with pytest.raises(CorruptFileError, match=r"a\.h5"):
            read_features(path)
    with h5py.File(path, "w") as h5:
        h5["features"] = np.zeros((3, 2))
    assert check_file(path, wanted).state == "corrupt"
    with pytest.raises(CorruptFileError):
        check_file(path, wanted).raise_if_unusable()


def test_an_identity_that_was_tampered_with_is_corrupt(tmp_path: Path, make_file) -> None:
    file = make_file(3)
    path = write_features(tmp_path / "a.h5", file)
    with h5py.File(path, "r+") as h5:
        h5.attrs["identity_json"] = h5.attrs["identity_json"].replace("0.5", "0.6")
    assert check_file(path, {**file.meta.identity, "mpp": 1}).state == "corrupt"


def test_a_map_outlives_the_replacement_of_its_file(tmp_path: Path, make_file) -> None:
    first, second = make_file(100, seed=1), make_file(100, seed=2)
    path = write_features(tmp_path / "a.h5", first)
    bag = read_features(path, lazy=True)
    write_features(path, second)
    np.testing.assert_array_equal(bag.features, first.features)
    np.testing.assert_array_equal(read_features(path).features, second.features)


def test_attributes_come_as_plain_python(tmp_path: Path, make_file) -> None:
    attrs = read_attrs(write_features(tmp_path / "a.h5", make_file(1, extra={"batch": 8})))
    assert {type(v) for v in attrs.values()} == {str, float, int}
    assert attrs["batch"] == 8
    json.dumps(attrs)


def test_files_of_other_tools_are_read_for_what_they_have(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    xy = np.arange(12).reshape(6, 2)
    with h5py.File(tmp_path / "trident.h5", "w") as h5:
        h5.create_dataset("features", data=x, chunks=(1, 4), maxshape=(None, 4))
        h5["coords"] = xy
        h5["coords"].attrs["patch_size_level0"] = 512
    bag = read_features(tmp_path / "trident.h5", lazy=True)
    np.testing.assert_array_equal(bag.features, x)
    np.testing.assert_array_equal(bag.coords, xy)
    assert bag.coords_attrs == {"patch_size_level0": 512}
    assert bag.attrs == {}
    assert bag.tile_status is None
    with h5py.File(tmp_path / "stamp.h5", "w") as h5:
        h5["feats"] = x[None]
        h5["coords"] = xy.astype(np.float32)
        h5.attrs["unit"] = "um"
    bag = read_features(tmp_path / "stamp.h5")
    np.testing.assert_array_equal(bag.features, x)
    with pytest.raises(StoreError, match="wsipipe import"):
        _ = bag.coords
    with h5py.File(tmp_path / "none.h5", "w") as h5:
        h5["x"] = x
    with pytest.raises(CorruptFileError, match="features"):
        read_features(tmp_path / "none.h5")
    with pytest.raises(StoreError, match="no such file"):
        read_features(tmp_path / "gone.h5")
