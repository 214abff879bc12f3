"""Rubbish under the name of a slide is told for what it is; cut and hostile files are refused."""

from __future__ import annotations

import os
import struct
import time

import numpy as np
import pytest
import tifffile
from PIL import Image
from slidekit import write_pyramid

import wsipipe as wp
from wsipipe.errors import ConfigError, SlideOpenError
from wsipipe.slide import fingerprint


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\n<HTML>", "HTML"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        ("Überweisung, please call back\n".encode() * 400, "text"),
        (bytes(5000), "zero bytes"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (np.random.default_rng(0).bytes(9000), "OpenSlide cannot open"),
        (b"II*\0\xff\xff\xff\x7f", "damaged or cut off"),
        (b"II*\0", "damaged or cut off"),
    ],
)
def test_what_is_no_slide_is_named(tmp_path, content, word):
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(SlideOpenError, match=word) as caught:
        wp.open_slide(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(("form", "word"), [("PNG", "a PNG image"), ("JPEG", "a JPEG image")])
def test_an_image_under_the_name_of_a_slide(tmp_path, image, form, word):
    path = tmp_path / "a.svs"
    Image.fromarray(image).save(path, form)
    with pytest.raises(SlideOpenError, match=word):
        wp.open_slide(path)


def test_missing_dangling_and_folders(tmp_path):
    with pytest.raises(SlideOpenError, match="does not exist"):
        wp.open_slide(tmp_path / "no.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "gone.svs")
    with pytest.raises(SlideOpenError, match="link to nothing"):
        wp.open_slide(tmp_path / "link.svs")
    (tmp_path / "self.svs").symlink_to(tmp_path / "self.svs")
    with pytest.raises(SlideOpenError):
        wp.open_slide(tmp_path / "self.svs")
    (tmp_path / "folder.svs").mkdir()
    with pytest.raises(SlideOpenError, match="folder"):
        wp.open_slide(tmp_path / "folder.svs")


@pytest.mark.parametrize("name", ["a.svs", "b.dcm", "c.mrxs", "d.vms", "e.png"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SlideOpenError, match="neither a file nor a folder"):
        wp.open_slide(tmp_path / name)
    with pytest.raises(SlideOpenError, match="neither a file nor a folder"):
        fingerprint(tmp_path / name)


def test_a_mirax_file_without_its_folder(tmp_path):
    path = tmp_path / "case.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xd9")
    with pytest.raises(SlideOpenError, match="folder case/ is missing"):
        wp.open_slide(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("facts", [None, {"MPP": 0.5}])
def test_a_cut_file_is_refused_and_not_half_read(tmp_path, image, share, facts):
    path = write_pyramid(
        tmp_path / "a.svs", [image, image[::2, ::2].copy()], compression="deflate", facts=facts
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideOpenError, match="cut off"):
        wp.open_slide(path)


def hostile(tmp_path, image, **tags):
    """A sound file with one value of its first directory replaced."""
    path = write_pyramid(tmp_path / "h.tif", [image], compression="deflate")
    with tifffile.TiffFile(path) as file:
        found = {tag.name: tag for tag in file.pages[0].tags}
    data = bytearray(path.read_bytes())
    for name, value in tags.items():
        tag = found[name]
        # As a LONG, whatever it was.
        struct.pack_into("<HII", data, tag.offset + 2, 4, 1, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageWidth": 2**31},
        {"ImageLength": 2**24},
        {"ImageWidth": 0},
        {"TileWidth": 2**30, "TileLength": 2**30},
        {"TileWidth": 2**13, "TileLength": 2**14},
        {"TileWidth": 0},
        {"TileWidth": 16},
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path, image, tags):
    begin = time.perf_counter()
    with pytest.raises(SlideOpenError):
        wp.open_slide(hostile(tmp_path, image, **tags))
    assert time.perf_counter() - begin < 5


def test_a_circle_of_directories_ends(tmp_path, image):
    path = write_pyramid(tmp_path / "c.tif", [image, image[::2, ::2].copy()], compression="deflate")
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
        count = len(file.pages[1].tags)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, second + 2 + 12 * count, first)
    path.write_bytes(data)
    with pytest.raises(SlideOpenError, match="circle"):
        wp.open_slide(path)


def test_a_block_that_claims_another_size_is_an_error_and_not_an_allocation(tmp_path, image):
    import imagecodecs

    big = imagecodecs.jpeg8_encode(np.zeros((4096, 4096, 3), np.uint8))
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(
        path, iter([big]), shape=(256, 256, 3), dtype=np.uint8, tile=(256, 256),
        photometric="ycbcr", compression="jpeg", metadata=None,
    )  # fmt: skip
    with wp.open_slide(path) as slide, pytest.raises(wp.ReadError):
        slide.read_level(0, 0, 0, 256, 256)


@pytest.mark.parametrize("options", [{"reader": "magic"}, {"icc": "adobe"}, {"mpp": 300}])
def test_wrong_choices_are_mistakes_of_the_caller(slide_path, options):
    with pytest.raises(ConfigError):
        wp.open_slide(slide_path, **options)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("gray16_smalltif.tif", "16-bit"),
        ("multi-channel-z.ome.tif", "focal planes|channels"),
        ("vectra_fluor.qptiff", "channels"),
        ("float32.zarr.zip", "ZIP"),
        ("RGB-8bit.czi", "OpenSlide cannot open"),
    ],
)
def test_real_images_that_are_no_brightfield_slides(real_data, name, word):
    with pytest.raises(SlideOpenError, match=word):
        wp.open_slide(real_data / "nonwsi" / name)


def test_a_mirax_file_with_a_suffix_in_capitals_is_to_be_renamed(tmp_path):
    (tmp_path / "a.MRXS").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "a").mkdir()
    with pytest.raises(SlideOpenError, match=r"small letters\. Rename it"):
        wp.open_slide(tmp_path / "a.MRXS")
