"""Equal settings have equal identities, different ones are told apart by field."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsipipe.store import canonical_json, identity_differences, identity_hash

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_the_text_is_sorted_and_without_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"µ": None}}) == '{"a":{"µ":null},"b":[1,2.5]}'


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (0.0, 0),
        (1.0, np.float64(1)),
        (0.1, np.float64(0.1)),
        ((1, 2), [1, 2]),
        (np.arange(3), [0, 1, 2]),
        (Fraction(4, 2), 2),
        ({"b", "a"}, ["a", "b"]),
        (np.int64(3), 3),
        (np.bool_(True), True),
    ],
)
def test_the_way_a_value_is_held_does_not_matter(one: object, same: object) -> None:
    assert canonical_json({"x": one}) == canonical_json({"x": same})


def test_true_is_not_one() -> None:
    assert canonical_json([True]) != canonical_json([1])


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_order_does_not_matter_and_json_reads_it_back(value: dict) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(turned)
    assert identity_differences(canonical_json(value), value) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("/x"), object(), b"x"])
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"identity\.x"):
        canonical_json({"x": value})


def test_the_hash_is_that_of_the_text() -> None:
    expected = hashlib.sha256(b'{"a":1}').hexdigest()
    assert identity_hash({"a": 1}) == identity_hash('{"a":1}') == expected


def test_differences_name_nested_fields_and_missing_ones() -> None:
    stored = {"mpp": 0.5, "tissue": {"method": "auto", "version": 1}, "gone": 1}
    wanted = {"mpp": 0.25, "tissue": {"method": "auto", "version": 2}, "new": "x"}
    assert identity_differences(stored, wanted) == {
        "mpp": (0.5, 0.25),
        "tissue.version": (1, 2),
        "gone": (1, None),
        "new": (None, "x"),
    }
