"""Thumbnails show tissue, holes, pen, grid and scale, and name nothing but the slide id."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsipipe as wp
from wsipipe.report.thumbnail import draw_thumbnail, thumbnail_jpeg
from wsipipe.tissue import TissueMask

GREEN, BLUE, MAGENTA, INK = (0, 150, 0), (0, 90, 220), (230, 0, 200), (20, 20, 20)


@pytest.fixture
def slide(tmp_path: Path) -> wp.Slide:
    """800 x 400 px at 10 µm: 8 x 4 mm."""
    Image.fromarray(np.full((400, 800, 3), 240, np.uint8)).save(tmp_path / "DOE_JANE.png")
    with wp.open_slide(tmp_path / "DOE_JANE.png", mpp=10) as opened:
        yield opened


@pytest.fixture
def tissue(slide: wp.Slide) -> TissueMask:
    mask = np.zeros((40, 80), bool)
    mask[10:30, 10:60] = True
    mask[15:20, 20:30] = False
    pen = np.zeros((40, 80), bool)
    pen[5:35, 65:70] = True
    scale = (Fraction(10), Fraction(10))
    return TissueMask(mask, scale, "test", {}, slide.mpp_xy, pen=pen)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture - colour) <= 3).all(axis=2)


def test_outline_is_green_holes_are_blue_pen_is_tinted(slide: wp.Slide, tissue: TissueMask) -> None:
    drawn = pixels(draw_thumbnail(slide, tissue, None, "a"))
    assert near(drawn, GREEN)[150, 99:102].any()  # left edge of the tissue
    assert near(drawn, GREEN)[200, 598:602].any()  # right edge
    assert near(drawn, BLUE)[170, 198:202].any()  # left edge of the hole
    assert not near(drawn, GREEN)[160:190, 210:290].any()
    tinted = drawn[200, 675]
    assert tinted[1] < 150 < tinted[0]
    assert (drawn[200, 740] == 240).all()


def test_the_grid_frames_the_kept_tiles(slide: wp.Slide, tissue: TissueMask) -> None:
    grid = wp.make_grid(slide, tissue, tile_px=50, mpp=10, min_tissue=0.5)
    plain = pixels(draw_thumbnail(slide, tissue, None, "a"))
    drawn = pixels(draw_thumbnail(slide, tissue, grid, "a"))
    changed = (plain != drawn).any(axis=2)
    assert changed[125, 150]  # between two tiles within the tissue
    assert not changed[:90].any()
    assert not changed[310:400].any()


def test_the_scale_bar_has_the_length_it_says(slide: wp.Slide) -> None:
    footer = pixels(draw_thumbnail(slide, None, None, ""))[400:]
    longest = max(
        max((len(run) for run in "".join("#" if v else " " for v in row).split()), default=0)
        for row in near(footer, INK)
    )
    assert longest == pytest.approx(100, abs=2)  # 1 mm, the largest round length in a fifth


@pytest.mark.parametrize("max_px", [100, 400, 5000])
def test_the_picture_is_no_larger_than_asked_nor_than_the_slide(
    slide: wp.Slide, tissue: TissueMask, max_px: int
) -> None:
    picture = draw_thumbnail(slide, tissue, None, "a", max_px=max_px)
    assert picture.width == max(160, min(max_px, 800))


def test_pixels_that_are_not_square_are_drawn_square(tmp_path: Path) -> None:
    class Wide:
        dimensions, mpp_xy = (100, 100), (Fraction(20), Fraction(10))

    rgb = np.full((100, 100, 3), 240, np.uint8)
    picture = draw_thumbnail(Wide(), None, None, "a", pixels=rgb)
    assert picture.width == pytest.approx(2 * 50, abs=60)
    assert pixels(picture)[:50, :100].min() == 240
    assert (pixels(picture)[:50, 100:] == 255).all()


def test_a_picture_at_hand_is_not_read_again(slide: wp.Slide) -> None:
    rgb = np.full((40, 80, 3), 99, np.uint8)
    drawn = pixels(draw_thumbnail(slide, None, None, "a", pixels=rgb))
    assert (drawn[:40, :80] == 99).all()


def test_long_ids_are_shortened_in_the_middle(slide: wp.Slide) -> None:
    drawn = pixels(draw_thumbnail(slide, None, None, "ward/" + "x" * 400))
    footer = near(drawn[400:], INK)
    assert footer[:, :600].any()
    assert not footer[:, 640:680].all(axis=1).any()


def test_the_jpeg_names_neither_file_nor_maker(slide: wp.Slide, tissue: TissueMask) -> None:
    data = thumbnail_jpeg(draw_thumbnail(slide, tissue, None, "s1"))
    assert b"DOE" not in data
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        assert not picture.getexif()
        assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_a_slide_of_a_few_pixels_is_drawn(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3, 3), 240, np.uint8)).save(tmp_path / "t.png")
    with wp.open_slide(tmp_path / "t.png", mpp=0.5) as tiny:
        picture = draw_thumbnail(tiny, wp.detect_tissue(tiny), None, "t")
    assert picture.size[0] >= 3
