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
