"""Quality of tiles: each measure moves with what it is named after, and with nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from tissue_pictures import paint

from wsipipe.tissue.quality import (
    MEASURES,
    QualityFilter,
    flag_outliers,
    slide_quality,
    tile_quality,
)


def tile(seed: int = 0, px: int = 224) -> np.ndarray:
    """A field of tissue with texture of about 2 µm at 0.5 µm per pixel."""
    rgb = paint(np.ones((px // 4, px // 4), bool), seed)
    return np.kron(rgb, np.ones((4, 4, 1), np.uint8))


def test_all_measures_for_all_tiles() -> None:
    found = tile_quality(np.stack([tile(s) for s in range(5)]), 0.5)
    assert set(found) == set(MEASURES)
    for values in found.values():
        assert values.shape == (5,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()


def test_no_tiles_are_fine() -> None:
    found = tile_quality(np.zeros((0, 224, 224, 3), np.uint8), 0.5)
    assert all(values.shape == (0,) for values in found.values())
    assert np.isnan(slide_quality(found)["focus"])


def test_focus_falls_with_blur_and_only_focus_does() -> None:
    sharp = tile()
    blurred = [cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (2, 4, 8)]
    found = tile_quality(np.stack([sharp, *blurred]), 0.5)
    assert (np.diff(found["focus"]) < 0).all()
    assert found["focus"][2] < 0.1 * found["focus"][0]
    np.testing.assert_allclose(found["saturation"], found["saturation"][0], rtol=0.05)


def test_focus_is_the_variance_of_the_laplacian_at_one_micrometre() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (60, 60)).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    p = np.pad(grey.astype(np.float64), 1, mode="reflect")
    laplacian = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]
    assert tile_quality(rgb[None], 1.0)["focus"][0] == pytest.approx(laplacian.var(), rel=1e-5)


def test_focus_does_not_depend_on_the_tiles_resolution() -> None:
    coarse = tile(px=112)
    fine = np.kron(coarse, np.ones((2, 2, 1), np.uint8))
    at_1, at_half = tile_quality(coarse[None], 1.0), tile_quality(fine[None], 0.5)
    assert at_half["focus"][0] == pytest.approx(at_1["focus"][0], rel=1e-5)


def test_focus_of_tiles_that_are_too_coarse_is_not_made_up() -> None:
    assert np.isnan(tile_quality(tile()[None], 2.0)["focus"]).all()
    assert np.isfinite(tile_quality(tile()[None], 1.01)["focus"]).all()


@pytest.mark.parametrize(
    ("measure", "colour"),
    [("pen", (30, 160, 130)), ("pen", (40, 90, 210)), ("blood", (205, 25, 50)),
     ("black", (30, 28, 30))],
)  # fmt: skip
def test_half_a_tile_of_ink_is_a_half(measure: str, colour: tuple[int, int, int]) -> None:
    rgb = tile()
    rgb[:, :112] = colour
    found = tile_quality(rgb[None], 0.5)
    for name in ("pen", "blood", "black"):
        assert found[name][0] == pytest.approx(0.5 if name == measure else 0, abs=0.08)


def test_filters_keep_what_passes_and_what_could_not_be_measured() -> None:
    quality = {
        "focus": np.array([10, 200, np.nan, 300], np.float32),
        "pen": np.array([0, 0.6, 0, 0.1], np.float32),
    }
    assert QualityFilter().keep(quality).all()
    keep = QualityFilter.of(min_focus=100, max_pen=0.5, min_saturation=None).keep(quality)
    assert keep.tolist() == [False, False, True, True]


def test_a_slide_is_the_median_of_focus_and_the_mean_of_the_rest() -> None:
    quality = {
        "focus": np.array([1, 2, 900, np.nan], np.float32),
        "pen": np.array([0, 0, 0, 1], np.float32),
    }
    assert slide_quality(quality) == {"focus": 2.0, "pen": 0.25}


def test_the_slide_unlike_the_others_is_flagged() -> None:
    rng = np.random.default_rng(0)
    slides = {f"s{i}": {"focus": rng.normal(1000, 50), "pen": 0.0} for i in range(20)}
    slides["blurred"] = {"focus": 50.0, "pen": 0.0}
    slides["marked"] = {"focus": 1000.0, "pen": 0.4}
    slides["unmeasured"] = {"focus": float("nan"), "pen": 0.0}
    assert flag_outliers(slides) == {"blurred": ["focus low"], "marked": ["pen high"]}


def test_few_slides_are_no_cohort() -> None:
    assert flag_outliers({f"s{i}": {"focus": v} for i, v in enumerate([1, 1, 1, 99])}) == {}
