"""Down-samples are exact where an integer explains the sizes, whatever way they were rounded."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.slide.levels import exact_levels, round_half_up


def test_rounded_dicom_levels_have_whole_ratios():
    # Sizes of a real series (wsidicomizer): 2220/278 is 7.986, and means 8.
    sizes = [(2220, 2967), (1110, 1484), (555, 742), (278, 371), (139, 186)]
    ratios = [level.downsample for level in exact_levels(sizes)]
    assert ratios == [(Fraction(n), Fraction(n)) for n in (1, 2, 4, 8, 16)]


def test_other_ratios_stand_one_an_axis():
    level = exact_levels([(1000, 900), (300, 280)])[1]
    assert level.downsample == (Fraction(10, 3), Fraction(45, 14))


@given(
    st.integers(600, 200_000), st.integers(600, 200_000), st.integers(1, 64),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_any_rounding_of_a_whole_ratio_is_undone(width, height, ratio, up_x, up_y):
    size = tuple(
        -(-full // ratio) if up else full // ratio for full, up in ((width, up_x), (height, up_y))
    )
    # A ratio so large that few pixels are left is explained by its neighbours as well.
    if round_half_up(Fraction(width, size[0])) == ratio:
        assert exact_levels([(width, height), size])[1].downsample == (ratio, ratio)


@pytest.mark.parametrize(("value", "whole"), [("1/2", 1), ("3/2", 2), ("5/2", 3), ("-1/2", 0)])
def test_halves_go_up(value, whole):
    assert round_half_up(Fraction(value)) == whole
