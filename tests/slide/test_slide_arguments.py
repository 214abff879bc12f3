"""Odd arguments of the public functions end in a sentence, not in a stray Python error."""

from __future__ import annotations

import math

import numpy as np
import pytest

import wsipipe as wp
from wsipipe.errors import ConfigError


@pytest.mark.parametrize("mpp", [0, -1, math.nan, math.inf, True, "0.5"])
def test_what_is_no_resolution_is_refused(slide_path, mpp):
    with wp.open_slide(slide_path) as slide:
        with pytest.raises(ConfigError, match=r"^mpp is .*Give µm per pixel"):
            slide.read(0, 0, 16, 16, mpp=mpp)
        with pytest.raises(ConfigError, match="number above 0"):
            slide.thumbnail(mpp)


@pytest.mark.parametrize("level", [-1, 7, 1.0, "0"])
def test_a_level_that_is_not_there_is_refused(slide_path, level):
    with wp.open_slide(slide_path) as slide, pytest.raises(ConfigError, match="from 0 to"):
        slide.read_level(level, 0, 0, 16, 16)


@pytest.mark.parametrize("name", ["x", "y", "width", "height"])
@pytest.mark.parametrize("mpp", [None, 1.0])
def test_coordinates_are_whole(slide_path, name, mpp):
    box = {"x": 0, "y": 0, "width": 16, "height": 16, name: 2.5}
    with wp.open_slide(slide_path) as slide:
        with pytest.raises(ConfigError, match=f"{name} is 2.5"):
            slide.read(**box, mpp=mpp)
        box[name] = np.int64(2)
        assert slide.read(**box, mpp=mpp).dtype == np.uint8


@pytest.mark.parametrize("tile_px", [224.0, "224"])
def test_tiles_are_whole(slide_path, tile_px):
    with wp.open_slide(slide_path) as slide, pytest.raises(ConfigError, match="whole number"):
        wp.make_grid(slide, None, tile_px=tile_px, mpp=1.0)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
@pytest.mark.parametrize("mpp", [None, 1.1, 2.0])
def test_narrow_integers_of_numpy_do_not_wrap_around(slide_path, kind, mpp):
    with wp.open_slide(slide_path) as slide:
        box = (200, 3, 224, 230)
        pixels = slide.read(*map(kind, box), mpp=mpp)
        np.testing.assert_array_equal(pixels, slide.read(*box, mpp=mpp))
        grid = wp.make_grid(slide, None, tile_px=kind(224), mpp=2.0)
        np.testing.assert_array_equal(
            grid.coords, wp.make_grid(slide, None, tile_px=224, mpp=2.0).coords
        )


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("mpp", [None, 1.1, 0.46])
def test_a_region_without_pixels_is_an_empty_array(slide_path, size, mpp):
    with wp.open_slide(slide_path) as slide:
        assert slide.read(3, 3, *size, mpp=mpp).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "given", [{"mpp_tolerance": math.nan}, {"mpp_tolerance": -0.1}, {"mpp_tolerance": "0"},
              {"max_upsample": math.inf}, {"max_upsample": None}, {"max_upsample": 0.9}],
)  # fmt: skip
def test_ratios_that_say_nothing_are_refused(slide_path, given):
    with wp.open_slide(slide_path) as slide:
        with pytest.raises(ConfigError, match="is not possible"):
            slide.read(0, 0, 16, 16, mpp=0.3, **given)
        with pytest.raises(ConfigError, match="is not possible"):
            wp.make_grid(slide, None, tile_px=16, mpp=0.3, **given)


@pytest.mark.parametrize("given", [{"batch_size": 2.5}, {"workers": None}, {"workers": 0}])
def test_odd_numbers_of_tiles_and_threads_are_refused(slide_path, given):
    with wp.open_slide(slide_path) as slide:
        grid = wp.make_grid(slide, None, tile_px=224, mpp=2.0)
        with pytest.raises(ConfigError):
            wp.iter_tiles(slide, grid, **given)


def test_a_thumbnail_of_less_than_a_pixel_is_one_pixel(slide_path):
    with wp.open_slide(slide_path) as slide:
        assert slide.thumbnail(1e9).shape == (1, 1, 3)
