"""What the detectors find and what they leave, on pictures whose tissue is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tissue_pictures import GLASS, disk, paint

import wsipipe as wp
from wsipipe.errors import ConfigError, MissingMppError, TissueError
from wsipipe.tissue import detect_tissue, tissue_settings
from wsipipe.tissue.classical import detect_tissue_rgb, estimate_background

SlideOf = Callable[..., wp.Slide]
INKS = {"green": (30, 160, 130), "blue": (40, 90, 210), "red": (205, 25, 50), "black": (35, 32, 36)}


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def glass(shape: tuple[int, int]) -> np.ndarray:
    return paint(np.zeros(shape, bool))


def stroke(shape: tuple[int, int], *, x: int, width: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[40:-40, x : x + width] = True
    return mask


@pytest.mark.parametrize(("method", "least"), [("auto", 0.97), ("otsu", 0.9), ("hsv", 0.9)])
def test_tissue_is_found(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, method: str, least: float
) -> None:
    rgb, truth = section
    found = detect_tissue(slide_of(rgb), method)
    assert found.mask.shape == truth.shape
    assert iou(found.mask, truth) >= least
    assert found.area_mm2 == pytest.approx(truth.sum() * 64e-6, rel=0.03)
    assert found.downsample == (1, 1)


def test_large_holes_stay_and_small_ones_are_filled(slide_of: SlideOf) -> None:
    shape = (300, 300)
    truth = disk(shape, 150, 150, 120) & ~disk(shape, 110, 150, 30) & ~disk(shape, 200, 150, 9)
    found = detect_tissue(slide_of(paint(truth))).mask
    assert not found[150, 110]  # 0.18 mm²
    assert found[150, 200]  # 0.016 mm²


def test_specks_below_the_smallest_area_are_left_out(slide_of: SlideOf) -> None:
    shape = (200, 200)
    truth = disk(shape, 60, 60, 40) | disk(shape, 160, 160, 4)
    slide = slide_of(paint(truth))
    assert not detect_tissue(slide).mask[160, 160]
    assert detect_tissue(slide, min_tissue_mm2=0.001).mask[160, 160]


@pytest.mark.parametrize("ink", INKS)
def test_a_pen_stroke_is_recognised_and_the_tissue_beside_it_is_not(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, ink: str
) -> None:
    rgb, truth = section[0].copy(), section[1]
    pen = stroke(truth.shape, x=410, width=40)  # touches the larger piece's edge
    rgb[pen] = INKS[ink]
    found = detect_tissue(slide_of(rgb))
    assert found.pen is not None
    assert (found.pen & pen).sum() >= 0.95 * pen.sum()
    assert (found.mask & pen).sum() <= 0.02 * pen.sum()
    beside = truth & ~disk(truth.shape, 430, 300, 0)
    beside[:, 400:460] = False
    assert (found.mask & beside).sum() >= 0.98 * beside.sum()
    assert found.pen_mm2 == pytest.approx(pen.sum() * 64e-6, rel=0.25)


def test_pen_can_be_kept(slide_of: SlideOf) -> None:
    rgb = glass((200, 200))
    rgb[60:140, 60:140] = INKS["green"]
    slide = slide_of(rgb)
    assert detect_tissue(slide).is_empty
    kept = detect_tissue(slide, "auto?pen=false")
    assert not kept.is_empty
    assert kept.pen is None
    assert kept.settings["pen"] is False


def test_bleeding_within_tissue_is_not_taken_for_red_pen(slide_of: SlideOf) -> None:
    shape = (300, 300)
    truth = disk(shape, 150, 150, 120)
    rgb = paint(truth)
    rgb[disk(shape, 150, 150, 30)] = (200, 60, 75)
    found = detect_tissue(slide_of(rgb))
    assert found.mask[150, 150]
    assert found.pen_mm2 == 0


def test_red_pen_around_red_tissue_leaves_the_tissue(slide_of: SlideOf) -> None:
    """Strong eosin is nearly as red as the ink, and grey frames say nothing of tissue."""
    shape = (600, 600)
    inside = disk(shape, 300, 300, 180)
    ring = disk(shape, 300, 300, 210) & ~inside
    rgb = glass(shape)
    rgb[:30] = rgb[-30:] = 60
    eosin = np.random.default_rng(0).normal((222, 140, 169), 4, (*shape, 3))
    rgb[inside] = np.clip(eosin, 0, 255).astype(np.uint8)[inside]
    rgb[ring] = (200, 28, 48)
    found = detect_tissue(slide_of(rgb))
    assert found.pen is not None
    assert (found.pen & ring).sum() >= 0.95 * ring.sum()
    assert (found.mask & disk(shape, 300, 300, 165)).sum() >= 0.98 * disk(
        shape, 300, 300, 165
    ).sum()


@pytest.mark.parametrize("ink", INKS)
def test_a_slide_of_pure_pen_is_empty(slide_of: SlideOf, ink: str) -> None:
    rgb = glass((200, 300))
    rgb[40:160, 50:250] = INKS[ink]
    rgb = np.asarray(Image.fromarray(rgb).resize((150, 100), Image.Resampling.BILINEAR))
    assert detect_tissue(slide_of(rgb)).is_empty


def bad_pictures() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    line = glass((200, 200))
    line[:, 100:104] = 40
    frame = glass((200, 200))
    frame[:20] = frame[-20:] = 5
    shadow = glass((200, 200))
    shadow[:, :100] = 225
    return {
        "glass": glass((200, 200)),
        "white": np.full((200, 200, 3), 255, np.uint8),
        "black": np.zeros((200, 200, 3), np.uint8),
        "one grey": np.full((200, 200, 3), 128, np.uint8),
        "noisy glass": np.clip(noise.normal(238, 4, (200, 200, 3)), 0, 255).astype(np.uint8),
        "coverslip edge": line,
        "dark frame": frame,
        "shadow": shadow,
        "one pixel": np.full((1, 1, 3), 243, np.uint8),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_a_slide_without_tissue_is_empty(slide_of: SlideOf, name: str) -> None:
    assert detect_tissue(slide_of(bad_pictures()[name])).is_empty


def test_a_field_full_of_tissue_is_full(slide_of: SlideOf) -> None:
    assert detect_tissue(slide_of(paint(np.ones((120, 120), bool)))).mask.all()


def test_one_pixel_of_tissue_is_a_speck(slide_of: SlideOf) -> None:
    rgb = glass((100, 100))
    rgb[50, 50] = (150, 60, 140)
    assert detect_tissue(slide_of(rgb)).is_empty


def test_tissue_at_the_border_reaches_the_border(slide_of: SlideOf) -> None:
    truth = np.zeros((150, 150), bool)
    truth[:, :60] = True
    found = detect_tissue(slide_of(paint(truth)))
    assert found.mask[:, 0].all()
    assert found.mask[[0, -1], :50].all()


def test_nearly_empty_and_nearly_full_slides(slide_of: SlideOf) -> None:
    small = disk((800, 800), 400, 400, 12)
    assert iou(detect_tissue(slide_of(paint(small), name="s")).mask, small) > 0.8
    large = ~disk((400, 400), 200, 200, 25)
    assert iou(detect_tissue(slide_of(paint(large), name="l")).mask, large) > 0.98


@pytest.mark.parametrize("stain", [(200, 170, 130), (225, 225, 238), (236, 222, 230)])
def test_brown_pale_blue_and_faint_tissue_is_found(
    slide_of: SlideOf, stain: tuple[int, int, int]
) -> None:
    truth = disk((200, 200), 100, 100, 60)
    rgb = glass((200, 200))
    rgb[truth] = stain
    assert iou(detect_tissue(slide_of(rgb)).mask, truth) > 0.9


def fat(shape: tuple[int, int]) -> np.ndarray:
    """Pale membranes, one pixel wide, around cells of 80 µm."""
    rgb = glass(shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    rgb[(rows % 10 == 0) | (columns % 10 == 0)] = (238, 224, 232)
    return rgb


def test_fat_beside_stained_tissue_is_tissue(slide_of: SlideOf) -> None:
    shape = (200, 300)
    rgb = fat(shape)
    rgb[:, 200:] = GLASS
    solid = np.zeros(shape, bool)
    solid[:, :80] = True
    rgb[solid] = paint(solid)[solid]
    found = detect_tissue(slide_of(rgb)).mask
    assert found[10:-10, 85:190].mean() > 0.95
    assert found[:, 210:].mean() < 0.01
    without = detect_tissue(slide_of(rgb), strand_um=0).mask
    assert without[10:-10, 85:190].mean() < 0.5


def test_pale_strands_without_stained_tissue_stay_glass(slide_of: SlideOf) -> None:
    found = detect_tissue(slide_of(fat((200, 200))), strand_um=48, min_tissue_mm2=0.01)
    assert found.is_empty


def test_tinted_glass_is_glass(slide_of: SlideOf) -> None:
    truth = disk((300, 300), 150, 150, 80)
    tinted = paint(truth).astype(float) * np.array([1.0, 0.97, 0.88])
    found = detect_tissue(slide_of(np.rint(tinted).astype(np.uint8)))
    assert iou(found.mask, truth) > 0.95


def test_the_background_is_the_glass_and_not_the_white_of_missing_areas() -> None:
    rgb = np.full((100, 100, 3), 255, np.uint8)
    rgb[:, :60] = GLASS
    assert estimate_background(rgb) == GLASS


@pytest.mark.parametrize("change", ["double", "half", "darker", "brighter", "jpeg"])
def test_the_same_tissue_within_two_percent_of_area(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, change: str
) -> None:
    rgb = np.kron(section[0], np.ones((2, 2, 1), np.uint8))  # 4 µm per pixel
    settings = {}
    changed = rgb
    if change in ("double", "half"):
        settings = {"mpp": 4.0 if change == "double" else 16.0}
    elif change == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=40)
        changed = np.asarray(Image.open(buffer))
    else:
        factor = 0.9 if change == "darker" else 1.1
        changed = np.clip(rgb * factor, 0, 255).astype(np.uint8)
    before = detect_tissue(slide_of(rgb, 4.0, "before")).area_mm2
    after = detect_tissue(slide_of(changed, 4.0, "after"), **settings).area_mm2
    assert after == pytest.approx(before, rel=0.02)


def test_pixels_that_are_not_square(section: tuple[np.ndarray, np.ndarray]) -> None:
    rgb, truth = section
    found = detect_tissue_rgb(rgb[:, ::2], (16.0, 8.0)).tissue
    assert iou(found, truth[:, ::2]) > 0.95


def test_fluorescence_is_refused_with_the_way_around(slide_of: SlideOf) -> None:
    rgb = np.zeros((200, 200, 3), np.uint8)
    rgb[80:120, 80:120] = (20, 90, 220)
    slide = slide_of(rgb)
    with pytest.raises(TissueError, match=r"a\.png.*fluorescence.*--tissue none"):
        detect_tissue(slide)
    assert detect_tissue(slide, "none").area_mm2 == pytest.approx(200 * 200 * 64e-6)


def test_none_is_the_whole_slide_exactly(slide_of: SlideOf) -> None:
    found = detect_tissue(slide_of(glass((30, 50))), "none")
    assert [p.bounds for p in found.polygons()] == [(0, 0, 50, 30)]
    assert found.coverage(np.array([[0, 0, 50, 30], [10, 5, 20, 25]], float)).tolist() == [1, 1]


def test_a_slide_without_mpp_is_refused(tmp_path: Path) -> None:
    Image.fromarray(glass((20, 20))).save(tmp_path / "a.png")
    with wp.open_slide(tmp_path / "a.png") as slide, pytest.raises(MissingMppError):
        detect_tissue(slide)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("ostu", "otsu"),
        ("auto?min_tisue=1", "min_tissue_mm2"),
        ("auto?pen=2", "true or false"),
        ("auto?mpp=true", "a number"),
        ("auto?mpp", "key=value"),
        ("auto?mpp=-1", "out of range"),
        ("auto?close_um=nan", "out of range"),
        ("none?mpp=4", "no settings"),
    ],
)
def test_a_wrong_method_or_setting_is_named(method: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tissue_settings(method)


def test_settings_hold_what_decides_the_mask() -> None:
    assert tissue_settings("none") == {"method": "none", "version": 1}
    given = tissue_settings("auto?min_tissue_mm2=0.5", mpp=4)
    assert given["min_tissue_mm2"] == 0.5
    assert given["mpp"] == 4.0
    assert given != tissue_settings("auto")
    assert set(tissue_settings("auto")) == {
        "method", "version", "mpp", "smooth_um", "close_um", "strand_um", "min_tissue_mm2",
        "min_hole_mm2", "min_pen_mm2", "pen_width_um", "pen_halo_um", "pen",
    }  # fmt: skip


# --- real pictures ------------------------------------------------------------------------------


def test_a_real_section_against_its_mask(real_data: Path) -> None:
    truth = np.asarray(Image.open(real_data / "slides/P2_0039_sec1_tissue_ds16.png")) > 0
    with wp.open_slide(real_data / "slides/P2_0039_sec1.svs") as slide:
        found = detect_tissue(slide)
    # The plain baseline (saturation, Otsu, closing, holes) has 0.912 on it.
    assert iou(found.mask, truth) >= 0.92


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("hqc_1k_pen_red", 8.0),
        ("hqc_1k_pen_red", 20.0),
        ("hqc_pen_markings_he_pen_green", 8.0),
        ("hqc_pen_markings_he_pen_green", 20.0),
    ],
)
def test_real_pen_is_left_out_and_tissue_is_not(real_data: Path, name: str, mpp: float) -> None:
    picture = real_data / f"artefacts/{name}.png"
    with wp.open_slide(picture, mpp=mpp) as slide:
        found = detect_tissue(slide)
        without = detect_tissue(slide, pen=False)
    truth = Image.open(real_data / f"artefacts/{name}_mask.png").convert("1")
    pen = np.asarray(truth.resize(found.mask.shape[::-1]))
    assert (found.pen & pen).sum() >= 0.85 * pen.sum()
    assert (found.mask & pen).sum() <= 0.15 * pen.sum()
    # Tissue: what is far from any pen, also from the pale strokes that the mask leaves out.
    far = without.mask & ~disk_around(pen, round(800 / mpp))
    assert (far & ~found.mask).sum() <= 0.02 * far.sum()


def disk_around(mask: np.ndarray, radius: int) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~mask) <= radius


@pytest.mark.parametrize(
    "name", ["no-tissue", "no-tissue-green-pen", "no-tissue-line", "almost-white-1"]
)
@pytest.mark.parametrize("mpp", [0.5, 8.0])
def test_real_glass_and_pen_are_empty(real_data: Path, name: str, mpp: float) -> None:
    with wp.open_slide(real_data / f"artefacts/{name}.png", mpp=mpp) as slide:
        assert detect_tissue(slide).is_empty
