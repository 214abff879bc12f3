"""`wsipipe extract --quality`: numbers of each tile beside its features, filters, outliers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

import wsipipe as wp
from wsipipe.report.run_page import read_run, render_run_page
from wsipipe.store import PartialRows, write_tables
from wsipipe.store.partial import find_partials
from wsipipe.store.progress import run_status
from wsipipe.store.verify import verify_run
from wsipipe.tissue.quality import MEASURES, tile_quality

Make = Callable[..., Any]


def half_blurred(path: Path, width: int = 1024, height: int = 512) -> Path:
    """A slide full of pink tissue: texture on the left, none on the right."""
    rng = np.random.default_rng(3)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (200, 120, 170)
    # Blobs of 2 µm, so that the texture is still there at 1 µm per pixel.
    noise = np.kron(rng.integers(-60, 50, (height // 4, width // 8)), np.ones((4, 4)))
    image[:, : width // 2] = np.clip(image[:, : width // 2] + noise[..., None], 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = f"Aperio Image Library\\r\\n{width}x{height}|AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as tif:
        tif.write(image, tile=(256, 256), photometric="rgb", compression="deflate",
                  description=about, metadata=None)  # fmt: skip
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "slides.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_measures_lie_beside_the_features_of_every_encoder(
    tmp_path: Path, slides: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    names = [make_encoder("a"), make_encoder("b"), make_encoder("c", tile_px=128)]
    assert wp.extract(slides, encoder=names, out=out, quality=True).done == ("s0", "s1", "s2")
    bags = {name: wp.read_features(out / "features" / name / "s1.h5") for name in "abc"}
    with wp.open_slide(slides / "s1.svs") as slide:
        for bag in bags.values():
            px = bag.attrs["tile_px"]
            tiles = np.stack([slide.read(x, y, px, px) for x, y in bag.coords.tolist()])
            for name, values in tile_quality(tiles, 0.5).items():
                assert np.array_equal(bag.quality[name], values), name
    assert set(bags["a"].quality) == set(MEASURES)
    assert len(bags["c"].coords) < len(bags["a"].coords)
    rows = table(out)
    assert list(rows[0])[-7:] == ["seconds", *MEASURES, "outlier"]
    row = next(r for r in rows if (r["slide_id"], r["encoder"]) == ("s1", "a"))
    assert float(row["focus"]) == pytest.approx(float(np.median(bags["a"].quality["focus"])), 1e-3)
    assert float(row["saturation"]) == pytest.approx(bags["a"].quality["saturation"].mean(), 1e-3)
    assert not verify_run(out).findings


def test_a_plain_run_is_as_it_was(tmp_path: Path, slides: Path, make_encoder: Make) -> None:
    out = tmp_path / "out"
    wp.extract(slides, encoder=make_encoder(), out=out)
    bag = wp.read_features(out / "features" / "mean" / "s0.h5")
    assert bag.quality == {}
    assert "quality" not in json.loads(bag.attrs["identity_json"])
    assert list(table(out)[0])[-1] == "seconds"


def test_quality_asked_for_later_is_refused_by_name(
    tmp_path: Path, slides: Path, make_encoder: Make
) -> None:
    out, encoder = tmp_path / "out", make_encoder()
    wp.extract(slides, encoder=encoder, out=out)
    with pytest.raises(wp.IdentityMismatchError, match=r"quality"):
        wp.extract(slides, encoder=encoder, out=out, min_focus=10)
    wp.extract(slides, encoder=encoder, out=out, quality=True, recompute=True)
    assert wp.read_features(out / "features" / "mean" / "s0.h5").quality


def test_filters_leave_tiles_out_and_spare_their_embedding(
    tmp_path: Path, make_encoder: Make
) -> None:
    slide = half_blurred(tmp_path / "slides" / "half.tif")
    out, encoder = tmp_path / "out", make_encoder()
    kwargs: dict[str, Any] = {"encoder": encoder, "tissue": "none"}
    wp.extract(slide, out=tmp_path / "all", quality=True, **kwargs)
    everything = wp.read_features(tmp_path / "all" / "features" / "mean" / "half.h5")
    picture = (tmp_path / "all" / "thumbnails" / "half.jpg").read_bytes()
    result = wp.extract(slide, out=out, min_focus=5.0, **kwargs)
    bag = wp.read_features(out / "features" / "mean" / "half.h5")
    keep = everything.quality["focus"] >= 5
    assert 0 < keep.sum() < len(keep)
    assert np.array_equal(bag.coords, everything.coords[keep])
    assert (bag.coords[:, 0] < 512).all()
    assert np.array_equal(bag.features, everything.features[keep])
    assert np.array_equal(bag.quality["focus"], everything.quality["focus"][keep])
    assert json.loads(bag.attrs["identity_json"])["quality"]["minimum"] == {"focus": 5}
    assert result.done == ("half",)
    assert table(out)[0]["tiles"] == str(keep.sum())
    # The picture shows the tiles that are there.
    assert (out / "thumbnails" / "half.jpg").read_bytes() != picture
    assert not verify_run(out).findings
    assert wp.extract(slide, out=out, min_focus=5.0, **kwargs).tiles == 0


def test_a_slide_without_any_good_tile_is_empty_and_says_why(
    tmp_path: Path, make_encoder: Make
) -> None:
    slide = half_blurred(tmp_path / "half.tif")
    out = tmp_path / "out"
    result = wp.extract(slide, encoder=make_encoder(), out=out, tissue="none", min_focus=1e6)
    assert result.empty == ("half",)
    bag = wp.read_features(out / "features" / "mean" / "half.h5")
    assert (len(bag), set(bag.quality)) == (0, set(MEASURES))
    assert table(out)[0]["reason"] == "no tile passed the filters"
    assert table(out)[0].get("focus", "") == ""


def test_no_tissue_has_empty_measures(tmp_path: Path, make_svs: Make, make_encoder: Make) -> None:
    make_svs(tmp_path / "s.svs", tissue=False)
    out = tmp_path / "out"
    assert wp.extract(tmp_path / "s.svs", encoder=make_encoder(), out=out, quality=True).empty
    with h5py.File(out / "features" / "mean" / "s.h5") as h5:
        assert {name: len(v) for name, v in h5["quality"].items()} == dict.fromkeys(MEASURES, 0)


def test_unreadable_tiles_have_no_measures_and_stay(
    tmp_path: Path, make_svs: Make, make_encoder: Make
) -> None:
    path = make_svs(tmp_path / "s.svs")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        at = page.dataoffsets[5]
        length = page.databytecounts[5]
    content = bytearray(path.read_bytes())
    content[at : at + length] = bytes(length)
    path.write_bytes(content)
    out = tmp_path / "out"
    wp.extract(path, encoder=make_encoder(), out=out, tissue="none", min_focus=0, max_bad_tiles=1.0)
    bag = wp.read_features(out / "features" / "mean" / "s.h5")
    bad = bag.tile_status == 1
    assert 0 < bad.sum() < len(bag)
    for values in bag.quality.values():
        assert np.array_equal(np.isnan(values), bad)
    assert not verify_run(out).findings


def test_coarse_tiles_pass_a_focus_filter(tmp_path: Path, make_encoder: Make) -> None:
    slide = half_blurred(tmp_path / "half.tif")
    out = tmp_path / "out"
    encoder = make_encoder(mpp=2.0)
    wp.extract(slide, encoder=encoder, out=out, tissue="none", min_focus=1e6)
    bag = wp.read_features(out / "features" / "mean" / "half.h5")
    assert len(bag) == 8
    assert np.isnan(bag.quality["focus"]).all()
    assert "focus" not in table(out)[0]


@pytest.mark.parametrize("filters", [{"quality": True}, {"min_focus": 5.0}])
def test_a_killed_run_goes_on_to_the_same_file(
    tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    slide = half_blurred(tmp_path / "half.tif", 2048, 1024)
    names = [make_encoder("a"), make_encoder("b")]
    kwargs: dict[str, Any] = {"encoder": names, "tissue": "none", "workers": 1, **filters}
    wp.extract(slide, out=tmp_path / "whole", **kwargs)

    out = tmp_path / "out"
    read: list[int] = []
    from wsipipe.embed import tiles as reading
    from wsipipe.pipeline import running

    def read_some(slide: Any, grid: Any, job: Any, out: Any) -> Any:
        read.append(len(job.rows))
        if len(read) == 2 and not resumed:
            raise OSError("the disk has gone")
        return reading.read_job(slide, grid, job, out=out)

    resumed = False
    put = PartialRows.put

    def put_at_once(self: PartialRows, *args: Any) -> None:
        put(self, *args)
        self.flush()

    monkeypatch.setattr(running, "read_job", read_some)
    monkeypatch.setattr(PartialRows, "put", put_at_once)
    monkeypatch.setattr(PartialRows, "discard", PartialRows.close)
    assert wp.extract(slide, out=out, **kwargs).failed == ("half",)
    monkeypatch.undo()
    monkeypatch.setattr(running, "read_job", read_some)
    assert len(list(find_partials(out / ".partial"))) >= 1
    resumed, first = True, sum(read)
    read.clear()
    assert wp.extract(slide, out=out, **kwargs).done == ("half",)
    assert sum(read) < first + 200
    for name in "ab":
        made = wp.read_features(out / "features" / name / "half.h5")
        whole = wp.read_features(tmp_path / "whole" / "features" / name / "half.h5")
        assert np.array_equal(made.coords, whole.coords)
        assert np.array_equal(made.features, whole.features)
        assert set(made.quality) == set(MEASURES)
        for measure in MEASURES:
            assert np.array_equal(made.quality[measure], whole.quality[measure])
        assert made.attrs["content_sha256"] == whole.attrs["content_sha256"]
    assert not list(find_partials(out / ".partial"))


def test_outliers_of_a_cohort_are_named(tmp_path: Path, make_svs: Make, make_encoder: Make) -> None:
    for number in range(8):
        make_svs(tmp_path / "slides" / f"s{number}.svs", seed=number)
    half_blurred(tmp_path / "slides" / "odd.tif", 1024, 768)
    out = tmp_path / "out"
    wp.extract(tmp_path / "slides", encoder=make_encoder(), out=out, quality=True)
    flagged = {row["slide_id"]: row["outlier"] for row in table(out) if row["outlier"]}
    assert "focus" in flagged["odd"]
    (outlier,) = [o for o in run_status(out).outliers if o["slide_id"] == "odd"]
    assert any("focus" in flag for flag in outlier["unlike"])
    assert "Unlike the others" in render_run_page(read_run(out))
    # From the files alone, too.
    for record in (out / "attempts").iterdir():
        record.unlink()
    write_tables(out)
    assert "focus" in {row["slide_id"]: row["outlier"] for row in table(out)}["odd"]
