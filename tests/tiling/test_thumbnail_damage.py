"""A thumbnail in spite of damage: bad blocks are counted, and a sound level is found."""

from __future__ import annotations

import numpy as np
import pytest
from gridkit import image_slide

from wsipipe.errors import ReadError
from wsipipe.pipeline.outputs import publish_picture
from wsipipe.tiling import make_grid
from wsipipe.tissue import detect_tissue


def damaged(*broken):
    image = np.full((512, 512, 3), 90, np.uint8)
    slide = image_slide(image, ratios=(1, 4, 8), block=64, mpp="0.5")
    slide._reader.broken.update(broken)
    return slide


def test_one_bad_block_is_background_and_counted():
    thumbnail = damaged((1, 0, 0)).thumbnail(2.0)
    assert (thumbnail.level, thumbnail.bad_blocks) == (1, 1)
    assert (thumbnail.pixels[:64, :64] == 255).all()
    assert (thumbnail.pixels[64:] == 90).all()


def test_a_level_whose_only_block_is_bad_leaves_the_word_to_a_finer_one():
    thumbnail = damaged((2, 0, 0)).thumbnail(4.0)
    assert (thumbnail.level, thumbnail.bad_blocks) == (1, 0)
    assert thumbnail.pixels.shape == (64, 64, 3)
    assert (thumbnail.pixels == 90).all()


def test_a_slide_without_a_sound_level_fails():
    everything = [(level, col, row) for level in range(3) for col in range(8) for row in range(8)]
    with pytest.raises(ReadError):
        damaged(*everything).thumbnail(4.0)


def test_bad_blocks_of_the_published_picture_are_told(tmp_path):
    slide = damaged((0, 0, 0), (0, 3, 2))
    tissue, grid = detect_tissue(slide, "none"), make_grid(slide, None, tile_px=64, mpp=0.5)
    assert publish_picture(tmp_path, "s", slide, tissue, grid) == 2
    assert (tmp_path / "thumbnails" / "s.jpg").exists()
