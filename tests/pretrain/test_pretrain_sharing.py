"""Tiles cut from blocks decoded once: fewer decodes, the same statistics."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError
from scipy.stats import chi2_contingency

from wsipipe.pretrain.drawing import draw_tiles
from wsipipe.pretrain.options import HsvFilter, Sampler
from wsipipe.pretrain.placing import read_tile
from wsipipe.pretrain.stream import SlideSource
from wsipipe.pretrain.windows import Windows
from wsipipe.slide import Slide, SlideEntry

SIZE = 2048


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideEntry:
    """White glass with a noisy pink triangle and a thin strip: no shape that blocks would suit."""
    path = tmp_path_factory.mktemp("sharing") / "odd.tif"
    y, x = np.mgrid[:SIZE, :SIZE]
    tissue = ((x + 0.6 * y < 1700) & (x > 150) & (y > 330)) | ((x > 1750) & (x < 1850))
    noise = np.random.default_rng(0).integers(-40, 40, (SIZE, SIZE, 1))
    pixels = np.where(tissue[..., None], np.array([190, 90, 160]) + noise, 243).astype(np.uint8)
    options = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **options)
    return SlideEntry("odd", str(path))


def _source(slide: SlideEntry, **changes: object) -> SlideSource:
    given = {"px": 256, "mpp": 0.25, "pool": 1, "slides_per_batch": 1, "snap": False, **changes}
    return SlideSource([slide], Sampler.model_validate(given))


def _corners(source: SlideSource, n: int, number: int = 0) -> np.ndarray:
    draw = draw_tiles(number, n, source.units, source.sampler, None, 0)
    return source._corners(draw, np.arange(n))


def test_each_shared_tile_lies_where_a_single_one_could_with_the_same_probability(
    slide: SlideEntry,
) -> None:
    single = _corners(_source(slide, tissue=0.6), 6000, number=1)[:, 0]
    shared = _corners(_source(slide, tissue=0.6, share=4), 6000)
    bins = [np.arange(0, SIZE + 1, 128)] * 2

    def counts(corners: np.ndarray) -> np.ndarray:
        return np.histogram2d(*corners.T, bins=bins)[0].ravel()

    for part in range(4):
        table = np.stack([counts(single), counts(shared[:, part])])
        table = table[:, table.sum(axis=0) >= 20]
        assert table.shape[1] > 30
        assert chi2_contingency(table).pvalue > 1e-3, part
    # Tiles on the border of tissue stay as rare as they were.
    area = [_coverage(slide, c) for c in (single, shared[:, 1], shared[:, 3])]
    assert np.std(np.mean(area, axis=1)) < 0.005
    assert min(a.min() for a in area) >= 0.59


def _coverage(slide: SlideEntry, corners: np.ndarray) -> np.ndarray:
    tissue = _source(slide)._pool.get(0).tissue
    return tissue.coverage(np.concatenate([corners, corners + 256], axis=1).astype(np.float64))


def test_single_pixels_are_reached_not_only_borders_of_blocks(slide: SlideEntry) -> None:
    offsets = _corners(_source(slide, share=4), 3000)[:, 1:] % 256
    counts = np.histogram(offsets[..., 0], bins=16, range=(0, 256))[0]
    assert counts.min() > 0.5 * counts.mean()


def test_neighbours_meet_in_different_batches(slide: SlideEntry) -> None:
    source = _source(slide, share=4, mpp={0.25: 1, 0.5: 1})
    draw = draw_tiles(0, 16, source.units, source.sampler, None, 0)
    corners = source._corners(draw, np.arange(16))
    for index in range(4):
        batch = source.batch(index, 16, slice(0, 16))
        np.testing.assert_array_equal(batch.mpp, draw.mpp)
        opened = source._pool.get(0)
        for row in range(16):
            plan = opened.plan(draw.mpp[row])
            want = read_tile(opened.slide, plan, corners[row, index], 256)
            np.testing.assert_array_equal(batch.tiles[row], want)
    assert not np.array_equal(source.batch(4, 16, slice(0, 16)).mpp, draw.mpp)


def test_magnifications_follow_the_mixture_in_every_batch(slide: SlideEntry) -> None:
    mixture = {0.25: 0.2, 0.5: 0.4, 1.0: 0.4}
    source = _source(slide, mpp=mixture, share=4)
    drawn = np.concatenate([source.batch(i, 500, slice(0, 0)).mpp for i in range(0, 32, 4)])
    found = np.array([(drawn == m).sum() for m in mixture])
    expected = np.array(list(mixture.values())) * len(drawn)
    assert ((found - expected) ** 2 / expected).sum() < 13.82  # 2 degrees of freedom, p = .001


def test_blocks_are_decoded_once_for_all_of_their_tiles(
    slide: SlideEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_block = Slide.read_block

    def counting(self: Slide, *args: object, **kwargs: object) -> object:
        reads.append(args)
        return read_block(self, *args, **kwargs)

    used = {}
    for share in (1, 4):
        source = _source(slide, share=share)
        source._pool.get(0)
        with monkeypatch.context() as patch:
            patch.setattr(Slide, "read_block", counting)
            reads.clear()
            for index in range(4):
                source.batch(index, 32, slice(0, 32))
            used[share] = len(reads) / 128
    assert used[1] > 2.5
    assert used[4] <= 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_batches_depend_on_their_number_alone(slide: SlideEntry, order: tuple[int, ...]) -> None:
    source, again = _source(slide, share=2), _source(slide, share=2)
    wanted = [source.batch(i, 6, slice(0, 6)).tiles for i in range(4)]
    for index in order:
        np.testing.assert_array_equal(again.batch(index, 6, slice(2, 5)).tiles, wanted[index][2:5])


def test_colour_filter_judges_each_shared_tile(slide: SlideEntry) -> None:
    only_pink = HsvFilter(h=(120, 180), s=(40, 255), v=(0, 255), share=0.9)
    source = _source(slide, share=3, tissue=0.1, hsv=only_pink)
    tiles = np.concatenate([source.batch(i, 12, slice(0, 12)).tiles for i in range(3)])
    white = (tiles > 235).all(axis=-1).mean(axis=(1, 2))
    assert (white < 0.15).all()


def test_sharing_with_snapped_places_or_clusters_is_refused() -> None:
    for wrong in ({"snap": True}, {"snap": False, "balance": "clusters"}):
        with pytest.raises(ValidationError, match="needs snap: false"):
            Sampler.model_validate({"share": 2, **wrong})


def test_a_value_is_made_once_and_failures_are_not_kept() -> None:
    windows = Windows[int, int](keep=2)
    made: list[int] = []
    gate = threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        windows.get(7, lambda: made.append(7) or 49)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [7]
    with pytest.raises(ZeroDivisionError):
        windows.get(8, lambda: 1 // 0)
    assert windows.get(8, lambda: 64) == 64
    windows.get(9, lambda: 81)
    assert windows.get(7, lambda: 0) == 0  # pushed out, made anew
