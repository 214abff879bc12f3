"""Kinds of TIFF: strips, planes, grey, opacity, missing tiles; and what is refused, in words."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from slidekit import aperio, reduced, tissue, write_pyramid

import wsipipe as wp
from wsipipe.errors import SlideOpenError


def read_whole(path):
    with wp.open_slide(path, mpp=0.5) as slide:
        return slide.read_level(0, 0, 0, *slide.dimensions), slide


@pytest.mark.parametrize("rows", [1, 16, 700])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_strips(tmp_path, image, rows, compression):
    path = tmp_path / "strips.tif"
    tifffile.imwrite(
        path, image, rowsperstrip=rows, photometric="rgb", compression=compression, metadata=None
    )
    pixels, slide = read_whole(path)
    assert np.array_equal(pixels, image)
    assert slide.reader == "tiff"


@pytest.mark.parametrize("tiled", [True, False])
def test_separate_colour_planes(tmp_path, image, tiled):
    path = tmp_path / "planes.tif"
    options = {"tile": (256, 256)} if tiled else {"rowsperstrip": 50}
    tifffile.imwrite(
        path, image.transpose(2, 0, 1).copy(), planarconfig="separate", photometric="rgb",
        metadata=None, **options,
    )  # fmt: skip
    assert np.array_equal(read_whole(path)[0], image)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_becomes_equal_channels_exactly(tmp_path, image, photometric):
    grey = image[..., 0].copy()
    path = tmp_path / "grey.tif"
    tifffile.imwrite(path, grey, tile=(256, 256), photometric=photometric, metadata=None)
    expected = grey if photometric == "minisblack" else 255 - grey
    pixels = read_whole(path)[0]
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_grey_jpeg(tmp_path, image):
    path = tmp_path / "grey.tif"
    tifffile.imwrite(
        path, image[..., 0].copy(), tile=(256, 256), photometric="minisblack", compression="jpeg",
        metadata=None,
    )  # fmt: skip
    pixels = read_whole(path)[0]
    assert np.abs(pixels[..., 1].astype(int) - image[..., 0]).mean() < 3


def test_transparent_parts_become_white_never_black(tmp_path, image):
    opacity = np.full((*image.shape[:2], 1), 255, np.uint8)
    opacity[:300] = 0
    colours = image.copy()
    colours[:300] = 0
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(
        path, np.concatenate([colours, opacity], axis=2), tile=(256, 256), photometric="rgb",
        extrasamples=["unassalpha"], metadata=None,
    )  # fmt: skip
    pixels = read_whole(path)[0]
    assert (pixels[:300] == 255).all()
    assert np.array_equal(pixels[300:], image[300:])


def test_premultiplied_opacity_is_laid_on_white(tmp_path, image):
    half = np.full((*image.shape[:2], 1), 128, np.uint8)
    path = tmp_path / "assoc.tif"
    tifffile.imwrite(
        path, np.concatenate([image // 2, half], axis=2), tile=(256, 256), photometric="rgb",
        extrasamples=["assocalpha"], metadata=None,
    )  # fmt: skip
    assert np.array_equal(read_whole(path)[0], np.minimum(image // 2 + 127, 255))


def test_missing_tiles_are_background(tmp_path, image):
    path = write_pyramid(tmp_path / "m.svs", [image], compression="deflate", facts={"MPP": 0.5})
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]
        counts = list(tag.value)
    counts[1] = 0
    data = bytearray(path.read_bytes())
    size = 2 if tag.dtype == 3 else 4
    data[tag.valueoffset + size : tag.valueoffset + 2 * size] = bytes(size)
    path.write_bytes(data)
    pixels = read_whole(path)[0]
    assert (pixels[:256, 256:512] == 255).all()
    assert np.array_equal(pixels[:256, :256], image[:256, :256])


def test_ome_tiff_with_reduced_images_and_physical_size(tmp_path, image):
    path = tmp_path / "p.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
        facts = {"axes": "YXS", "PhysicalSizeX": 0.499, "PhysicalSizeY": 499,
                 "PhysicalSizeYUnit": "nm"}  # fmt: skip
        file.write(image, subifds=2, metadata=facts, **options)
        for factor in (2, 4):
            file.write(reduced(image, factor), subfiletype=1, **options)
    with wp.open_slide(path) as slide:
        assert [level.downsample[0] for level in slide.levels] == [1, 2, 4]
        assert slide.mpp_xy == (wp.slide.mpp.parse_mpp("0.499"),) * 2
        assert slide.mpp_source == "ome.PhysicalSizeX"
        assert np.array_equal(slide.read_level(1, 0, 0, 500, 350), reduced(image, 2))


@pytest.mark.parametrize(
    ("pixels", "options", "word"),
    [
        (np.zeros((300, 300, 3), np.uint16), {"photometric": "rgb"}, "16-bit"),
        (np.zeros((300, 300), np.uint16), {"photometric": "minisblack"}, "16-bit"),
        (np.zeros((300, 300, 3), np.float32), {"photometric": "rgb"}, "floating-point"),
        (np.zeros((300, 300, 4), np.uint8), {"photometric": "separated"}, "CMYK"),
        (np.zeros((300, 300), np.int8), {"photometric": "minisblack"}, "signed"),
    ],
)
def test_pixels_without_an_exact_rgb_are_refused_with_a_word(tmp_path, pixels, options, word):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), metadata=None, **options)
    with pytest.raises(SlideOpenError, match=word):
        wp.open_slide(path)


def test_a_fluorescence_stack_is_refused(tmp_path):
    path = tmp_path / "five.ome.tif"
    tifffile.imwrite(
        path, np.zeros((5, 300, 300), np.uint8), tile=(256, 256), photometric="minisblack",
        metadata={"axes": "CYX"},
    )  # fmt: skip
    with pytest.raises(SlideOpenError, match=r"channels|not one brightfield"):
        wp.open_slide(path)


def test_levels_in_the_wrong_order_are_refused(tmp_path, image):
    path = write_pyramid(
        tmp_path / "r.svs", [reduced(image, 4), image], compression="deflate", facts={"MPP": 0.5}
    )
    with pytest.raises(SlideOpenError, match="do not descend"):
        wp.open_slide(path)


def test_label_and_macro_are_no_levels_and_never_read(tmp_path, image):
    path = tmp_path / "phi.svs"
    with tifffile.TiffWriter(path) as file:
        file.write(
            image, tile=(256, 256), photometric="rgb", compression="deflate", metadata=None,
            description=aperio(1000, 700, 256, MPP=0.5),
        )  # fmt: skip
        file.write(
            tissue(200, 200), photometric="rgb", compression="lzw", subfiletype=1, metadata=None,
            description="Aperio Image Library v12\r\nlabel 200x200",
        )  # fmt: skip
    # A label that cannot be decoded does not matter to a reader that never decodes it.
    with tifffile.TiffFile(path) as file:
        label_at = file.pages[1].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[label_at : label_at + 50] = b"\xff" * 50
    path.write_bytes(data)
    pixels, slide = read_whole(path)
    assert len(slide.levels) == 1
    assert np.array_equal(pixels, image)
    assert not any("label" in f"{k}{v}".lower() for k, v in slide.properties.items())
