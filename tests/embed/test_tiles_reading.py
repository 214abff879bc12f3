"""Tiles: right pixels, in order, each block decoded once, bad tiles told apart."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from wsipipe.embed import iter_tiles, plan_jobs, read_job
from wsipipe.embed.buffers import BufferPool
from wsipipe.errors import ConfigError, ReadError
from wsipipe.slide.memory import empty_pixels
from wsipipe.slide.shared import BUSY, SharedBlocks
from wsipipe.tiling import make_grid
from wsipipe.types import Bounds

sys.path.append(str(Path(__file__).parents[1] / "tiling"))
from gridkit import image_slide


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def footprint_means(image, grid, index):
    """The tile at `index`, averaged over its exact footprint in float64."""
    read, px = grid.read, grid.tile_px
    col, row = grid.col_row[index].tolist()

    def shares(place, axis, size):
        start = read.origin[axis] + place * read.stride_px * read.scale[axis]
        low = (float(start) + np.arange(px) * float(read.scale[axis]))[:, None]
        edge = np.arange(size)
        part = np.clip(
            np.minimum(edge + 1, low + float(read.scale[axis])) - np.maximum(edge, low), 0, None
        )
        return part / part.sum(1, keepdims=True)

    across = shares(col, 0, image.shape[1])
    down = shares(row, 1, image.shape[0])
    return np.einsum("jy,yxc,ix->jic", down, image.astype(float), across, optimize=True)


@pytest.mark.parametrize("block", [64, 100, 37])
@pytest.mark.parametrize(("tile_px", "overlap"), [(64, 0), (50, 0), (50, 0.3), (200, 0.5)])
def test_native_tiles_are_the_pixels_at_their_coordinates(block, tile_px, overlap):
    image = noise(700, 500)
    slide = image_slide(image, block=block, mpp="0.5")
    grid = make_grid(slide, None, tile_px=tile_px, mpp=0.5, overlap=overlap)
    seen = []
    for rows, tiles in iter_tiles(slide, grid, batch_size=17, workers=3):
        assert rows.dtype == np.int64
        assert tiles.dtype == np.uint8
        for row, tile in zip(rows.tolist(), tiles, strict=True):
            x, y = grid.coords[row]
            assert np.array_equal(tile, image[y : y + tile_px, x : x + tile_px])
            seen.append(row)
    assert seen == list(range(len(grid)))


@pytest.mark.parametrize("target", [0.5, 0.49465, 0.61, 1.7])
@pytest.mark.parametrize("overlap", [0, 0.4])
def test_resampled_tiles_average_their_exact_footprints(target, overlap):
    image = noise(640, 480)
    slide = image_slide(image, block=96, mpp="0.25")
    grid = make_grid(slide, None, tile_px=48, mpp=target, overlap=overlap, mpp_tolerance=0)
    assert grid.read.mode == "area"
    checked = 0
    for rows, tiles in iter_tiles(slide, grid, batch_size=7):
        for row, tile in zip(rows.tolist(), tiles, strict=True):
            difference = np.abs(tile - footprint_means(image, grid, row))
            assert difference.max() <= 0.51
            checked += 1
    assert checked == len(grid)


def test_interpolated_tiles_have_no_seams():
    image = np.repeat(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], 400, axis=0)
    image = np.repeat(image, 3, axis=2)
    slide = image_slide(image, block=64, mpp="0.263")
    grid = make_grid(slide, None, tile_px=50, mpp=0.25)
    assert grid.read.mode == "interpolate"
    rows, tiles = next(iter(iter_tiles(slide, grid, batch_size=len(grid))))
    first = [i for i in rows.tolist() if grid.col_row[i, 1] == 0]
    line = np.concatenate([tiles[i][10, :, 0] for i in first]).astype(int)
    assert (np.diff(line) >= 0).all()
    assert np.diff(line).max() <= 1


def test_a_level_that_was_rounded_down_repeats_its_edge_and_never_invents_background():
    """403 px, levels of 403 and 201: the last half pixel of the level does not exist."""
    image = np.full((403, 403, 3), 90, np.uint8)
    from gridkit import memory_slide

    slide = memory_slide(
        [(403, 403), (201, 201)], images=[image, image[:201, :201]], block=64, mpp="0.25"
    )
    grid = make_grid(slide, None, tile_px=31, mpp=1.625, mpp_tolerance=0)
    assert grid.read.level == 1
    for _, tiles in iter_tiles(slide, grid):
        assert (tiles == 90).all()


@pytest.mark.parametrize(
    ("tile_px", "target", "overlap"), [(64, 0.25, 0), (50, 0.25, 0.2), (48, 0.7, 0), (48, 0.5, 0.5)]
)
@pytest.mark.parametrize("max_tiles", [5, 16, 10_000])
def test_each_block_is_decoded_once_however_small_the_jobs(tile_px, target, overlap, max_tiles):
    slide = image_slide(noise(900, 700), block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=tile_px, mpp=target, overlap=overlap)
    for job in plan_jobs(slide, grid, max_tiles=max_tiles):
        read_job(slide, grid, job)
    decoded = slide._reader.decoded
    assert len(decoded) == len(set(decoded))


def test_jobs_in_any_order_and_from_many_threads_give_the_same_tiles():
    image = noise(900, 700)
    slide = image_slide(image, block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=50, mpp=0.25, overlap=0.2)
    jobs = plan_jobs(slide, grid, max_tiles=9)
    order = np.random.default_rng(1).permutation(len(jobs))
    with ThreadPoolExecutor(6) as pool:
        for tiles, job in pool.map(lambda i: (read_job(slide, grid, jobs[i])[0], jobs[i]), order):
            for row, tile in zip(job.rows.tolist(), tiles, strict=True):
                x, y = grid.coords[row]
                assert np.array_equal(tile, image[y : y + 50, x : x + 50])


@pytest.mark.parametrize("target", [0.25, 0.7])
def test_jobs_side_by_side_decode_no_block_twice(target):
    """Each sleeps while it decodes, so that both jobs want the same blocks at the same time."""
    image = noise(900, 700)
    slide = image_slide(image, block=64, mpp="0.25")
    decode = slide._reader.read_block

    def slowly(*place):
        time.sleep(0.001)
        return decode(*place)

    slide._reader.read_block = slowly
    grid = make_grid(slide, None, tile_px=50, mpp=target)
    jobs = plan_jobs(slide, grid, max_tiles=11)
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(lambda job: read_job(slide, grid, job)[0], jobs))
    decoded = slide._reader.decoded
    assert len(decoded) == len(set(decoded))
    alone = image_slide(image, block=64, mpp="0.25")
    for job, tiles in zip(plan_jobs(alone, grid, max_tiles=11), side_by_side, strict=True):
        assert np.array_equal(tiles, read_job(alone, grid, job)[0])


def test_a_block_in_flight_is_waited_for_and_tried_again_where_its_decoding_failed():
    shared = SharedBlocks(np.array([7]), np.array([3]), np.array([2]), max_bytes=1000)
    begun, go_on = threading.Event(), threading.Event()
    pixels = np.zeros((2, 2, 3), np.uint8)

    def fails():
        begun.set()
        assert go_on.wait(10)
        raise ReadError("s.svs", "a broken block")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.get, 7, 0, fails, wait=True)
        assert begun.wait(10)
        assert shared.get(7, 1, lambda: pixels, wait=False) is BUSY
        second = pool.submit(shared.get, 7, 1, lambda: pixels, wait=True)
        go_on.set()
        with pytest.raises(ReadError):
            first.result(10)
        assert second.result(10) is pixels
    assert shared.get(7, 2, fails, wait=False) is pixels


def test_a_hanging_block_holds_up_nobody_else(monkeypatch):
    monkeypatch.setattr("wsipipe.slide.shared._PATIENCE_S", 0.05)
    shared = SharedBlocks(np.array([7]), np.array([3]), np.array([2]), max_bytes=1000)
    begun, go_on = threading.Event(), threading.Event()
    late, mine = (np.full((2, 2, 3), value, np.uint8) for value in (1, 2))

    def hangs():
        begun.set()
        assert go_on.wait(10)
        return late

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.get, 7, 0, hangs, wait=True)
        assert begun.wait(10)
        assert shared.get(7, 1, lambda: mine, wait=True) is mine
        go_on.set()
        assert first.result(10) is late
    assert shared.get(7, 2, hangs, wait=False) is mine
    assert shared._bytes == 0


def test_a_block_that_cannot_be_kept_goes_to_all_who_wait():
    shared = SharedBlocks(np.array([7]), np.array([3]), np.array([2]), max_bytes=0)
    begun, go_on = threading.Event(), threading.Event()
    pixels = np.zeros((2, 2, 3), np.uint8)

    def decode():
        begun.set()
        assert go_on.wait(10)
        return pixels

    def never():
        raise AssertionError("decoded again")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shared.get, 7, 0, decode, wait=True)
        assert begun.wait(10)
        others = [pool.submit(shared.get, 7, job, never, wait=True) for job in (1, 2)]
        while len(shared._changed._waiters) < 2:
            time.sleep(0.001)
        go_on.set()
        assert all(each.result(10) is pixels for each in (first, *others))


@pytest.mark.parametrize("px", [224, 240, 256])
def test_no_row_begins_where_libjpeg_writes_past_the_cache(px):
    """Multiples of 16 (SSE2) and 32 (AVX2); the pitch of 240 px is no multiple of 32."""
    slide = image_slide(noise(600, 600), block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=px, mpp=0.25)
    job = plan_jobs(slide, grid)[0]
    arrays = [
        next(iter_tiles(slide, grid))[1],
        read_job(slide, grid, job)[0],
        BufferPool(1 << 24).take(2 * px * px * 3).tiles(2, px),
        empty_pixels((px, px, 3)),
    ]
    for array in arrays:
        rows = array.reshape(-1, px * 3)
        assert all(row.ctypes.data % 16 for row in rows)


def test_shared_blocks_stay_within_their_bound():
    slide = image_slide(noise(2000, 400), block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=50, mpp=0.25)
    jobs = plan_jobs(slide, grid, max_tiles=4)
    jobs[0].plan.shared._max_bytes = 5 * 64 * 64 * 3
    for job in jobs:
        read_job(slide, grid, job)
        assert job.plan.shared._bytes <= 5 * 64 * 64 * 3


def test_a_whole_pass_leaves_nothing_shared_behind():
    slide = image_slide(noise(900, 700), block=64, mpp="0.25")
    for target in (0.25, 0.7):
        grid = make_grid(slide, None, tile_px=50, mpp=target)
        jobs = plan_jobs(slide, grid, max_tiles=7)
        for job in jobs:
            read_job(slide, grid, job)
        assert jobs[0].plan.shared._bytes == 0
        assert not jobs[0].plan.shared._entries


@pytest.mark.parametrize("target", [0.25, 0.5, 0.61])
def test_a_bad_block_marks_exactly_the_tiles_above_it(target):
    image = noise(640, 640)
    slide = image_slide(image, block=64, mpp="0.25")
    slide._reader.broken = {(0, 3, 4)}
    grid = make_grid(slide, None, tile_px=40, mpp=target)
    scale = float(grid.read.scale[0])
    status = np.concatenate(
        [read_job(slide, grid, job)[1] for job in plan_jobs(slide, grid, max_tiles=30)]
    )
    exact = grid.col_row * (grid.read.stride_px * scale)
    touched = (
        (exact[:, 0] < 256) & (exact[:, 0] + 40 * scale > 192)
        & (exact[:, 1] < 320) & (exact[:, 1] + 40 * scale > 256)
    )  # fmt: skip
    assert np.array_equal(status == 1, touched)
    assert 0 < touched.sum() < len(grid)


def test_on_error_raises_or_skips():
    slide = image_slide(noise(640, 640), block=64, mpp="0.25")
    slide._reader.broken = {(0, 3, 4)}
    grid = make_grid(slide, None, tile_px=64, mpp=0.25)
    with pytest.raises(ReadError, match=r"\(192, 256\)"):
        list(iter_tiles(slide, grid, batch_size=10))
    rows = np.concatenate([r for r, _ in iter_tiles(slide, grid, batch_size=10, on_error="skip")])
    assert len(rows) == len(grid) - 1
    assert grid.coords[list(set(range(len(grid))) - set(rows.tolist()))].tolist() == [[192, 256]]


def test_unscanned_blocks_are_background():
    slide = image_slide(noise(256, 256), block=64, mpp="0.25")
    slide._reader._images = None
    grid = make_grid(slide, None, tile_px=50, mpp=0.4)
    for _, tiles in iter_tiles(slide, grid):
        assert (tiles == 255).all()


@pytest.mark.parametrize("wrong", [{"on_error": "ignore"}, {"batch_size": 0}, {"workers": 0}])
def test_wrong_settings_are_refused_at_once(wrong):
    slide = image_slide(noise(128, 128), block=64, mpp="0.25")
    with pytest.raises(ConfigError):
        iter_tiles(slide, make_grid(slide, None, tile_px=64, mpp=0.25), **wrong)


def test_a_pass_that_is_given_up_stops_reading():
    slide = image_slide(noise(2000, 2000), block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=64, mpp=0.25)
    tiles = iter_tiles(slide, grid, batch_size=4)
    next(tiles)
    tiles.close()
    assert len(slide._reader.decoded) < 60


def test_no_tiles_no_batches():
    slide = image_slide(noise(128, 128), block=64, mpp="0.25")
    grid = make_grid(slide, None, tile_px=200, mpp=0.25)
    assert list(iter_tiles(slide, grid)) == []
    assert plan_jobs(slide, grid) == []
    assert grid.read.scale == (Fraction(1), Fraction(1))


@pytest.mark.parametrize(
    ("block", "bounds", "factor"),
    [(96, None, (2, 2)), (37, None, None), (96, Bounds(1, 0, 600, 400), None)],
)
def test_tiles_at_twice_the_mpp_are_exact_means_whether_cut_or_put_together(block, bounds, factor):
    """Blocks of odd size, and bounds that begin at an odd pixel, let pixels straddle blocks."""
    image = noise(640, 480)
    slide = image_slide(image, block=block, mpp="0.25", bounds=bounds)
    grid = make_grid(slide, None, tile_px=48, mpp=0.5)
    assert plan_jobs(slide, grid)[0].plan.factor == factor
    for rows, tiles in iter_tiles(slide, grid, batch_size=9):
        for row, tile in zip(rows.tolist(), tiles, strict=True):
            x, y = grid.coords[row]
            part = image[y : y + 96, x : x + 96].reshape(48, 2, 48, 2, 3).astype(int)
            assert np.array_equal(tile, (part.sum(axis=(1, 3)) + 2) // 4)


def test_batches_that_are_kept_stay_as_they_were():
    """Memory of a batch is used again, but never while any part of it is still referred to."""
    image = noise(1600, 1600)
    slide = image_slide(image, block=64, mpp="0.5")
    grid = make_grid(slide, None, tile_px=64, mpp=0.5)
    kept = [
        (rows[3:5], tiles[3:5]) if number % 2 else (rows, np.asarray(memoryview(tiles)))
        for number, (rows, tiles) in enumerate(iter_tiles(slide, grid, batch_size=20))
    ]
    for rows, tiles in kept:
        for row, tile in zip(rows.tolist(), tiles, strict=True):
            x, y = grid.coords[row]
            assert np.array_equal(tile, image[y : y + 64, x : x + 64])


def test_batches_that_are_let_go_give_their_memory_to_the_next():
    slide = image_slide(noise(1600, 1600), block=64, mpp="0.5")
    grid = make_grid(slide, None, tile_px=64, mpp=0.5)
    addresses = {
        tiles.__array_interface__["data"][0]
        for _, tiles in iter_tiles(slide, grid, batch_size=10, workers=2)
    }
    assert len(addresses) <= 5
