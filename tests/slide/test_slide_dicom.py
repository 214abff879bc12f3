"""A DICOM series is read directly, and as OpenSlide reads it where OpenSlide can."""

from __future__ import annotations

import struct

import numpy as np
import openslide
import pytest
from slidekit import element, reduced, sequence, tissue, write_dicom

import wsipipe as wp
from wsipipe.errors import SlideOpenError
from wsipipe.slide.dicom_file import read_header, series_uid
from wsipipe.slide.files import dicom_files


def test_a_series_opens_by_folder_and_by_any_file(dicom_series):
    image = tissue(555, 371, 3)
    for path in (dicom_series, dicom_series / "a.dcm", dicom_series / "c.dcm"):
        with wp.open_slide(path) as slide:
            assert slide.reader == "dicom"
            assert slide.dimensions == (555, 371)
            assert [level.downsample[0] for level in slide.levels] == [1, 2]
            assert slide.mpp == 0.5
            assert slide.mpp_source == "dicom.PixelSpacing"
            pixels = slide.read_level(0, 0, 0, 555, 371)
            assert np.abs(pixels.astype(int) - image).mean() < 6
            small = slide.read_level(1, 0, 0, 278, 186)
            assert np.abs(small.astype(int) - reduced(image, 2, up=True)).mean() < 6


def test_pixel_spacing_is_down_then_across(tmp_path):
    write_dicom(tmp_path / "a.dcm", tissue(200, 200), spacing_mm="0.0005\\0.00025")
    with wp.open_slide(tmp_path / "a.dcm") as slide:
        assert tuple(map(float, slide.mpp_xy)) == (0.25, 0.5)


def test_names_never_leave_the_file(dicom_series):
    header = read_header(dicom_series / "b.dcm")
    assert not any(tag >> 16 in (0x0010, 0x0012) for tag in header.elements)
    with wp.open_slide(dicom_series) as slide:
        assert "SECRET" not in str(slide.properties)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_cut_instance_is_refused(tmp_path, share):
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideOpenError, match=r"damaged|no whole-slide"):
        wp.open_slide(path)


def test_sixteen_bits_and_other_modalities_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(200, 200))
    data = path.read_bytes()
    eight = element(0x0028, 0x0100, b"US", struct.pack("<H", 8))
    assert data.count(eight) == 1
    path.write_bytes(data.replace(eight, element(0x0028, 0x0100, b"US", struct.pack("<H", 16))))
    with pytest.raises(SlideOpenError, match="16-bit"):
        wp.open_slide(path)
    path.write_bytes(data.replace(b"5.1.4.1.1.77.1.6", b"5.1.4.1.1.77.1.2"))
    with pytest.raises(SlideOpenError, match="not of a whole slide"):
        wp.open_slide(path)


def test_a_damaged_frame_is_an_error_of_its_block_alone(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    data = bytearray(path.read_bytes())
    second = data.index(b"\xff\xd8", data.index(b"\xff\xd8") + 2)
    data[second : second + 40] = bytes(40)
    path.write_bytes(data)
    with wp.open_slide(path) as slide:
        slide.read_level(0, 0, 0, 128, 128)
        with pytest.raises(wp.ReadError):
            slide.read_level(0, 128, 0, 128, 128)
        slide.read_level(0, 128, 128, 128, 128)


def test_the_real_series_agrees_with_openslide_where_openslide_reads_it(real_data):
    folder = real_data / "slides" / "CMU-1-Small-Region_dicom"
    handle = openslide.OpenSlide(sorted(folder.glob("*.dcm"))[0])
    with wp.open_slide(folder) as slide:
        assert [level.downsample[0] for level in slide.levels] == [1, 2, 4, 8, 16]
        for x, y in ((0, 0), (1000, 1500), (2120, 2867)):
            ours = slide.read_level(0, x, y, 100, 100)
            theirs = np.asarray(handle.read_region((x, y), 0, (100, 100)))[..., :3]
            assert np.abs(ours.astype(int) - theirs).mean() <= 1
        # The lower levels say RGB and are JFIF, that is YCbCr; their edge frames are cropped.
        # OpenSlide shows wrong colours or refuses; what counts is level 0, reduced.
        level = slide.levels[3]
        assert slide.read_level(3, 0, 0, level.width, level.height).std() > 5
        base = slide.read_level(0, 0, 0, 800, 800).reshape(100, 8, 100, 8, 3).mean((1, 3))
        assert np.abs(slide.read_level(3, 0, 0, 100, 100) - base).mean() < 6


def test_the_real_jpeg2000_level_agrees_with_openslide(real_data):
    path = real_data / "slides" / "camelyon_level_j2k.dcm"
    handle = openslide.OpenSlide(path)
    with wp.open_slide(path, mpp=0.5) as slide:
        ours = slide.read_level(0, 0, 0, *slide.dimensions)
    theirs = np.asarray(handle.read_region((0, 0), 0, handle.dimensions))[..., :3]
    assert np.abs(ours.astype(int) - theirs).mean() <= 1


def test_wsidicom_serves_what_the_others_refuse(dicom_series, monkeypatch):
    pytest.importorskip("wsidicom", reason="the extra [dicom] is not installed")
    from wsipipe.slide import dicom_reader
    from wsipipe.slide import open as opening
    from wsipipe.slide.dicom_index import NotDirectDicom

    def refuse(*args):
        raise NotDirectDicom("frames are split into fragments")

    def refuse_too(where, reason):
        raise SlideOpenError(where, "OpenSlide cannot open it")

    monkeypatch.setattr(dicom_reader, "index_series", refuse)
    monkeypatch.setattr(opening, "_openslide", refuse_too)
    (dicom_series / "c.dcm").unlink()
    with pytest.raises((SlideOpenError, wp.MissingExtraError)) as caught:
        wp.open_slide(dicom_series)
    # These minimal files lack what wsidicom asks for: it was asked, and its refusal is an error
    # of the slide.
    assert "wsidicom" in str(caught.value)


def test_wsidicom_reads_level_0_of_the_real_series(real_data):
    pytest.importorskip("wsidicom", reason="the extra [dicom] is not installed")
    from wsipipe.slide.files import dicom_files
    from wsipipe.slide.slide import Slide
    from wsipipe.slide.wsidicom_reader import WsiDicomReader

    folder = real_data / "slides" / "CMU-1-Small-Region_dicom"
    with (
        Slide(folder, WsiDicomReader(folder, dicom_files(folder))) as other,
        wp.open_slide(folder) as slide,
    ):
        assert other.levels == slide.levels
        assert other.mpp == slide.mpp
        ours, theirs = (s.read(500, 700, 700, 600) for s in (slide, other))
        assert np.abs(ours.astype(int) - theirs).mean() <= 1


def test_frames_without_an_order_are_refused(tmp_path):
    """Nobody promises that frames of such a file lie in row-major order."""
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    data = path.read_bytes()
    said = element(0x0020, 0x9311, b"CS", b"TILED_FULL")
    assert data.count(said) == 1
    path.write_bytes(data.replace(said, b""))
    with pytest.raises(SlideOpenError, match="does not say where its frames lie"):
        wp.open_slide(path)


@pytest.mark.parametrize("at", [None, (), (1,), (6, 1)])
def test_frames_that_are_not_said_to_lie_on_a_lattice_are_refused(tmp_path, at):
    """OpenSlide crashes on some of these, and shows white for others."""
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    full = element(0x0020, 0x9311, b"CS", b"TILED_FULL")
    data = path.read_bytes().replace(full, element(0x0020, 0x9311, b"CS", b"TILED_SPARSE"))
    if at is not None:
        place = b"".join(
            element(0x0048, 0x021E + n, b"SL", struct.pack("<i", v)) for n, v in enumerate(at)
        )
        pixels = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
        group = sequence(0x0048, 0x021A, place)
        groups = sequence(0x5200, 0x9230, *[group] * 9)
        data = data[:pixels] + groups + data[pixels:]
    path.write_bytes(data)
    with pytest.raises(SlideOpenError, match=r"where its frames lie|side by side"):
        wp.open_slide(path)


def test_a_full_grid_of_too_few_frames_is_damaged(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    columns = element(0x0048, 0x0006, b"UL", struct.pack("<I", 300))
    assert path.read_bytes().count(columns) == 1
    wider = element(0x0048, 0x0006, b"UL", struct.pack("<I", 5000))
    path.write_bytes(path.read_bytes().replace(columns, wider))
    with pytest.raises(SlideOpenError, match="9 frames for 40 x 3 places"):
        wp.open_slide(path)


def test_a_real_file_with_scrambled_frames_is_refused(real_data):
    with pytest.raises(SlideOpenError, match="does not say where its frames lie"):
        wp.open_slide(real_data / "nonwsi" / "sm_dicom_no_imagetype.dcm")


def test_jpeg_2000_of_colours_that_its_decoder_leaves_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300))
    wavelet = path.read_bytes().replace(b"1.2.4.50", b"1.2.4.90")
    path.write_bytes(wavelet)
    with pytest.raises(SlideOpenError, match="YBR_FULL_422 colours"):
        wp.open_slide(path)
    path.write_bytes(wavelet.replace(b"YBR_FULL_422", b"YBR_RCT     "))
    wp.open_slide(path).close()


def test_a_folder_of_many_series_is_read_once(dicom_series, monkeypatch):
    wp.open_slide(dicom_series).close()
    read = []
    monkeypatch.setattr("wsipipe.slide.dicom_file.read_header", lambda path, **_: read.append(path))
    for file in sorted(dicom_series.iterdir()):
        assert len(dicom_files(file)) == 3
    assert not read


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(300, 300), series="1.2.3")
    assert series_uid(path) == "1.2.3"
    write_dicom(path, tissue(300, 200), series="1.2.4")
    assert series_uid(path) == "1.2.4"
    path.write_bytes(bytes(1000))
    assert series_uid(path) is None
