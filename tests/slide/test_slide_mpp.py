"""The chain of sources for µm per pixel: order, sanity window, conflicts, exactness."""

from fractions import Fraction

import pytest
from slidekit import write_pyramid

import wsipipe as wp
from wsipipe.errors import ConfigError, MissingMppError
from wsipipe.slide.mpp import check_user_mpp, claim, objective_claim, parse_mpp, resolve_mpp


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.4990", Fraction(499, 1000)),
        ("0,499", Fraction(499, 1000)),
        (" 0.25 ", Fraction(1, 4)),
        ("28.969000000000001", Fraction(28969, 1000)),
        ("2.5e-1", Fraction(1, 4)),
        ("", None),
        ("about 0.5", None),
        ("nan", None),
        ("1e999", None),
        (None, None),
    ],
)
def test_decimal_text_means_the_rational_it_writes(text, value):
    assert parse_mpp(text) == value


def test_the_user_wins_over_everything():
    result = resolve_mpp([claim("aperio.MPP", "0.5")], user=0.2527)
    assert result.xy == (Fraction(2527, 10000),) * 2
    assert result.source == "user"
    assert any("aperio.MPP says 0.5" in note for note in result.notes)


@pytest.mark.parametrize("mpp", [0, -0.5, 0.049, 20.1, 499, "x", float("nan")])
def test_an_absurd_mpp_from_the_user_is_a_mistake_of_the_command(mpp):
    with pytest.raises(ConfigError):
        check_user_mpp(mpp)


@pytest.mark.parametrize("text", ["0", "-0.5", "0.0499", "20.01", "352.8"])
def test_an_absurd_value_counts_as_absent_and_is_recorded(text):
    result = resolve_mpp([claim("tiff.XResolution", text)])
    assert result.xy is None
    assert result.source == "none"
    assert "tiff.XResolution" in result.notes[0]


def test_a_later_source_serves_where_the_first_is_absurd():
    result = resolve_mpp([claim("reader", "352.8"), claim("aperio.MPP", "0.5")])
    assert result.source == "aperio.MPP"
    assert len(result.notes) == 1


def test_the_objective_is_a_guess_and_says_so():
    guess = objective_claim("objective power", "40")
    result = resolve_mpp([guess])
    assert result.xy == (Fraction(1, 4),) * 2
    assert "guess" in result.notes[0]


@pytest.mark.parametrize(("second", "noted"), [("0.549", False), ("0.56", True)])
def test_sources_that_disagree_by_more_than_a_tenth_are_reported(second, noted):
    notes = resolve_mpp([claim("a", "0.5"), claim("b", second)]).notes
    assert any("b says" in note for note in notes) is noted


def test_both_axes_are_kept_where_pixels_are_not_square():
    result = resolve_mpp([claim("a", "0.499", "0.998")])
    assert result.xy == (Fraction(499, 1000), Fraction(998, 1000))
    assert "not square" in result.notes[0]


def test_a_slide_without_mpp_opens_and_says_what_to_do(tmp_path, image):
    path = write_pyramid(tmp_path / "none.svs", [image], compression="deflate", facts={})
    with wp.open_slide(path) as slide:
        assert slide.mpp_source == "none"
        with pytest.raises(MissingMppError, match="--slide-mpp") as caught:
            slide.mpp  # noqa: B018
    assert str(path) in str(caught.value)
    with wp.open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"resolution": (20000, 20000), "resolutionunit": 3}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": 2}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": 2}, None),
        ({"resolution": (20000, 20000), "resolutionunit": 1}, None),
    ],
)
def test_resolution_tags_count_only_where_they_can_be_true(tmp_path, image, options, mpp):
    path = write_pyramid(tmp_path / "g.tif", [image], compression="deflate", **options)
    with wp.open_slide(path) as slide:
        if mpp is None:
            with pytest.raises(MissingMppError):
                slide.mpp  # noqa: B018
        else:
            assert slide.mpp == mpp
            assert slide.mpp_source == "tiff.XResolution"
