"""The grid is exact: no drift, no gap, on any pyramid, at any resolution."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from gridkit import Bounds, RasterMask, memory_slide
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import wsipipe as wp
from wsipipe.errors import ConfigError, ResolutionError
from wsipipe.tiling import make_grid

mpps = st.integers(2, 120).map(lambda n: Fraction(n, 40)) | st.integers(500, 30_000).map(
    lambda n: Fraction(n, 10_000)
)


def pyramid(width, height, ratios, rounding):
    sizes = [(width, height)]
    for ratio, up in zip(ratios, rounding, strict=True):
        size = tuple(-(-s // ratio) if up else max(1, s // ratio) for s in (width, height))
        if size != sizes[-1]:
            sizes.append(size)
    return sizes


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(300, 9_000),
    height=st.integers(300, 3_000),
    ratios=st.sampled_from([(), (2, 4), (4, 16), (3, 7), (2, 4, 8, 16), (4, 16, 32)]),
    up=st.booleans(),
    own=mpps,
    target=mpps,
    tile_px=st.sampled_from([64, 100, 224, 256]),
    overlap=st.sampled_from([0, 0.25, 0.3, 0.5, 0.9]),
)
def test_positions_are_exact_and_complete(width, height, ratios, up, own, target, tile_px, overlap):
    own, target = Fraction(str(float(own))), Fraction(str(float(target)))
    assume(Fraction(1, 20) <= own <= 20)
    assume(own / target <= Fraction(11, 10))
    slide = memory_slide(pyramid(width, height, ratios, [up] * len(ratios)), mpp=str(float(own)))
    grid = make_grid(slide, None, tile_px=tile_px, mpp=float(target), overlap=overlap)
    read = grid.read
    level = slide.levels[read.level]

    # Section 4 again, written out: native if within 5 %, else the coarsest finer level.
    close = [
        (abs(own * other.downsample[0] / target - 1), other.index)
        for other in slide.levels
        if abs(own * other.downsample[0] / target - 1) <= Fraction("0.05")
    ]
    if close:
        assert (read.mode, read.level) == ("native", min(close)[1])
        u = level.downsample[0]
        assert grid.mpp_effective == pytest.approx(float(own * u))
    else:
        u = target / own
        finer = [other.index for other in slide.levels if own * other.downsample[0] <= target]
        assert read.mode == ("area" if finer else "interpolate")
        assert read.level == (max(finer) if finer else 0)
        assert grid.mpp_effective == pytest.approx(float(target))
    assert read.scale[0] == u

    # Positions: origin + col·s, rounded once; none missing, none beyond the edge.
    stride = max(1, int(np.floor(tile_px * (1 - overlap) + 0.5 + 1e-9)))
    assert read.stride_px == stride
    s = stride * read.scale[0]
    footprint = tile_px * read.scale[0]
    columns = 0 if footprint > width else int((width - footprint) // s) + 1
    down = tile_px * read.scale[1]
    rows = 0 if down > height else int((height - down) // (stride * read.scale[1])) + 1
    assert len(grid) == columns * rows
    if not len(grid):
        return
    col_row = [(c, r) for r in range(rows) for c in range(columns)]
    assert grid.col_row.tolist() == [list(p) for p in col_row]
    some = np.random.default_rng(0).integers(0, len(grid), 20)
    for index in [0, len(grid) - 1, *some]:
        col, row = col_row[index]
        exact_x, exact_y = col * s, row * stride * read.scale[1]
        x, y = grid.coords[index].tolist()
        assert x == int(np.floor(float(exact_x + Fraction(1, 2)))) or abs(x - exact_x) <= 0.5
        assert abs(x - exact_x) <= Fraction(1, 2)
        assert abs(y - exact_y) <= Fraction(1, 2)
        assert exact_x + footprint <= width
        if read.mode == "native":
            assert (exact_x / level.downsample[0]).denominator == 1
    assert (col_row[-1][0] + 1) * s + footprint > width
    assert grid.coords.dtype == np.int64
    assert (grid.tissue_fraction == 1).all()


@pytest.mark.parametrize(
    ("own", "target", "tolerance", "mode"),
    [
        ("0.4942", 0.5, 0.05, "native"),
        ("0.5021", 0.5, 0.05, "native"),
        ("0.475", 0.5, 0.05, "native"),
        ("0.4749", 0.5, 0.05, "area"),
        ("0.525", 0.5, 0.05, "native"),
        ("0.5251", 0.5, 0.05, "interpolate"),
        ("0.263", 0.25, 0.05, "interpolate"),
        ("0.25", 0.25, 0.0, "native"),
        ("0.2499", 0.25, 0.0, "area"),
    ],
)
def test_native_or_resampled(own, target, tolerance, mode):
    slide = memory_slide([(4000, 3000)], mpp=own)
    grid = make_grid(slide, None, tile_px=224, mpp=target, mpp_tolerance=tolerance)
    assert grid.read.mode == mode


def test_the_nearest_level_within_tolerance_is_read():
    slide = memory_slide([(4000, 3000), (2000, 1500)], mpp="0.24")
    assert make_grid(slide, None, tile_px=64, mpp=0.48, mpp_tolerance=0.6).read.level == 1


@pytest.mark.parametrize(("own", "fails"), [("0.275", False), ("0.2751", True)])
def test_up_sampling_ends_at_its_limit(own, fails):
    slide = memory_slide([(4000, 3000)], mpp=own)
    if fails:
        with pytest.raises(ResolutionError, match="coarser"):
            make_grid(slide, None, tile_px=224, mpp=0.25)
    else:
        assert make_grid(slide, None, tile_px=224, mpp=0.25).mpp_effective == 0.25


def test_a_rounded_level_does_not_shift_the_grid():
    """2220/278 = 7.986: a bare ratio would be 30 level-0 pixels off at the right edge."""
    sizes = [(2220, 2967), (1110, 1484), (555, 742), (278, 371), (139, 186)]
    slide = memory_slide(sizes, mpp="0.499")
    grid = make_grid(slide, None, tile_px=32, mpp=4)
    assert grid.read.level == 3
    assert grid.coords[:8, 0].tolist() == [0, 256, 512, 768, 1024, 1280, 1536, 1792]


def test_pixels_that_are_not_square_have_a_scale_an_axis():
    slide = memory_slide([(4000, 4000)], mpp=("0.25", "0.5"))
    grid = make_grid(slide, None, tile_px=100, mpp=1)
    assert grid.read.scale == (4, 2)
    assert (grid.coords[:, 0].max(), grid.coords[:, 1].max()) == (3600, 3800)


def test_the_grid_begins_at_the_bounds_snapped_to_the_level():
    bounds = Bounds(1001, 2003, 3000, 2500)
    slide = memory_slide([(8000, 8000), (2000, 2000)], mpp="0.25", bounds=bounds)
    grid = make_grid(slide, None, tile_px=100, mpp=1)
    assert grid.read.origin == (1000, 2004)
    assert grid.coords[0].tolist() == [1000, 2004]
    ends = grid.coords.max(axis=0) + 400
    assert ends[0] <= 4001
    assert ends[1] <= 4503


def test_tissue_decides_and_its_fraction_is_of_the_exact_footprint():
    slide = memory_slide([(1000, 1000)], mpp="0.5")
    mask = np.zeros((100, 100), bool)
    mask[:, :25] = True
    tissue = RasterMask(mask, (Fraction(10), Fraction(10)))
    grid = make_grid(slide, tissue, tile_px=100, mpp=0.5, min_tissue=0.5)
    assert sorted(set(grid.coords[:, 0].tolist())) == [0, 100, 200]
    half = grid.tissue_fraction[grid.coords[:, 0] == 200]
    assert half == pytest.approx(0.5)
    assert len(make_grid(slide, tissue, tile_px=100, mpp=0.5, min_tissue=0.51)) == 20
    nothing = make_grid(slide, tissue, tile_px=100, mpp=0.5, min_tissue=0)
    assert nothing.coords[:, 0].max() == 200


@pytest.mark.parametrize("boxes", [1, 19, 40, 100])
def test_a_dense_grid_finds_its_tissue_in_bands(monkeypatch, boxes):
    slide = memory_slide([(1000, 700)], mpp="0.5")
    mask = np.random.default_rng(0).random((70, 100)) < 0.4
    asked = []

    class Counted(RasterMask):
        def coverage(self, boxes):
            asked.append(len(boxes))
            return super().coverage(boxes)

    tissue = Counted(mask, (Fraction(10), Fraction(10)))
    whole = make_grid(slide, tissue, tile_px=100, mpp=0.5, overlap=0.5, min_tissue=0.4)
    assert asked == [19 * 13]
    asked.clear()
    monkeypatch.setattr("wsipipe.tiling.grid._BAND_BOXES", boxes)
    grid = make_grid(slide, tissue, tile_px=100, mpp=0.5, overlap=0.5, min_tissue=0.4)
    assert max(asked) <= max(boxes, 19)
    np.testing.assert_array_equal(grid.coords, whole.coords)
    np.testing.assert_array_equal(grid.tissue_fraction, whole.tissue_fraction)


def test_only_tissue_inside_the_region_counts():
    slide = memory_slide([(1000, 1000)], mpp="0.5")
    tissue = RasterMask(np.ones((100, 100), bool), (Fraction(10), Fraction(10)))
    region = np.zeros((50, 50), bool)
    region[:25, :25] = True
    roi = RasterMask(region, (Fraction(20), Fraction(20)))
    grid = make_grid(slide, tissue, tile_px=100, mpp=0.5, roi=roi)
    assert len(grid) == 25
    assert grid.coords.max() == 400
    assert (grid.tissue_fraction == 1).all()
    assert len(make_grid(slide, None, tile_px=100, mpp=0.5, roi=roi)) == 25


def test_a_slide_smaller_than_a_tile_has_no_tiles():
    grid = make_grid(memory_slide([(150, 100)], mpp="0.5"), None, tile_px=224, mpp=0.5)
    assert len(grid) == 0
    assert grid.coords.shape == (0, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tile_px": 0}, {"mpp": 0}, {"mpp": -1}, {"overlap": 1}, {"overlap": -0.1},
        {"min_tissue": 1.1}, {"mpp_tolerance": -1}, {"max_upsample": 0.9},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    settings_ = {"tile_px": 100, "mpp": 0.5} | wrong
    with pytest.raises(ConfigError):
        make_grid(memory_slide([(1000, 1000)]), None, **settings_)


def test_real_mirax_bounds(real_data):
    with wp.open_slide(real_data / "slides" / "P2_crop_bounds.mrxs") as slide:
        grid = wp.make_grid(slide, None, tile_px=256, mpp=0.5)
    assert len(grid) == 81
    assert grid.coords[0].tolist() == [3072, 5120]
