"""Pixels by physical resolution: exact averages, background, threads, thumbnails, colour."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageCms
from slidekit import tissue, write_pyramid

import wsipipe as wp
from wsipipe.errors import ReadError, ResolutionError
from wsipipe.slide.resample import resample


def shares(start, step, count, size):
    """(count, size): share of each source pixel's unit interval in each output footprint."""
    edges = np.arange(size)
    low = (start + np.arange(count) * step)[:, None]
    covered = np.clip(np.minimum(edges + 1, low + step) - np.maximum(edges, low), 0, None)
    return covered / covered.sum(1, keepdims=True)


def area_average(image, x, y, step, width, height):
    """Plain: every output pixel is the exact mean over its footprint, in float64."""
    across = shares(x, step[0], width, image.shape[1])
    down = shares(y, step[1], height, image.shape[0])
    return np.einsum("jy,yxc,ix->jic", down, image.astype(float), across, optimize=True)


@pytest.mark.parametrize(
    ("step", "start"),
    [
        (("2", "2"), ("0", "0")),
        (("2", "2"), ("3/10", "7/10")),
        (("10000/5053", "10000/5053"), ("1/3", "0")),
        (("7/2", "5/2"), ("1/2", "1/4")),
        (("1", "3/2"), ("1/2", "0")),
        (("17/3", "17/3"), ("0", "2")),
    ],
)
def test_area_averages_are_exact_at_any_position(step, start):
    image = tissue(150, 140)
    step = tuple(Fraction(s) for s in step)
    start = tuple(Fraction(s) for s in start)
    ours = resample(image, start, step, (21, 19))
    exact = area_average(image, *map(float, start), tuple(map(float, step)), 21, 19)
    # Rounded to the nearest grey level; float32 may tip an exact half.
    assert np.abs(ours - exact).max() <= 0.502


def test_interpolation_of_a_coarser_slide_is_linear_at_pixel_centres():
    ramp = np.repeat(np.arange(0, 200, 4, dtype=np.uint8)[None, :, None], 50, axis=0)
    ramp = np.repeat(ramp, 3, axis=2)
    step = Fraction(10, 11)
    ours = resample(ramp, (Fraction(5), Fraction(5)), (step, step), (30, 10))
    centres = 5 + (np.arange(30) + 0.5) * float(step) - 0.5
    assert np.abs(ours[0, :, 0] - 4 * centres).max() <= 0.502


def test_read_without_mpp_is_level_0(slide_path, image):
    with wp.open_slide(slide_path) as slide:
        assert np.array_equal(slide.read(100, 50, 300, 200), image[50:250, 100:400])


def test_a_level_within_tolerance_gives_its_own_pixels(slide_path):
    with wp.open_slide(slide_path) as slide:
        native = slide.read_level(1, 25, 10, 64, 64)
        assert np.array_equal(slide.read(100, 40, 64, 64, mpp=1.0), native)
        assert np.array_equal(slide.read(100, 40, 64, 64, mpp=1.04), native)
        assert not np.array_equal(slide.read(100, 40, 64, 64, mpp=1.06), native)


def test_resampled_reads_reduce_the_exact_region(slide_path, image):
    with wp.open_slide(slide_path) as slide:
        ours = slide.read(100, 60, 50, 40, mpp=0.5)
    exact = area_average(image, 100, 60, (2, 2), 50, 40)
    assert np.abs(ours - exact).max() <= 0.5


def test_a_coarser_level_serves_where_it_is_finer_than_the_target(tmp_path):
    """3 µm from levels 0.25 and 1: the level at 1 is reduced, within a grey level of level 0."""
    image = tissue(960, 720)
    from slidekit import reduced

    path = write_pyramid(
        tmp_path / "l.svs", [image, reduced(image, 4)], compression="deflate",
        facts={"MPP": 0.25},
    )  # fmt: skip
    with wp.open_slide(path) as slide:
        ours = slide.read(120, 96, 40, 30, mpp=3)
    exact = area_average(image, 120, 96, (12, 12), 40, 30)
    assert np.abs(ours - exact).mean() < 1


def test_outside_is_background_and_never_black(slide_path, image):
    with wp.open_slide(slide_path) as slide:
        pixels = slide.read_level(0, -50, 650, 100, 100)
        assert (pixels[:, :50] == 255).all()
        assert (pixels[50:] == 255).all()
        assert np.array_equal(pixels[:50, 50:], image[650:700, :50])
        assert (slide.read(5000, 5000, 10, 10, mpp=0.5) == 255).all()


def test_a_slide_that_is_too_coarse_is_refused_and_a_little_is_interpolated(slide_path):
    with wp.open_slide(slide_path) as slide:
        assert slide.read(0, 0, 8, 8, mpp=0.23).shape == (8, 8, 3)
        with pytest.raises(ResolutionError, match="coarser"):
            slide.read(0, 0, 8, 8, mpp=0.2)


def test_absurd_regions_are_refused(slide_path):
    with wp.open_slide(slide_path) as slide, pytest.raises(ReadError, match="at once"):
        slide.read_level(0, 0, 0, 10**6, 10**6)


def test_many_threads_read_the_same_pixels(slide_path, image):
    rng = np.random.default_rng(0)
    places = rng.integers(0, (800, 500), (300, 2)).tolist()
    with wp.open_slide(slide_path) as slide, ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda at: slide.read(*at, 200, 200), places)
        for (x, y), pixels in zip(places, results, strict=True):
            assert np.array_equal(pixels, image[y : y + 200, x : x + 200])


@pytest.mark.parametrize("mpp", [1.0, 2.2, 8, 0.1])
def test_thumbnail_is_the_exact_reduction_with_its_exact_downsample(slide_path, image, mpp):
    with wp.open_slide(slide_path) as slide:
        small = slide.thumbnail(mpp)
        assert slide.thumbnail(mpp).pixels.dtype == np.uint8
    ratio = max(Fraction(1), Fraction(str(mpp)) / Fraction(1, 4))
    assert small.downsample == (ratio, ratio)
    height, width = small.pixels.shape[:2]
    assert (width, height) == (-(-1000 // ratio), -(-700 // ratio))
    inside = (int(1000 // ratio), int(700 // ratio))
    exact = area_average(image, 0, 0, (float(ratio),) * 2, *inside)
    difference = np.abs(small.pixels[: inside[1], : inside[0]] - exact)
    # From level 1 where that is finer than the target: its pixels were rounded once before.
    assert difference.mean() < 1


def test_regions_too_large_to_hold_are_reduced_in_parts(slide_path, image, monkeypatch):
    with wp.open_slide(slide_path) as slide:
        whole = slide.read(10, 20, 200, 150, mpp=0.61)
        thumbnail = slide.thumbnail(3.3).pixels
        monkeypatch.setattr("wsipipe.slide.resample._SOURCE_PIXELS", 5000)
        monkeypatch.setattr("wsipipe.slide.thumbnail._CELL_PX", 60)
        parts = slide.read(10, 20, 200, 150, mpp=0.61)
        assert np.abs(parts.astype(int) - whole).max() <= 1
        assert np.abs(slide.thumbnail(3.3).pixels.astype(int) - thumbnail).max() <= 1


def test_a_slide_that_was_hardly_scanned_is_background(tmp_path):
    path = tmp_path / "sparse.tif"
    import tifffile

    tifffile.imwrite(
        path, shape=(3000, 3000, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb",
        compression="deflate", metadata=None, data=iter([b""] * 144),
    )  # fmt: skip
    with wp.open_slide(path, mpp=0.5) as slide:
        for mpp in (8, 3.7):
            assert (slide.thumbnail(mpp).pixels == 255).all()


def test_the_edge_of_a_thumbnail_averages_what_is_inside(tmp_path):
    image = np.full((300, 300, 3), 60, np.uint8)
    path = write_pyramid(tmp_path / "e.svs", [image], compression="deflate", facts={"MPP": 0.5})
    with wp.open_slide(path) as slide:
        assert (slide.thumbnail(3.5).pixels == 60).all()


def damaged(path, count):
    """Zero the first `count` compressed tiles of the first level."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for offset, size in places[:count]:
        data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    return len(places)


def test_a_bad_tile_leaves_the_thumbnail_and_most_bad_tiles_do_not(tmp_path, image):
    path = write_pyramid(tmp_path / "b.svs", [image], compression="jpeg", facts={"MPP": 0.25})
    total = damaged(path, 1)
    with wp.open_slide(path) as slide:
        small = slide.thumbnail(4).pixels
        assert (small[:16, :16] == 255).all()
        assert small[20:, 20:].mean() < 200
        with pytest.raises(ReadError):
            slide.read_level(0, 0, 0, 100, 100)
    damaged(path, total)
    with wp.open_slide(path) as slide, pytest.raises(ReadError):
        slide.thumbnail(4)


def test_icc_srgb_applies_the_embedded_profile_and_none_leaves_it(tmp_path, image):
    # A profile whose red and green are swapped shows plainly whether it was applied.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    path = write_pyramid(
        tmp_path / "icc.svs", [image], compression="deflate", facts={"MPP": 0.5},
        iccprofile=swapped,
    )  # fmt: skip
    with wp.open_slide(path) as slide:
        assert slide.icc_profile == swapped
        assert slide.icc == "none"
        assert np.array_equal(slide.read(0, 0, 64, 64), image[:64, :64])
    source = ImageCms.ImageCmsProfile(__import__("io").BytesIO(swapped))
    expected = ImageCms.profileToProfile(
        Image.fromarray(image[:64, :64]), source, ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    with wp.open_slide(path, icc="srgb") as slide:
        pixels = slide.read(0, 0, 64, 64)
        assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1
        assert np.abs(pixels[..., 0].astype(int) - image[:64, :64, 1]).mean() < 3


def test_properties_are_allow_listed(real_data):
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    for reader in ("tiff", "openslide"):
        with wp.open_slide(path, reader=reader) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            text = " ".join([*slide.properties, *slide.properties.values()])
            assert "Filename" not in text
            assert "ImageDescription" not in text
            assert "Date" not in text


def test_mirax_bounds_and_background(real_data):
    with wp.open_slide(real_data / "slides" / "P2_crop_bounds.mrxs") as slide:
        assert slide.reader == "openslide"
        assert "TIFF only" in slide.reader_reason
        assert (slide.bounds.x, slide.bounds.y) == (3072, 5120)
        assert (slide.read_level(0, 0, 0, 64, 64) == 255).all()
        assert slide.read_level(0, 3500, 5500, 64, 64).mean() < 250


def test_flat_images(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.png")
    with wp.open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert slide.reader == "image"
        assert np.array_equal(slide.read(10, 20, 600, 500), image[20:520, 10:610])
    Image.fromarray(image).convert("CMYK").save(tmp_path / "c.jpg")
    with pytest.raises(wp.SlideOpenError, match="CMYK"):
        wp.open_slide(tmp_path / "c.jpg")
    Image.fromarray(image[..., 0].astype(np.uint16)).save(tmp_path / "d.png")
    with pytest.raises(wp.SlideOpenError, match="8 bits"):
        wp.open_slide(tmp_path / "d.png")
    clear = Image.fromarray(np.zeros((40, 40, 4), np.uint8))
    clear.save(tmp_path / "t.png")
    with wp.open_slide(tmp_path / "t.png", mpp=0.5) as slide:
        assert (slide.read(0, 0, 40, 40) == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_of_sixteen_bits_a_channel_is_refused(tmp_path, channels):
    cv2 = pytest.importorskip("cv2")
    shape = (40, 40) if channels == 1 else (40, 40, channels)
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full(shape, 40_000, np.uint16))
    with pytest.raises(wp.SlideOpenError, match="more than 8 bits per channel"):
        wp.open_slide(tmp_path / "a.png")
