"""`wsipipe.extract` from Python: what is written, what is left alone, what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import wsipipe as wp
from wsipipe.store import Records

Make = Callable[..., Any]
COLUMNS = (
    "slide_id,path,encoder,status,reason,mpp,mpp_source,width,height,tissue_mm2,tiles,bad_tiles,"
    "precision,seconds"
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(out: Path) -> dict[str, tuple[int, int]]:
    files = (out / "features").rglob("*.h5")
    return {str(f): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


def test_all_files_of_the_contract_are_there(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    result = wp.extract(slides, encoder=make_encoder(), out=out)
    assert result.done == ("s0", "s1", "s2")
    assert (result.empty, result.failed, result.pending) == ((), (), ())
    rows = read_csv(out / "slides.csv")
    assert [row["status"] for row in rows] == ["done"] * 3
    assert ",".join(rows[0]) == COLUMNS
    assert (rows[0]["width"], rows[0]["height"], float(rows[0]["mpp"])) == ("1024", "768", 0.5)
    assert not (out / "failures.csv").exists()
    outline = json.loads((out / "tissue" / "s0.geojson").read_text())
    assert outline["features"][0]["properties"]["tissue_id"] == 0
    assert (out / "thumbnails" / "s0.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert yaml.safe_load((out / "run.yaml").read_text())["encoders"][0]["licence"] == "unknown"
    events = [
        json.loads(line) for f in (out / "events").iterdir() for line in f.read_text().splitlines()
    ]
    assert [e["event"] for e in events].count("slide_done") == 3
    assert not list(out.rglob(".*"))


def test_the_feature_file_says_what_the_contract_asks(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    wp.extract(slides / "s1.svs", encoder=make_encoder(), out=out, overlap=0.25)
    bag = wp.read_features(out / "features" / "mean" / "s1.h5")
    count = len(bag)
    assert count > 20
    assert bag.features.shape == (count, 3)
    assert bag.features.dtype == np.float16
    assert bag.coords.dtype == np.int64
    assert (np.diff(bag.coords[:, 1]) >= 0).all()  # row-major
    assert set(np.unique(np.diff(np.unique(bag.coords[:, 0])))) == {48}
    assert bag.attrs["mpp"] == bag.attrs["mpp_effective"] == bag.attrs["level0_mpp"] == 0.5
    assert bag.attrs["overlap"] == 0.25
    assert json.loads(bag.attrs["identity_json"])["overlap"] == 0.25
    assert bag.coords_attrs["overlap"] == 16
    assert bag.coords_attrs["patch_size_level0"] == 64
    with wp.open_slide(slides / "s1.svs") as slide:
        x, y = (int(v) for v in bag.coords[count // 2])
        pixels = slide.read(x, y, 64, 64)
    assert np.allclose(bag.features[count // 2], pixels.mean(axis=(0, 1)) / 255, atol=2e-3)


def test_the_same_command_again_touches_nothing(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides, encoder=encoder, out=out)
    before = snapshot(out)
    again = wp.extract(slides, encoder=encoder, out=out, batch_size=3, workers=1)
    assert again.done == ("s0", "s1", "s2")
    assert again.tiles == 0
    assert snapshot(out) == before


def test_a_removed_file_is_made_again_and_no_other(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides, encoder=encoder, out=out)
    before = snapshot(out)
    target = out / "features" / "mean" / "s1.h5"
    coords = wp.read_features(target).coords
    target.unlink()
    wp.extract(slides, encoder=encoder, out=out)
    after = snapshot(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {str(target)}
    assert np.array_equal(wp.read_features(target).coords, coords)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"overlap": 0.5}, "overlap"),
        ({"min_tissue": 0.5}, "min_tissue"),
        ({"tissue": "none"}, "tissue.method"),
        ({"dtype": "float32"}, "dtype"),
        ({"slide_mpp": 0.51}, "slide_mpp"),
        ({"mpp_tolerance": 0.0}, "mpp_tolerance"),
    ],
)
def test_changed_settings_are_refused_by_name_and_replaced_when_asked(
    slides: Path, tmp_path: Path, make_encoder: Make, change: dict[str, Any], field: str
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides / "s0.svs", encoder=encoder, out=out)
    before = snapshot(out)
    with pytest.raises(wp.IdentityMismatchError, match=field.replace(".", r"\.")) as caught:
        wp.extract(slides, encoder=encoder, out=out, **change)
    assert caught.value.exit_code == 2
    assert snapshot(out) == before
    assert not (out / "features" / "mean" / "s1.h5").exists()
    result = wp.extract(slides / "s0.svs", encoder=encoder, out=out, recompute=True, **change)
    assert result.done == ("s0",)
    assert snapshot(out) != before


def test_other_weights_are_another_identity(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    wp.extract(slides / "s0.svs", encoder=make_encoder(), out=out)
    with pytest.raises(wp.IdentityMismatchError, match="weights_sha256"):
        wp.extract(slides / "s0.svs", encoder=make_encoder(scale=2.0, folder="other"), out=out)


def test_a_slide_that_changed_fails_alone_until_recompute(
    slides: Path, tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides, encoder=encoder, out=out)
    make_svs(slides / "s1.svs", seed=99)
    make_svs(slides / "s3.svs", seed=3)
    result = wp.extract(slides, encoder=encoder, out=out)
    assert result.failed == ("s1",)
    assert result.done == ("s0", "s2", "s3")
    assert "slide_fingerprint" in result.reasons["s1"]
    assert "--recompute" in result.reasons["s1"]
    again = wp.extract(slides, encoder=encoder, out=out, recompute=True)
    assert again.done == ("s0", "s1", "s2", "s3")
    assert not (out / "failures.csv").exists()


def test_a_slide_without_tissue_is_done_as_empty(
    slides: Path, tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    make_svs(slides / "blank.svs", tissue=False)
    encoder, out = make_encoder(), tmp_path / "out"
    for _ in range(2):
        result = wp.extract(slides, encoder=encoder, out=out)
        assert result.empty == ("blank",)
        assert result.exit_code == 0
        assert len(wp.read_features(out / "features" / "mean" / "blank.h5")) == 0
        statuses = {r["slide_id"]: r["status"] for r in read_csv(out / "slides.csv")}
        assert statuses == {"blank": "empty", "s0": "done", "s1": "done", "s2": "done"}


def test_bad_slides_fail_with_a_remedy_and_the_others_are_done(
    slides: Path, tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    (slides / "nothing.svs").touch()
    (slides / "text.svs").write_text("not a slide at all\n" * 100)
    make_svs(slides / "nompp.svs", mpp=None)
    whole = make_svs(slides / "cut.svs", seed=8).read_bytes()
    (slides / "cut.svs").write_bytes(whole[: len(whole) * 6 // 10])
    make_svs(slides / "coarse.svs", mpp=4.0)
    manifest = tmp_path / "all.csv"
    names = sorted(p.name for p in slides.iterdir())
    lines = [f"{slides / name}" for name in [*names, "missing.svs"]]
    manifest.write_text("path\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    result = wp.extract(manifest, encoder=make_encoder(), out=out)
    bad = {"nothing", "text", "nompp", "cut", "coarse", "missing"}
    assert set(result.failed) == bad
    assert result.done == ("s0", "s1", "s2")
    failures = read_csv(out / "failures.csv")
    assert {line["slide_id"] for line in failures} == bad
    for line in failures:
        assert line["slide_id"] in line["error"]
        assert len(line["remedy"]) > 10
        assert line["stage"] in ("open", "tissue", "grid", "read")
    assert "--slide-mpp" in next(f["remedy"] for f in failures if f["slide_id"] == "nompp")
    mended = wp.extract(slides / "nompp.svs", encoder=make_encoder(), out=out, slide_mpp=0.5)
    assert mended.done == ("nompp",)


def damage(path: Path, share: float) -> None:
    """Zero the middle of the pixel data."""
    data = bytearray(path.read_bytes())
    start, length = int(len(data) * 0.3), int(len(data) * share)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def test_unreadable_tiles_fail_the_slide_or_are_marked_when_accepted(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    damage(slides / "s1.svs", 0.2)
    encoder, out = make_encoder(), tmp_path / "out"
    result = wp.extract(slides, encoder=encoder, out=out)
    assert result.failed == ("s1",)
    assert "--max-bad-tiles" in result.reasons["s1"]
    assert not (out / "features" / "mean" / "s1.h5").exists()
    result = wp.extract(slides, encoder=encoder, out=out, max_bad_tiles=1.0)
    assert result.done == ("s0", "s1", "s2")
    bag = wp.read_features(out / "features" / "mean" / "s1.h5")
    bad = bag.tile_status == 1
    assert 0 < bad.sum() < len(bag)
    assert np.isnan(bag.features[bad]).all()
    assert np.isfinite(bag.features[~bad]).all()
    row = next(r for r in read_csv(out / "slides.csv") if r["slide_id"] == "s1")
    assert int(row["bad_tiles"]) == bad.sum()


def test_two_encoders_in_one_pass_equal_two_passes(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    one, two = make_encoder("one"), make_encoder("two", scale=3.0)
    other = make_encoder("other", tile_px=96)
    wp.extract(slides, encoder=[one, two, other], out=tmp_path / "together", dtype="float32")
    for name, encoder in (("one", one), ("two", two), ("other", other)):
        wp.extract(slides, encoder=encoder, out=tmp_path / "alone", dtype="float32")
        for slide in ("s0", "s1", "s2"):
            a, b = (
                wp.read_features(tmp_path / run / "features" / name / f"{slide}.h5")
                for run in ("together", "alone")
            )
            assert np.array_equal(a.coords, b.coords)
            assert np.allclose(a.features, b.features, atol=1e-6)


def test_an_encoder_added_later_leaves_the_first_ones_files(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    one, two, out = make_encoder("one"), make_encoder("two"), tmp_path / "out"
    wp.extract(slides, encoder=one, out=out)
    before = snapshot(out)
    result = wp.extract(slides, encoder=[one, two], out=out)
    assert result.done == ("s0", "s1", "s2")
    assert {k: v for k, v in snapshot(out).items() if "/one/" in k} == before
    assert {row["encoder"] for row in read_csv(out / "slides.csv")} == {"one", "two"}


def test_off_card_needs_a_word_and_has_its_own_folder(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    with pytest.raises(wp.OffCardError):
        wp.extract(slides, encoder=encoder, out=out, mpp=1.0)
    wp.extract(slides, encoder=encoder, out=out, mpp=1.0, tile_px=32, allow_off_card=True)
    bag = wp.read_features(out / "features" / "mean@32px-1mpp" / "s0.h5")
    assert bag.attrs["mpp"] == 1.0
    assert bag.coords_attrs["patch_size_level0"] == 64


def test_shards_are_disjoint_and_together_everything(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder()
    shares = [
        wp.extract(slides, encoder=encoder, out=tmp_path / "out", shard=f"{i}/2").done
        for i in (1, 2)
    ]
    assert sorted(shares[0] + shares[1]) == ["s0", "s1", "s2"]
    assert not set(shares[0]) & set(shares[1])


def test_strict_stops_at_the_first_failed_slide(
    tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.svs").write_text("no")
    for number in range(12):
        make_svs(folder / f"s{number:02d}.svs", seed=number)
    result = wp.extract(folder, encoder=make_encoder(), out=tmp_path / "out", strict=True)
    assert result.failed == ("a",)
    assert len(result.pending) >= 4
    assert result.exit_code == 1


def test_deterministic_rows_do_not_depend_on_batches_or_threads(
    slides: Path, tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = "torch.sin(torch.arange(36864.)).view(3, -1)"
    encoder = make_encoder(act=f"return torch.nn.functional.linear(x.flatten(1), {matrix})")
    bags = []
    for run, settings in enumerate([{"batch_size": 1, "workers": 1}, {"batch_size": 7}, {}]):
        out = tmp_path / f"out{run}"
        # The last run has one stream, the others as many as processors, at least two.
        monkeypatch.setattr(
            "wsipipe.pipeline.running.available_cpus", lambda run=run: 1 if run == 2 else 3
        )
        given = {"deterministic": True, "dtype": "float32", **settings}
        wp.extract(slides / "s0.svs", encoder=encoder, out=out, **given)
        bags.append(wp.read_features(out / "features" / "mean" / "s0.h5"))
    assert len(bags[0]) > 5
    assert np.array_equal(bags[0].features, bags[1].features)
    assert np.array_equal(bags[0].features, bags[2].features)


def test_features_too_large_for_float16_are_refused(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(scale=1e6), tmp_path / "out"
    result = wp.extract(slides / "s0.svs", encoder=encoder, out=out)
    assert result.failed == ("s0",)
    assert "--dtype float32" in result.reasons["s0"]
    assert wp.extract(slides / "s0.svs", encoder=encoder, out=out, dtype="float32").done == ("s0",)


def test_a_model_that_fails_ends_the_run_with_its_name(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder(act="raise ValueError('bad layer')")
    with pytest.raises(wp.EncoderError, match="bad layer"):
        wp.extract(slides, encoder=encoder, out=tmp_path / "out")
    assert Records(tmp_path / "out").read("s0") is not None


def test_what_is_said_of_a_staged_slide_names_the_slide(
    tmp_path: Path, make_svs: Make, make_encoder: Make
) -> None:
    slide = make_svs(tmp_path / "slides" / "nompp.svs", mpp=None)
    out, stage = tmp_path / "out", tmp_path / "stage"
    result = wp.extract(slide, encoder=make_encoder(), out=out, stage=stage)
    texts = [result.reasons["nompp"], *(p.read_text() for p in out.rglob("*") if p.is_file())]
    assert str(slide) in texts[0]
    assert not any(str(stage / "wsipipe") in text for text in texts)


@pytest.mark.parametrize("name", ["tissue", "stage", "weights"])
def test_an_empty_text_is_not_the_current_folder(slides: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(wp.ConfigError, match=f"{name}.*is empty"):
        wp.extract(slides, encoder="texture", out=tmp_path / "out", **{name: ""})


def test_staged_slides_give_the_same_and_leave_nothing(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder()
    stage = tmp_path / "stage"
    wp.extract(slides, encoder=encoder, out=tmp_path / "a")
    assert wp.extract(slides, encoder=encoder, out=tmp_path / "b", stage=stage).done
    assert list(stage.iterdir()) == []
    for name in ("s0", "s1", "s2"):
        one, two = (
            wp.read_features(tmp_path / run / "features" / "mean" / f"{name}.h5") for run in "ab"
        )
        assert np.array_equal(one.features, two.features)
        assert one.attrs["identity"] == two.attrs["identity"]


def test_unknown_settings_are_refused_with_the_nearest_name(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(wp.ConfigError, match="did you mean 'overlap'"):
        wp.extract(slides, out=tmp_path / "out", overlab=0.5)


def rectangle(x0: int, y0: int, x1: int, y1: int, name: str) -> dict[str, Any]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": name}},
    }


def test_roi_keeps_tiles_inside_and_belongs_to_the_identity(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    roi = tmp_path / "roi.geojson"
    features = [rectangle(384, 256, 640, 512, "Tumor"), rectangle(640, 256, 768, 512, "Other")]
    roi.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    encoder, out = make_encoder(), tmp_path / "out"
    given = {"encoder": encoder, "out": out, "min_tissue": 1.0, "roi": roi, "roi_class": "Tumor"}
    wp.extract(slides / "s0.svs", **given)
    coords = wp.read_features(out / "features" / "mean" / "s0.h5").coords
    expected = {(x, y) for x in range(384, 640, 64) for y in range(256, 512, 64)}
    assert {tuple(c) for c in coords.tolist()} == expected
    with pytest.raises(wp.IdentityMismatchError, match="roi"):
        wp.extract(slides / "s0.svs", **{**given, "roi_class": "Other"})


def test_masks_of_ones_own_decide_and_are_never_overwritten(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides / "s0.svs", encoder=encoder, out=out)
    mask = out / "tissue" / "s0.geojson"
    edited = json.dumps(
        {"type": "FeatureCollection", "features": [rectangle(384, 256, 512, 384, "Tissue")]}
    )
    mask.write_text(edited)
    refused = wp.extract(slides / "s0.svs", encoder=make_encoder("other"), out=out)
    assert refused.failed == ("s0",)
    assert "was edited" in refused.reasons["s0"]
    for _ in range(2):
        done = wp.extract(
            slides / "s0.svs", encoder=make_encoder("other"), out=out, tissue=str(mask.parent)
        )
        assert done.done == ("s0",)
        assert mask.read_text() == edited
    assert len(wp.read_features(out / "features" / "other" / "s0.h5")) == 4


@pytest.mark.parametrize("device", ["foo", "cpu,foo", "cuda:99", "openvino:NPU9"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    slides: Path, tmp_path: Path, make_encoder: Make, device: str
) -> None:
    if device.startswith("openvino"):
        pytest.importorskip("openvino")
    with pytest.raises(wp.ConfigError, match=device.rpartition(",")[2].rpartition(":")[2]):
        wp.extract(slides, encoder=make_encoder(), out=tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    import torch
    from safetensors.torch import save_file

    wrong, out = tmp_path / "wrong.safetensors", tmp_path / "out"
    save_file({"scale": torch.ones(7), "head": torch.ones(2)}, wrong)
    with pytest.raises(wp.WeightsError, match="do not fit") as caught:
        wp.extract(slides, encoder=make_encoder(), weights=str(wrong), out=out)
    assert caught.value.exit_code == 2
    assert not out.exists()


def test_a_slide_that_is_read_whole_for_its_tissue_is_told_of_once(
    slides: Path, tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from wsipipe.config import ExtractSettings
    from wsipipe.pipeline import account, run_extract, slide_task
    from wsipipe.pipeline.reporter import Reporter

    said: list[str] = []

    class Watch(Reporter):
        def say(self, message: str) -> None:
            said.append(message)

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(2.0)
        return wp.detect_tissue(*args, **kwargs)

    monkeypatch.setattr(slide_task, "detect_tissue", slowly)
    monkeypatch.setattr(account, "_LONG_STEP_S", 0.5)
    settings = ExtractSettings.of(encoders=(make_encoder(),), out=tmp_path / "out")
    result = run_extract(settings, slides / "s0.svs", reporter=Watch())
    assert result.done == ("s0",)
    assert len([text for text in said if text.startswith("s0: tissue takes longer")]) == 1
