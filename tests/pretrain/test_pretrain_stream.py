"""Streaming from slides: magnifications, tissue, pools, filters, bad slides; on real TIFF files."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pretrain_kit import stain_nuisance_tiles

from wsipipe.errors import ConfigError
from wsipipe.pretrain.drawing import Anchors, balanced_places
from wsipipe.pretrain.options import HsvFilter, Region, Sampler
from wsipipe.pretrain.placing import hsv_share
from wsipipe.pretrain.pool import allowed_mpp
from wsipipe.pretrain.stream import SlideSource
from wsipipe.slide import SlideEntry

WHITE = 243


def write_slide(
    path: Path, *, size: int = 1536, mpp: float | None = 0.25, tissue: bool = True, seed: int = 0
) -> Path:
    """White glass with a square of nuclei and stroma in its middle, 256 px JPEG-free tiles."""
    pixels = np.full((size, size, 3), WHITE, np.uint8)
    if tissue:
        tiles, _ = stain_nuisance_tiles(16, seed)
        patch = np.concatenate([np.concatenate(list(tiles[i : i + 4]), 1) for i in (0, 4, 8, 12)])
        repeats = size // 2 // 256
        first = size // 4
        block = np.tile(patch, (repeats, repeats, 1))
        pixels[first : first + len(block), first : first + len(block)] = block
    options = {}
    if mpp is not None:
        options = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **options)
    return path


def entries(*paths: Path) -> list[SlideEntry]:
    return [SlideEntry(p.stem, str(p)) for p in paths]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[SlideEntry]:
    folder = tmp_path_factory.mktemp("slides")
    return entries(*(write_slide(folder / f"s{i}.tif", seed=i) for i in range(4)))


def sampler(**changes: object) -> Sampler:
    return Sampler.model_validate(
        {"px": 64, "pool": 2, "reuse": 2, "slides_per_batch": 2, **changes}
    )


def test_batches_depend_on_seed_and_number_alone(slides: list[SlideEntry]) -> None:
    a, b = SlideSource(slides, sampler(), seed=1), SlideSource(slides, sampler(), seed=1)
    b.batch(5, 8, slice(0, 8))  # another history
    for index in (0, 3):
        x, y = a.batch(index, 8, slice(0, 8)), b.batch(index, 8, slice(0, 8))
        np.testing.assert_array_equal(x.tiles, y.tiles)
        np.testing.assert_array_equal(x.slides, y.slides)
    other = SlideSource(slides, sampler(), seed=2).batch(0, 8, slice(0, 8))
    assert not np.array_equal(other.tiles, a.batch(0, 8, slice(0, 8)).tiles)


def test_a_process_reads_its_rows_of_the_joined_batch(slides: list[SlideEntry]) -> None:
    source = SlideSource(slides, sampler())
    joined = source.batch(0, 8, slice(0, 8))
    part = source.batch(0, 8, slice(4, 8))
    np.testing.assert_array_equal(part.tiles, joined.tiles[4:])
    np.testing.assert_array_equal(part.slides, joined.slides)


def test_tiles_have_tissue_and_batches_mix_slides(slides: list[SlideEntry]) -> None:
    source = SlideSource(slides, sampler(tissue=0.9, mpp=0.25))
    batch = source.batch(0, 32, slice(0, 32))
    assert len(np.unique(batch.slides)) == 2
    white = (batch.tiles > WHITE - 8).all(axis=-1).mean(axis=(1, 2))
    assert (white < 0.6).all()  # the mask is a little wider than the tissue
    assert np.median(white) < 0.1


def test_every_slide_is_visited(slides: list[SlideEntry]) -> None:
    source = SlideSource(slides, sampler())
    seen = Counter(int(s) for i in range(4) for s in source.batch(i, 8, slice(0, 0)).slides)
    assert set(seen) == {0, 1, 2, 3}


def test_magnifications_follow_the_mixture(slides: list[SlideEntry]) -> None:
    mixture = {0.25: 0.2, 0.5: 0.4, 1.0: 0.2, 2.0: 0.2}
    source = SlideSource(slides, sampler(mpp=mixture))
    drawn = np.concatenate([source.batch(i, 500, slice(0, 0)).mpp for i in range(8)])
    found = np.array([(drawn == m).sum() for m in mixture])
    expected = np.array(list(mixture.values())) * len(drawn)
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = .001


def test_continuous_magnification_is_uniform_in_log(slides: list[SlideEntry]) -> None:
    source = SlideSource(slides, sampler(mpp=(0.25, 2.0)))
    drawn = np.concatenate([source.batch(i, 500, slice(0, 0)).mpp for i in range(4)])
    assert drawn.min() >= 0.25
    assert drawn.max() <= 2.0
    quarters = np.histogram(np.log2(drawn), bins=[-2, -1, 0, 1])[0] / len(drawn)
    np.testing.assert_allclose(quarters, 1 / 3, atol=0.04)


def test_allowed_mpp_is_what_the_slide_can_give() -> None:
    assert allowed_mpp({0.25: 1, 0.5: 1}, own=0.5) == {0.5: 1}
    assert allowed_mpp({0.25: 1, 0.5: 1}, own=0.27) == {0.25: 1, 0.5: 1}  # within 10 %
    assert allowed_mpp(0.25, own=0.5) is None
    assert allowed_mpp((0.25, 1.0), own=0.55) == (pytest.approx(0.5), 1.0)


def test_slides_that_cannot_serve_are_left_out_with_the_reason(
    tmp_path: Path, slides: list[SlideEntry], caplog: pytest.LogCaptureFixture
) -> None:
    odd = entries(
        write_slide(tmp_path / "empty.tif", tissue=False),
        write_slide(tmp_path / "coarse.tif", mpp=1.0),
        write_slide(tmp_path / "unknown.tif", mpp=None),
    )
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"not a slide")
    with caplog.at_level(logging.WARNING):
        source = SlideSource([*slides[:1], *odd, *entries(broken)], sampler(mpp=0.5))
    assert source.names == ["s0"]
    reasons = dict(source.skipped)
    assert reasons["empty"] == "no tissue"
    assert "cannot give mpp 0.5" in reasons["coarse"]
    assert "mpp" in reasons["unknown"]
    assert "broken" in reasons
    # One slide only is enough, and said.
    assert "batches come from 1 slides" in caplog.text
    assert source.batch(0, 4, slice(0, 4)).tiles.shape == (4, 64, 64, 3)
    with pytest.raises(ConfigError, match=r"none of 1 slides can be used.*no tissue"):
        SlideSource(odd[:1], sampler())


def test_tissue_is_found_once_and_kept(
    tmp_path: Path, slides: list[SlideEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SlideSource(slides, sampler(), cache=tmp_path)
    want = first.batch(0, 4, slice(0, 4)).tiles
    assert len(list(tmp_path.glob("*.npz"))) == 4

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("found again")

    monkeypatch.setattr("wsipipe.pretrain.pool.detect_tissue", refuse)
    again = SlideSource(slides, sampler(), cache=tmp_path)
    np.testing.assert_array_equal(again.batch(0, 4, slice(0, 4)).tiles, want)


def test_snapped_tiles_touch_fewer_blocks(
    slides: list[SlideEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsipipe.slide import Slide

    reads = Counter()
    read_block = Slide.read_block

    def counting(self: Slide, *args: object, **kwargs: object) -> object:
        reads["blocks"] += 1
        return read_block(self, *args, **kwargs)

    monkeypatch.setattr(Slide, "read_block", counting)
    used = {}
    for snap in (True, False):
        source = SlideSource(slides, sampler(px=256, mpp=0.25, snap=snap))
        source.batch(0, 1, slice(0, 1))
        for index in range(4):
            source._pool.get(index)  # opening a slide reads its thumbnail
        reads.clear()
        source.batch(0, 32, slice(0, 32))
        used[snap] = reads["blocks"] / 32
    assert used[True] == 1
    assert used[False] > 2.5


def test_hsv_filter_counts_pixels_within_bounds() -> None:
    tile = np.full((10, 10, 3), 255, np.uint8)
    tile[:4] = (150, 60, 140)  # purple
    assert hsv_share(tile, HsvFilter()) == pytest.approx(0.4)


def test_balanced_sampling_gives_rare_clusters_their_share(slides: list[SlideEntry]) -> None:
    n = 100
    anchors = Anchors(
        slide=np.arange(n) % 4,
        xy=np.full((n, 2), 768.0),
        cluster=(np.arange(n) >= 92).astype(np.int64),  # 8 % are of the rare kind
    )
    source = SlideSource(slides, sampler(balance="clusters", pool=4, mpp=0.25), anchors=anchors)
    rng = np.random.default_rng(0)
    drawn_slides, centres = balanced_places(anchors, np.arange(4), 2000, rng)
    assert len(drawn_slides) == len(centres) == 2000
    # Mark rare anchors by place to count them.
    anchors.xy[92:] += 1
    _, centres = balanced_places(anchors, np.arange(4), 2000, rng)
    assert (centres[:, 0] > 768).mean() == pytest.approx(0.5, abs=0.05)
    assert source.batch(0, 4, slice(0, 4)).tiles.shape == (4, 64, 64, 3)


def test_region_shows_the_patch_from_further_away(slides: list[SlideEntry]) -> None:
    source = SlideSource(slides, sampler(mpp=0.25, region=Region(px=64, factor=4)))
    batch = source.batch(0, 8, slice(0, 8))
    assert batch.region.shape == (8, 64, 64, 3)
    # Somewhere in the region, 16 px across, lies the patch: best match beats chance by far.
    small = batch.tiles.reshape(8, 16, 4, 16, 4, 3).mean(axis=(2, 4))

    def best(region: np.ndarray, patch: np.ndarray) -> float:
        windows = np.lib.stride_tricks.sliding_window_view(region, (16, 16, 3))[:, :, 0]
        return float(np.abs(windows - patch).mean(axis=(2, 3, 4)).min())

    own = [best(batch.region[i].astype(float), small[i]) for i in range(8)]
    other = [best(batch.region[i].astype(float), small[(i + 3) % 8]) for i in range(8)]
    assert np.median(own) < 0.6 * np.median(other)
