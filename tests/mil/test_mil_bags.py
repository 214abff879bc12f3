"""Feature files of all tools are read as they are written; units are read, never guessed."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.bags import blocks_of, find_bags, inspect_bag, read_bag
from wsipipe.mil.bank import FeatureBank, check_settings, file_digest
from wsipipe.mil.maps import place_tiles

X = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
XY = np.stack([np.arange(20) * 256, np.zeros(20)], axis=1).astype(np.int64)


def _wsipipe(path, x=X, status=None, **root):
    with h5py.File(path, "w") as h5:
        h5["features"] = x.astype(np.float16)
        h5["coords"] = XY[: len(x)]
        h5["coords"].attrs["patch_size_level0"] = 256
        h5["tile_status"] = np.zeros(len(x), np.uint8) if status is None else status
        said = {"encoding-type": "wsipipe-features", "encoder": "texture", "mpp": 0.5}
        for key, value in {**said, "tile_px": 224, **root}.items():
            h5.attrs[key] = value


def _trident(path):
    with h5py.File(path, "w") as h5:
        h5.create_dataset("features", data=X, chunks=(1, 6))
        h5["features"].attrs["encoder"] = "uni_v1"
        h5["coords"] = XY
        for key, value in {"patch_size": 256, "patch_size_level0": 512}.items():
            h5["coords"].attrs[key] = value
        h5["coords"].attrs["target_magnification"] = 20


def _clam(path):
    with h5py.File(path, "w") as h5:
        h5["features"], h5["coords"] = X, XY
        for key, value in {"patch_size": 256, "patch_level": 1, "downsample": [4.0, 4.0]}.items():
            h5["coords"].attrs[key] = value


def _stamp(path):
    with h5py.File(path, "w") as h5:
        h5["feats"], h5["coords"] = X.astype(np.float16), XY * 0.5
        said = {"stamp_version": "2.5.0", "extractor": "ctranspath", "unit": "um"}
        for key, value in {**said, "tile_size_um": 256.0, "tile_size_px": 224}.items():
            h5.attrs[key] = value


def _atlas(path, encoders=("uni",)):
    with h5py.File(path, "w") as h5:
        h5["coords"] = np.concatenate([XY, XY], axis=1)
        h5.attrs["patch_size_level0"] = 512
        for name in encoders:
            h5[f"features/{name}"] = X


@pytest.mark.parametrize(
    ("write", "layout", "unit", "size"),
    [
        (_wsipipe, "wsipipe", "px0", 256),
        (_trident, "trident", "px0", 512),
        (_clam, "clam", "px0", 1024),
        (_stamp, "stamp", "um", 256),
        (_atlas, "atlaspatch", "px0", 512),
    ],
)
def test_each_tools_file_is_recognised(tmp_path, write, layout, unit, size):
    write(tmp_path / "a.h5")
    file = inspect_bag(tmp_path / "a.h5")
    assert (file.layout, file.unit, file.tile_size) == (layout, unit, size)
    bag = read_bag(file)
    np.testing.assert_allclose(bag.features, X, atol=2e-3)
    assert bag.coords.shape == (20, 2)
    assert file.row_chunked == (layout == "trident")


@pytest.mark.parametrize("shape", [(20, 6), (1, 20, 6)])
def test_bare_tensors_and_arrays(tmp_path, shape):
    torch.save(torch.from_numpy(X).reshape(shape), tmp_path / "a.pt")
    torch.save({"features": torch.from_numpy(X).bfloat16()}, tmp_path / "b.pt")
    np.save(tmp_path / "c.npy", X.reshape(shape))
    bags = {k: read_bag(f).features for k, f in find_bags(tmp_path).items()}
    np.testing.assert_array_equal(bags["a"], X)
    np.testing.assert_allclose(bags["b"], X, atol=0.02)
    np.testing.assert_array_equal(bags["c"], X)


def test_an_atlaspatch_file_of_two_encoders_asks_which(tmp_path):
    _atlas(tmp_path / "a.h5", ("uni", "conch"))
    with pytest.raises(ConfigError, match="--feature-key"):
        inspect_bag(tmp_path / "a.h5")
    assert inspect_bag(tmp_path / "a.h5", key="features/conch").settings["encoder"] == "conch"


def test_failed_tiles_are_left_out_and_counted(tmp_path):
    x, status = X.copy(), np.zeros(20, np.uint8)
    x[[3, 7]], status[[3, 7]] = np.nan, 1
    _wsipipe(tmp_path / "a.h5", x, status)
    bag = read_bag(tmp_path / "a.h5")
    assert bag.dropped == 2
    assert np.isfinite(bag.features).all()
    np.testing.assert_array_equal(bag.coords, XY[status == 0])
    for budget in (0, 1 << 30):
        bank = FeatureBank(find_bags(tmp_path), budget_bytes=budget)
        assert bank.get("a").shape == (18, 6)
        assert bank.rows("a") == 18
        assert bank.check() == []


def test_nan_among_good_tiles_is_found(tmp_path):
    x = X.copy()
    x[5, 2] = np.inf
    _wsipipe(tmp_path / "a.h5", x)
    _wsipipe(tmp_path / "b.h5")
    assert FeatureBank(find_bags(tmp_path)).check() == ["a"]


def test_mixed_encoders_resolutions_and_dimensions_are_refused(tmp_path):
    _wsipipe(tmp_path / "a.h5")
    for name, said in (("encoder", "phikon"), ("mpp", 0.25), ("tile_px", 256)):
        _wsipipe(tmp_path / "b.h5", **{name: said})
        with pytest.raises(ConfigError, match=f"mixed: {name}"):
            check_settings(find_bags(tmp_path).values())
    _wsipipe(tmp_path / "b.h5", X[:, :5])
    with pytest.raises(ConfigError, match="mixed: dim"):
        check_settings(find_bags(tmp_path).values())


def test_one_slide_twice_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no feature files"):
        find_bags(tmp_path)
    _wsipipe(tmp_path / "a.h5")
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(ConfigError, match="two feature files"):
        find_bags(tmp_path)


def test_damaged_and_foreign_files_are_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no hdf5")
    with pytest.raises(CorruptFileError, match=r"a\.h5"):
        inspect_bag(tmp_path / "a.h5")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(CorruptFileError, match="no tensor"):
        inspect_bag(tmp_path / "b.pt")


def test_coordinates_without_a_unit_are_not_placed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["features"], h5["coords"] = X, XY
    file = inspect_bag(tmp_path / "a.h5")
    assert file.unit is None
    with pytest.raises(ConfigError, match="unit"):
        place_tiles(file)
    with pytest.raises(ConfigError, match="--tile-size"):
        place_tiles(file, unit="px0")
    assert place_tiles(file, unit="px0", tile_size=256).tile_px0 == 256
    _stamp(tmp_path / "s.h5")
    with pytest.raises(ConfigError, match="--slides"):
        place_tiles(inspect_bag(tmp_path / "s.h5"))


def test_row_chunked_files_are_repacked_once(tmp_path):
    (tmp_path / "f").mkdir()
    _trident(tmp_path / "f" / "a.h5")
    files = find_bags(tmp_path / "f")
    for _ in range(2):
        bank = FeatureBank(files, budget_bytes=0, cache=tmp_path / "cache")
        np.testing.assert_array_equal(bank.array("a"), X)
        (made,) = (tmp_path / "cache").iterdir()
        stamp = made.stat().st_mtime_ns
    assert made.stat().st_mtime_ns == stamp
    assert isinstance(bank.array("a"), np.memmap)


def test_sampling_a_mapped_file_reads_only_what_it_takes(tmp_path):
    x = np.zeros((5000, 64), np.float32)
    np.save(tmp_path / "a.npy", x)
    bank = FeatureBank(find_bags(tmp_path), budget_bytes=0)
    picked = bank.sample("a", 512, np.random.default_rng(0))
    assert picked.shape == (512, 64)
    assert bank.bytes_read == 512 * 64 * 4


def test_blocks_cover_exactly_what_is_asked_without_repeats():
    for n, take, block in ((1000, 100, 64), (130, 129, 64), (70, 70, 64), (200, 1, 64)):
        rows = np.concatenate(
            [np.arange(n)[b] for b in blocks_of(n, take, block, np.random.default_rng(1))]
        )
        assert len(rows) == len(set(rows.tolist()))
        assert take - block < len(rows) <= take


def test_moments_equal_numpys(tmp_path):
    parts = np.random.default_rng(1).normal(5, 3, (3, 40, 6)).astype(np.float32)
    parts[..., 2] = 7
    for i, part in enumerate(parts):
        np.save(tmp_path / f"{i}.npy", part)
    mean, std = FeatureBank(find_bags(tmp_path)).moments(["0", "1", "2"])
    flat = parts.reshape(-1, 6)
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-6)
    wanted = flat.std(axis=0)
    wanted[2] = 1
    np.testing.assert_allclose(std, wanted, rtol=1e-5)


def test_equal_features_have_equal_digests_in_any_layout(tmp_path):
    np.save(tmp_path / "a.npy", X)
    _clam(tmp_path / "b.h5")
    files = find_bags(tmp_path)
    assert file_digest(files["a"]) == file_digest(files["b"])


def test_fortran_order_and_foreign_byte_order_are_read_as_they_mean(tmp_path):
    np.save(tmp_path / "fortran.npy", np.asfortranarray(X))
    np.save(tmp_path / "big.npy", X.astype(">f4"))
    with h5py.File(tmp_path / "big5.h5", "w") as h5:
        h5["features"] = X.astype(">f4")
    bank = FeatureBank(find_bags(tmp_path), budget_bytes=0)
    assert bank.tier == "mapped"
    for name in ("fortran", "big", "big5"):
        np.testing.assert_array_equal(bank.get(name).numpy(), X)


@pytest.mark.parametrize("values", [X.astype(str), X > 0, X.astype(complex)])
def test_features_that_are_no_numbers_are_refused(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with h5py.File(tmp_path / "b.h5", "w") as h5:
        h5["features"] = values.astype(bytes) if values.dtype.kind == "U" else values
    for name in ("a.npy", "b.h5"):
        with pytest.raises(CorruptFileError, match="not numbers"):
            inspect_bag(tmp_path / name)


def test_a_cohort_that_does_not_fit_is_not_kept_bag_by_bag(tmp_path):
    import gc
    import weakref

    _trident(tmp_path / "a.h5")
    bank = FeatureBank(find_bags(tmp_path), budget_bytes=0)
    kept = weakref.ref(bank.array("a"))
    gc.collect()
    assert kept() is None


def test_attributes_that_are_no_numbers_count_as_absent(tmp_path):
    path = tmp_path / "a.h5"
    _trident(path)
    with h5py.File(path, "r+") as h5:
        h5["coords"].attrs["patch_size_level0"] = "None"
        h5.attrs["level0_mpp"] = "None"
        h5.attrs["mpp"] = [0.5, 0.5]
    file = inspect_bag(path)
    assert file.tile_size is None
    assert check_settings([file, file])["mpp"] == [0.5, 0.5]
    assert place_tiles(file, unit="px0", tile_size=256).mpp is None


def test_coordinates_and_states_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    _wsipipe(path, status=np.ones(19, np.uint8))
    with pytest.raises(CorruptFileError, match="19 of status"):
        read_bag(path)
    with h5py.File(path, "r+") as h5:
        del h5["tile_status"], h5["coords"]
        h5["coords"] = np.full((20, 2), np.nan)
        h5["coords"].attrs["patch_size_level0"] = 256
    with pytest.raises(ConfigError, match="no numbers"):
        place_tiles(inspect_bag(path))
