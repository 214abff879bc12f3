"""The direct reader against OpenSlide: equal for lossless, within a grey level for JPEG."""

from __future__ import annotations

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from slidekit import aperio, reduced, tissue, write_pyramid

import wsipipe as wp


def openslide_rgb(handle, level, x, y, width, height):
    ratio = handle.level_downsamples[level]
    rgba = np.asarray(
        handle.read_region((round(x * ratio), round(y * ratio)), level, (width, height))
    )
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def compare(path, *, mean=0.0, most=0):
    """Level 0 and aligned regions of every level, edges included."""
    handle = openslide.OpenSlide(path)
    with wp.open_slide(path) as slide:
        assert slide.reader == "tiff"
        assert slide.dimensions == handle.dimensions
        assert len(slide.levels) == handle.level_count
        for level in slide.levels:
            for x, y in ((0, 0), (level.width - 90, level.height - 70), (33, 57)):
                if level.index and (x, y) != (0, 0):
                    continue  # OpenSlide interpolates off its own grid
                ours = slide.read_level(level.index, x, y, 120, 101)
                theirs = openslide_rgb(handle, level.index, x, y, 120, 101)
                difference = np.abs(ours.astype(int) - theirs)
                assert difference.mean() <= mean
                assert difference.max() <= most
    handle.close()


@pytest.mark.parametrize("tile", [240, 256, 512])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2), (2, 1)])
def test_jpeg_ycbcr(tmp_path, tile, subsampling):
    image = tissue(777, 531)
    path = write_pyramid(
        tmp_path / "a.svs", [image, reduced(image, 4)], tile=tile, facts={"MPP": 0.5},
        compression="jpeg", photometric="ycbcr", subsampling=subsampling,
    )  # fmt: skip
    compare(path, mean=1, most=4)


def test_jpeg_stored_as_rgb_as_aperio_does(tmp_path):
    image = tissue(600, 500)
    data = imagecodecs.jpeg8_encode(
        np.pad(image, ((0, 12), (0, 424), (0, 0)))[:512, :1024][:, :512].copy(),
        level=90, colorspace="RGB", outcolorspace="RGB",
    )  # fmt: skip
    path = tmp_path / "rgb.svs"
    tifffile.imwrite(
        path, iter([data]), shape=(500, 512, 3), dtype=np.uint8, tile=(512, 512),
        photometric="rgb", compression="jpeg", description=aperio(512, 500, 512, MPP=0.5),
        metadata=None,
    )  # fmt: skip
    compare(path, mean=1, most=4)


def test_jpeg_with_shared_tables(tmp_path):
    """Tables in tag 347, tiles without them: what libtiff and most scanners write."""
    image = tissue(512, 256)
    tiles, tables = [], b""
    for x in (0, 256):
        whole = imagecodecs.jpeg8_encode(
            image[:, x : x + 256].copy(), level=85, colorspace="RGB", outcolorspace="YCBCR"
        )
        kept, tables = split_tables(whole)
        tiles.append(kept)
    path = tmp_path / "tables.svs"
    tifffile.imwrite(
        path, iter(tiles), shape=image.shape, dtype=np.uint8, tile=(256, 256),
        photometric="ycbcr", subsampling=(2, 2), compression="jpeg", jpegtables=tables,
        description=aperio(512, 256, 256, MPP=0.5), metadata=None,
    )  # fmt: skip
    compare(path, mean=1, most=4)
    with wp.open_slide(path) as slide:
        assert np.abs(slide.read_level(0, 0, 0, 512, 256).astype(int) - image).mean() < 8


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """(stream without DQT and DHT, tables-only stream)."""
    at, kept, tables = 2, b"\xff\xd8", b"\xff\xd8"
    while jpeg[at + 1] != 0xDA:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segment = jpeg[at : at + length]
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += segment
        else:
            kept += segment
        at += length
    return kept + jpeg[at:], tables + b"\xff\xd9"


@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd"])
@pytest.mark.parametrize("predictor", [False, True])
def test_lossless_codecs_are_equal_to_the_last_bit(tmp_path, image, compression, predictor):
    if compression is None and predictor:
        pytest.skip("TIFF has no predictor without compression")
    path = write_pyramid(
        tmp_path / "a.tif", [image, reduced(image, 2)], compression=compression,
        predictor=predictor or None,
    )  # fmt: skip
    compare(path)
    with wp.open_slide(path) as slide:
        assert np.array_equal(slide.read_level(0, 0, 0, 1000, 700), image)


@pytest.mark.parametrize("number", [33003, 33005])
def test_aperio_jpeg2000(tmp_path, number):
    image = tissue(512, 256)
    stored = image
    if number == 33003:
        import cv2

        stored = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    tiles = (
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(stored[:, x : x + 256]), codecformat="j2k", level=0, mct=False
        )
        for x in (0, 256)
    )
    path = tmp_path / "j2k.svs"
    tifffile.imwrite(
        path, tiles, shape=image.shape, dtype=np.uint8, tile=(256, 256), photometric="rgb",
        compression=number, description=aperio(512, 256, 256, MPP=0.5), metadata=None,
    )  # fmt: skip
    # The wavelet is exact; OpenSlide and OpenCV round YCbCr to RGB differently by one.
    compare(path, mean=1, most=0 if number == 33005 else 2)


def philips(spacings):
    """The XML by which OpenSlide knows a Philips file, cut to what it reads."""
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" '
        f'Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">&quot;{mm}&quot; &quot;{mm}&quot;'
        f'</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" '
        f'Element="0x8B02" PMSVR="IUInt16">{number}</Attribute></DataObject>'
        for number, mm in enumerate(spacings)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS'
        '</Attribute><Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" '
        'PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage"><Attribute '
        'Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" '
        f'Element="0x8B01" PMSVR="IDataObjectArray"><Array>{levels}</Array></Attribute>'
        "</DataObject></Array></Attribute></DataObject>"
    )


def test_philips_levels_lose_their_padding(tmp_path):
    image = tissue(1536, 1024)
    path = tmp_path / "p.tiff"
    options = {
        "tile": (512, 512), "photometric": "ycbcr", "compression": "jpeg", "metadata": None,
        "software": "Philips DP v1.0",
    }  # fmt: skip
    with tifffile.TiffWriter(path) as file:
        file.write(image, description=philips(["0.00025", "0.0005", "0.001"]), **options)
        for factor in (2, 4):
            small = reduced(image, factor)
            pad = ((0, -small.shape[0] % 512), (0, -small.shape[1] % 512), (0, 0))
            level = {"description": f"level={factor // 2}", "subfiletype": 1}
            file.write(np.pad(small, pad), **level, **options)
    compare(path, mean=1, most=4)
    with wp.open_slide(path) as slide:
        assert slide.vendor == "philips"
        assert [(level.width, level.height) for level in slide.levels] == [
            (1536, 1024), (768, 512), (384, 256),
        ]  # fmt: skip


def test_bigtiff_and_generic_pyramid(tmp_path, image):
    compare(
        write_pyramid(
            tmp_path / "big.tif", [image, reduced(image, 2)], bigtiff=True, compression="deflate"
        )
    )


def test_big_endian(tmp_path, image):
    path = tmp_path / "mm.tif"
    tifffile.imwrite(
        path, image, byteorder=">", tile=(256, 256), photometric="rgb", compression="deflate",
        metadata=None,
    )  # fmt: skip
    with wp.open_slide(path) as slide:
        assert np.array_equal(slide.read_level(0, 0, 0, 1000, 700), image)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 7])
def test_rounded_levels_keep_exact_ratios(tmp_path, factor, up):
    image = tissue(1001, 703)
    path = write_pyramid(
        tmp_path / "odd.tif", [image, reduced(image, factor, up=up)], compression="deflate"
    )
    compare(path)
    with wp.open_slide(path) as slide:
        assert slide.levels[1].downsample == (factor, factor)


def test_every_real_slide_is_read_as_openslide_reads_it(real_data):
    seen = 0
    for path in sorted((real_data / "slides").glob("*.svs")):
        compare(path, mean=1, most=4)
        seen += 1
    compare(real_data / "slides" / "CMU-0-small.tiff", mean=1, most=4)
    assert seen


def test_real_tissue_and_a_whole_level_agree(real_data):
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    handle = openslide.OpenSlide(path)
    with wp.open_slide(path) as slide:
        ours = slide.read_level(0, 0, 0, *slide.dimensions)
    theirs = openslide_rgb(handle, 0, 0, 0, *handle.dimensions)
    assert np.abs(ours.astype(int) - theirs).mean() <= 1
