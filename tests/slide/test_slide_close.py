"""Closing a slide, also while threads read it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import wsipipe as wp
from wsipipe.errors import ReadError
from wsipipe.slide.reader import Reader, ReaderInfo
from wsipipe.slide.slide import Slide


class SlowReader(Reader):
    """Waits within a read until it is told to go on."""

    name = "slow"
    info = ReaderInfo(None, ((64, 64),), ((64, 64),))

    def __init__(self):
        self.entered, self.go_on, self.closed = threading.Event(), threading.Event(), 0

    def read_block(self, level, col, row, out=None):
        self.entered.set()
        assert self.go_on.wait(10)
        assert not self.closed
        return np.zeros((64, 64, 3), np.uint8)

    def close(self):
        self.closed += 1


def test_files_are_released_when_the_last_read_is_over():
    reader = SlowReader()
    slide = Slide("slow", reader)
    pixels = []
    thread = threading.Thread(target=lambda: pixels.append(slide.read(0, 0, 64, 64)))
    thread.start()
    assert reader.entered.wait(10)
    slide.close()
    assert reader.closed == 0
    reader.go_on.set()
    thread.join(10)
    assert len(pixels) == 1
    assert reader.closed == 1
    slide.close()
    assert reader.closed == 1


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_closed_slide_cannot_be_read(slide_path, reader):
    slide = wp.open_slide(slide_path, reader=reader)
    grid = wp.make_grid(slide, None, tile_px=64, mpp=0.25)
    slide.close()
    slide.close()
    for read in (
        lambda: slide.read(0, 0, 8, 8),
        lambda: slide.thumbnail(8),
        lambda: next(wp.iter_tiles(slide, grid)),
    ):
        with pytest.raises(ReadError, match=r"closed|cannot be decoded"):
            read()


def test_tiles_that_are_read_ahead_outlive_the_slide_without_harm(slide_path):
    with wp.open_slide(slide_path, reader="openslide") as slide:
        grid = wp.make_grid(slide, None, tile_px=16, mpp=0.25, overlap=0.5)
        tiles = wp.iter_tiles(slide, grid, batch_size=64, on_error="skip")
        next(tiles)
    assert sum(len(rows) for rows, _ in tiles) < len(grid)
