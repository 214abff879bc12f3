"""Other tools' layouts: what they hold, and that the way there and back loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.store import read_features, write_features, write_run_yaml
from wsipipe.store.layouts import SlideFacts, Wanted, export_run, import_run
from wsipipe.store.layouts.trident import is_trident_job, trident_status
from wsipipe.store.verify import verify_run

FACTS = SlideFacts(0.2471, "reader", 46000, 32914, "ab" * 32)


@pytest.fixture
def run(tmp_path: Path, make_file) -> Path:
    out = tmp_path / "out"
    for slide_id, rows in (("case/a", 30), ("case2/a", 7), ("empty", 0)):
        file = make_file(rows, 16, slide_id=slide_id, seed=rows)
        write_features(out / "features" / "texture" / f"{slide_id}.h5", file)
    tissue = out / "tissue" / "case" / "a.geojson"
    tissue.parent.mkdir(parents=True)
    tissue.write_text('{"type": "FeatureCollection", "features": []}')
    write_run_yaml(out, {})
    return out


def original(run: Path, slide_id: str):
    return read_features(run / "features" / "texture" / f"{slide_id}.h5")


def test_trident_there_and_back(run: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    written = export_run(run, "trident", job)
    folder = job / "20x_224px_56px_overlap"
    # Base names that clash keep their folder in the name, as TRIDENT has none.
    names = ["case2__a", "case__a", "empty"]
    assert sorted(p.stem for p in (folder / "features_texture").glob("*.h5")) == names
    assert sorted(p.name for p in (folder / "patches").iterdir()) == [
        f"{name}_patches.h5" for name in names
    ]
    assert (job / "contours_geojson" / "case__a.geojson") in written
    with h5py.File(folder / "features_texture" / "case__a.h5") as h5:
        assert set(h5) == {"features", "coords"}
        assert h5["coords"].dtype == np.int64
        assert h5["coords"].attrs["patch_size_level0"] == 448
        assert h5["features"].attrs["encoder"] == "texture"
    assert is_trident_job(job)
    status = trident_status(job)
    assert status.counts == {"done": 2, "empty": 1, "failed": 0, "pending": 0}
    with pytest.raises(ConfigError, match="--slide-mpp"):
        import_run(job, "trident", tmp_path / "back", Wanted())
    import_run(job, "trident", tmp_path / "back", Wanted(slide_mpp=0.2471))
    back = read_features(tmp_path / "back/features/texture/case__a.h5")
    source = original(run, "case/a")
    np.testing.assert_array_equal(back.features, source.features)
    np.testing.assert_array_equal(back.coords, source.coords)
    for name in ("patch_size", "patch_size_level0", "overlap", "level0_width"):
        assert back.coords_attrs[name] == source.coords_attrs[name]
    assert back.attrs["mpp"] == 0.5
    assert back.attrs["mpp_effective"] == pytest.approx(0.4942)
    assert np.isnan(back.tissue_fraction).all()
    assert not verify_run(tmp_path / "back").damaged


def test_a_trident_job_says_its_own_mpp(tmp_path: Path) -> None:
    features = tmp_path / "20x_256px_0px_overlap" / "features_uni_v1"
    features.mkdir(parents=True)
    with h5py.File(features / "s.h5", "w") as h5:
        h5.create_dataset("features", data=np.ones((3, 4), np.float32), chunks=(1, 4))
        h5["coords"] = np.zeros((3, 2), np.int64)
        # The command line of TRIDENT writes these two as floats.
        h5["coords"].attrs.update(
            patch_size=256, patch_size_level0=512.0, target_magnification=20.0,
            level0_magnification=40, overlap=0, level0_width=1000, level0_height=900,
        )  # fmt: skip
    (features / "t.h5.lock").write_text("{}")
    (tmp_path / "wsi_states").mkdir()
    failed = {"status": "failed", "message": "no level fits"}
    for name, tasks in (("s", {}), ("u", {"patch_features:uni_v1": failed})):
        state = {"slide": {"name": name}, "meta": {"mpp": 0.25}, "tasks": tasks}
        (tmp_path / "wsi_states" / f"{name}__0.json").write_text(json.dumps(state))
    import_run(tmp_path, "trident", tmp_path / "out", Wanted())
    bag = read_features(tmp_path / "out/features/uni_v1/s.h5")
    assert (bag.attrs["level0_mpp"], bag.attrs["mpp_source"]) == (0.25, "trident")
    assert bag.attrs["encoder"] == "uni_v1"
    status = trident_status(tmp_path)
    assert status.counts == {"done": 1, "empty": 0, "failed": 1, "pending": 0}
    assert [entry["slide_id"] for entry in status.running] == ["t"]
    assert status.failures[0]["error"] == "no level fits"
    with pytest.raises(ConfigError, match="does not fit the 40x"):
        import_run(tmp_path, "trident", tmp_path / "other", Wanted(slide_mpp=0.5))


def test_clam_there_and_back(run: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    export_run(run, "clam", tmp_path / "clam")
    base = tmp_path / "clam" / "texture"
    source = original(run, "case/a")
    with h5py.File(base / "h5_files" / "case__a.h5") as h5:
        assert (h5["features"].dtype, h5["coords"].dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(h5["features"][:], source.features.astype(np.float32))
    for name, rows in (("case__a", 30), ("empty", 0)):
        tensor = torch.load(base / "pt_files" / f"{name}.pt", weights_only=True)
        assert tensor.dtype == torch.float32
        assert tuple(tensor.shape) == (rows, 16)
    tensor = torch.load(base / "pt_files" / "case__a.pt", weights_only=True)
    np.testing.assert_array_equal(tensor.numpy(), source.features.astype(np.float32))
    with pytest.raises(ConfigError, match="--encoder"):
        import_run(base, "clam", tmp_path / "back", Wanted(slide_mpp=0.2471))
    wanted = Wanted(facts={"case__a": FACTS}, slide_mpp=0.2471, encoder="texture", tile_px=224)
    import_run(base, "clam", tmp_path / "back", wanted)
    back = read_features(tmp_path / "back/features/texture/case__a.h5")
    np.testing.assert_array_equal(back.coords, source.coords)
    np.testing.assert_array_equal(back.features, source.features.astype(np.float32))
    assert back.attrs["slide_fingerprint"] == FACTS.fingerprint
    assert back.attrs["mpp"] == pytest.approx(0.4942)
    assert back.coords_attrs["level0_width"] == 46000


def test_clam_patches_at_a_level_count_in_level_0_pixels(tmp_path: Path) -> None:
    (tmp_path / "h5_files").mkdir()
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "h5_files" / "s.h5", "w") as h5:
        h5["features"], h5["coords"] = np.ones((2, 3), np.float32), np.zeros((2, 2), np.int32)
    with h5py.File(tmp_path / "patches" / "s.h5", "w") as h5:
        h5["coords"] = np.zeros((2, 2), np.int64)
        h5["coords"].attrs.update(
            patch_size=256, patch_level=1, downsample=np.array([4.0, 4.0]), level_dim=[250, 225]
        )
    import_run(tmp_path, "clam", tmp_path / "out", Wanted(slide_mpp=0.25, encoder="uni_v1"))
    bag = read_features(tmp_path / "out/features/uni_v1/s.h5")
    assert bag.coords_attrs["patch_size_level0"] == 1024
    assert bag.attrs["mpp"] == pytest.approx(1.0)
    (tmp_path / "patches" / "s.h5").unlink()
    with pytest.raises(ConfigError, match="how large a patch is"):
        import_run(tmp_path, "clam", tmp_path / "out", Wanted(slide_mpp=0.25, encoder="u"))


def test_stamp_there_and_back_through_micrometres(run: Path, tmp_path: Path) -> None:
    export_run(run, "stamp", tmp_path / "stamp")
    source = original(run, "case/a")
    with h5py.File(tmp_path / "stamp/texture/case/a.h5") as h5:
        assert set(h5) == {"coords", "feats"}
        assert (h5["feats"].dtype, h5["coords"].dtype) == (np.float16, np.float32)
        assert h5.attrs["unit"] == "um"
        assert h5.attrs["tile_size_um"] == pytest.approx(224 * 0.4942)
        np.testing.assert_allclose(h5["coords"][:], source.coords * 0.2471, rtol=1e-6)
    wanted = Wanted(facts={"case/a": FACTS}, slide_mpp=0.2471)
    import_run(tmp_path / "stamp", "stamp", tmp_path / "back", wanted)
    back = read_features(tmp_path / "back/features/texture/case/a.h5")
    np.testing.assert_array_equal(back.coords, source.coords)
    np.testing.assert_array_equal(back.features, source.features)
    assert back.coords_attrs["patch_size_level0"] == 448
    # As STAMP 2.0 wrote it: one size, in µm.
    with h5py.File(tmp_path / "stamp/texture/case/a.h5", "r+") as h5:
        h5.attrs["tile_size"] = h5.attrs["tile_size_um"]
        del h5.attrs["tile_size_um"], h5.attrs["tile_size_px"]
    with pytest.raises(ConfigError, match="--tile-px"):
        import_run(tmp_path / "stamp", "stamp", tmp_path / "back", wanted)
    import_run(tmp_path / "stamp", "stamp", tmp_path / "old", replace(wanted, tile_px=224))
    old = read_features(tmp_path / "old/features/texture/case/a.h5")
    assert old.attrs["mpp"] == pytest.approx(0.4942)
    with h5py.File(tmp_path / "stamp/texture/case/a.h5", "r+") as h5:
        h5.attrs["unit"] = "px"
    with pytest.raises(ConfigError, match="no unit 'um'"):
        import_run(tmp_path / "stamp", "stamp", tmp_path / "back", wanted)


def test_anndata_is_read_by_its_own_package(run: Path, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    paths = export_run(run, "anndata", tmp_path / "h5ad")
    assert len(paths) == 3
    source = original(run, "case/a")
    table = anndata.read_h5ad(tmp_path / "h5ad/texture/case/a.h5ad")
    np.testing.assert_array_equal(table.X, source.features)
    np.testing.assert_array_equal(table.obs["x"], source.coords[:, 0])
    np.testing.assert_array_equal(table.obsm["spatial"], source.coords + 224)
    assert table.uns["wsipipe"]["encoder"] == "texture"
    assert table.uns["wsipipe"]["mpp"] == 0.5
    assert anndata.read_h5ad(tmp_path / "h5ad/texture/empty.h5ad").shape == (0, 16)


def test_parquet_is_read_by_its_own_package(run: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    export_run(run, "parquet", tmp_path / "pq")
    source = original(run, "case/a")
    table = pq.read_table(tmp_path / "pq/texture/case/a.parquet")
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), source.features)
    np.testing.assert_array_equal(table["y"].to_numpy(), source.coords[:, 1])
    assert json.loads(table.schema.metadata[b"wsipipe"])["encoder"] == "texture"
    assert pq.read_table(tmp_path / "pq/texture/empty.parquet").num_rows == 0


def test_zarr_is_read_by_its_own_package(run: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3")
    for _ in range(2):  # the second time it replaces
        export_run(run, "zarr", tmp_path / "z", encoders=["texture"])
    source = original(run, "case/a")
    group = zarr.open_group(str(tmp_path / "z/texture/case/a.zarr"), mode="r")
    np.testing.assert_array_equal(group["features"][:], source.features)
    np.testing.assert_array_equal(group["coords"][:], source.coords)
    assert group["coords"].attrs["patch_size_level0"] == 448
    assert group.attrs["encoder"] == "texture"
    assert zarr.open_group(str(tmp_path / "z/texture/empty.zarr"), mode="r")["features"].shape == (
        0,
        16,
    )
    assert sorted(p.name for p in (tmp_path / "z/texture").iterdir()) == [
        "case",
        "case2",
        "empty.zarr",
    ]


def test_failed_reads_stay_failed_reads(tmp_path: Path, make_file) -> None:
    file = make_file(4)
    features = file.features.copy()
    features[2] = np.nan
    status = np.array([0, 0, 1, 0], np.uint8)
    file = replace(file, features=features, tile_status=status)
    write_features(tmp_path / "out/features/texture/case/a.h5", file)
    export_run(tmp_path / "out", "trident", tmp_path / "job")
    import_run(tmp_path / "job", "trident", tmp_path / "back", Wanted(slide_mpp=0.2471))
    back = read_features(tmp_path / "back/features/texture/a.h5")
    assert back.tile_status is not None
    assert back.tile_status.tolist() == [0, 0, 1, 0]


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trident, clam, stamp, anndata"):
        export_run(run, "qupath", tmp_path / "x")
    with pytest.raises(ConfigError, match="It has: texture"):
        export_run(run, "clam", tmp_path / "x", encoders=["uni"])
    with pytest.raises(ConfigError, match="holds no features"):
        export_run(tmp_path, "clam", tmp_path / "x")
    for source in ("trident", "clam", "stamp"):
        (tmp_path / "nothing").mkdir(exist_ok=True)
        with pytest.raises(ConfigError):
            import_run(tmp_path / "nothing", source, tmp_path / "x", Wanted())
