"""A bad tile is tried once more through the other reader; errors do not latch."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from slidekit import tissue, write_pyramid

import wsipipe as wp
from wsipipe.embed import plan_jobs, read_job
from wsipipe.errors import ReadError
from wsipipe.slide.tiff_reader import TiffReader


@pytest.fixture
def jpeg_slide(tmp_path):
    return write_pyramid(
        tmp_path / "j.svs", [tissue(1024, 768)], compression="jpeg", photometric="ycbcr",
        facts={"MPP": 0.5},
    )  # fmt: skip


def spoil(path, number):
    """Zero one compressed tile of the first level."""
    with tifffile.TiffFile(path) as file:
        offset, size = (
            values[number] for values in (file.pages[0].dataoffsets, file.pages[0].databytecounts)
        )
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)


def statuses(slide):
    grid = wp.make_grid(slide, None, tile_px=256, mpp=0.5)
    return np.concatenate([read_job(slide, grid, job)[1] for job in plan_jobs(slide, grid)])


@pytest.mark.parametrize("reader", ["tiff", "openslide", None])
def test_one_bad_tile_of_twelve_is_one_bad_tile(jpeg_slide, reader):
    """OpenSlide alone would fail on all that follow the first error."""
    spoil(jpeg_slide, 5)
    with wp.open_slide(jpeg_slide, reader=reader) as slide:
        status = statuses(slide)
        assert status.tolist() == [0] * 5 + [1] + [0] * 6
        assert statuses(slide).tolist() == status.tolist()


def test_what_the_direct_reader_cannot_decode_openslide_may(jpeg_slide, monkeypatch):
    def refuse(self, level, col, row, out=None):
        raise ReadError(jpeg_slide, "not today")

    with wp.open_slide(jpeg_slide) as slide:
        before = slide.read_level(0, 100, 100, 700, 600)
        monkeypatch.setattr(TiffReader, "read_block", refuse)
        assert np.abs(slide.read_level(0, 100, 100, 700, 600).astype(int) - before).mean() <= 1
        assert not statuses(slide).any()
        assert slide.reader == "tiff"


def test_a_truncated_jpeg_is_bad_and_not_grey(jpeg_slide):
    with tifffile.TiffFile(jpeg_slide) as file:
        offset, size = file.pages[0].dataoffsets[2], file.pages[0].databytecounts[2]
    data = bytearray(jpeg_slide.read_bytes())
    data[offset + size // 2 : offset + size] = bytes(size - size // 2)
    jpeg_slide.write_bytes(data)
    with wp.open_slide(jpeg_slide) as slide:
        assert statuses(slide).nonzero()[0].tolist() == [2]
        with pytest.raises(ReadError) as caught:
            slide.read_level(0, 512, 0, 10, 10)
    assert str(jpeg_slide) in str(caught.value)
