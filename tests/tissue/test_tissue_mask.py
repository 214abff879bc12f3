"""Masks, their outlines and their coverage: exact, valid, fast."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsipipe.tissue import TissueMask
from wsipipe.tissue.coverage import PolygonCoverage
from wsipipe.tissue.outlines import mask_outlines, rasterise

HALF = (Fraction(1, 2), Fraction(1, 2))
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
scales = st.fractions(min_value=Fraction(1, 3), max_value=40, max_denominator=7)


def mask_of(pixels: np.ndarray, scale: tuple[Fraction, Fraction], **more: object) -> TissueMask:
    return TissueMask(pixels, scale, "test", {}, HALF, **more)


@st.composite
def cut_masks(draw: st.DrawFn) -> TissueMask:
    """A mask whose last column and row reach beyond the slide."""
    pixels = draw(masks)
    scale = (draw(scales), draw(scales))
    height, width = pixels.shape
    sizes = []
    for count, step in ((width, scale[0]), (height, scale[1])):
        least = int((count - 1) * step) + 1
        sizes.append(draw(st.integers(least, max(least, int(count * step)))))
    return mask_of(pixels, scale, dimensions=tuple(sizes))


@given(cut_masks())
def test_outlines_are_valid_and_have_the_area_of_the_mask(mask: TissueMask) -> None:
    polygons = mask.polygons()
    assert all(p.is_valid for p in polygons)
    area0 = sum(p.area for p in polygons)
    assert area0 * 0.25e-6 == pytest.approx(mask.area_mm2, rel=1e-9, abs=1e-15)


@given(cut_masks())
def test_rasterised_outlines_give_the_mask_back(mask: TissueMask) -> None:
    again = rasterise(mask.polygons(), mask.mask.shape, mask.downsample, mask.dimensions)
    np.testing.assert_array_equal(again, mask.mask)


@given(cut_masks(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_coverage_by_pixels_and_by_polygons_is_the_overlap_that_shapely_finds(
    mask: TissueMask, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    size = np.array(mask.dimensions)
    corner = rng.uniform(-0.3, 1.1, (30, 2)) * size
    # Half of the corners on pixel edges, where ties are.
    scale = np.array([float(s) for s in mask.downsample])
    corner[::2] = np.rint(corner[::2] / scale) * scale
    boxes = np.hstack([corner, corner + rng.uniform(0.2, 0.8, (30, 2)) * size])
    polygons = shapely.union_all(np.asarray(mask.polygons(), dtype=object))
    rectangles = shapely.box(*boxes.T)
    expected = shapely.area(shapely.intersection(rectangles, polygons)) / shapely.area(rectangles)
    by_pixels = mask.coverage(boxes)
    assert by_pixels.dtype == np.float32
    np.testing.assert_allclose(by_pixels, expected, atol=2e-6)
    np.testing.assert_allclose(
        PolygonCoverage(mask.polygons()).fractions(boxes), expected, atol=2e-6
    )


@given(st.integers(3, 30), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_coverage_by_any_polygon_is_the_overlap_that_shapely_finds(
    vertices: int, seed: int, whole_numbers: bool
) -> None:
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radius = rng.uniform(5, 50, vertices)
    ring = 50 + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    ring = ring.round() if whole_numbers else ring
    shape = shapely.difference(
        shapely.make_valid(shapely.Polygon(ring)), shapely.box(45, 45, 55, 52)
    )
    polygons = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    corner = rng.uniform(-10, 100, (200, 2))
    corner = corner.round() if whole_numbers else corner
    boxes = np.hstack([corner, corner + rng.integers(1, 30, (200, 2))])
    rectangles = shapely.box(*boxes.T)
    whole = shapely.union_all(np.asarray(polygons, dtype=object))
    expected = shapely.area(shapely.intersection(rectangles, whole)) / shapely.area(rectangles)
    np.testing.assert_allclose(PolygonCoverage(polygons).fractions(boxes), expected, atol=1e-6)


def test_a_quarter_covered_tile_is_exactly_a_quarter() -> None:
    pixels = np.zeros((4, 4), bool)
    pixels[:2, :2] = True
    mask = mask_of(pixels, (Fraction(7, 3), Fraction(7, 3)))
    full = 4 * 7 / 3
    found = mask.coverage(np.array([[0, 0, full, full], [0, 0, full / 2, full / 2]]))
    assert found.tolist() == [0.25, 1.0]


def test_what_lies_beyond_the_slide_is_not_tissue() -> None:
    mask = mask_of(np.ones((1, 1), bool), (Fraction(10), Fraction(10)), dimensions=(8, 10))
    found = mask.coverage(np.array([[0, 0, 10, 10], [8, 0, 10, 10], [-5, 0, 5, 10]], float))
    assert found.tolist() == pytest.approx([0.8, 0, 0.5])
    assert mask.area_mm2 == pytest.approx(80 * 0.25e-6)


def test_a_hole_and_a_part_that_touch_in_a_corner_stay_apart() -> None:
    pixels = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]], bool)
    polygons = mask_outlines(pixels, (Fraction(1), Fraction(1)))
    assert [p.area for p in polygons] == [7, 3]
    assert all(p.is_valid for p in polygons)
    assert len(polygons[0].interiors) == 1


def test_a_hundred_thousand_tiles_take_less_than_a_fifth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:2000, :2000]
    pixels = np.hypot(rows - 1000, columns - 1000) < 900
    pixels &= ~(np.hypot(rows % 200 - 100, columns % 200 - 100) < 30)
    mask = mask_of(pixels, (Fraction(32), Fraction(32)))
    corner = rng.uniform(0, 64_000, (100_000, 2))
    boxes = np.hstack([corner, corner + 448])
    polygons = mask_of(pixels, mask.downsample, outlines=tuple(mask.polygons()))
    for kind in (mask, polygons):
        kind.coverage(boxes[:1])  # builds its table
    seconds = []
    for kind in (mask, polygons):
        begun = time.process_time()
        kind.coverage(boxes)
        seconds.append(time.process_time() - begun)
    assert seconds[0] < 0.2
    # A random box has a right side of its own; a grid of tiles shares them and is faster.
    assert seconds[1] < 5.0


def test_empty_masks_and_no_boxes_are_fine() -> None:
    mask = mask_of(np.zeros((3, 5), bool), (Fraction(2), Fraction(2)))
    assert mask.is_empty
    assert mask.polygons() == []
    assert mask.coverage(np.zeros((0, 4))).shape == (0,)
    assert mask.coverage(np.array([[0.0, 0, 1, 1]])).tolist() == [0]


@pytest.mark.parametrize("boxes", [np.zeros(4), np.zeros((2, 3))])
def test_boxes_of_another_shape_are_refused(boxes: np.ndarray) -> None:
    mask = mask_of(np.ones((2, 2), bool), (Fraction(1), Fraction(1)))
    with pytest.raises(ValueError, match="boxes"):
        mask.coverage(boxes)


def test_a_mask_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        mask_of(np.ones((2, 2), np.uint8), (Fraction(1), Fraction(1)))
