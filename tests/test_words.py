"""Users' words as values: YAML 1.2's core schema."""

from __future__ import annotations

import pytest

from wsipipe.errors import ConfigError
from wsipipe.words import read_setting, read_word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("1e-4", 1e-4), (".5", 0.5), ("2.", 2.0), ("true", True),
        ("False", False), ("null", None), ("~", None), (".inf", float("inf")),
        # YAML 1.1, Python's float() or both would make something else of these.
        ("no", "no"), ("on", "on"), ("nan", "nan"), ("infinity", "infinity"), ("1_000", "1_000"),
        ("12:30", "12:30"), ("2024-01-02", "2024-01-02"), ("*.svs", "*.svs"), ("&x", "&x"),
        ("@x", "@x"), ("", ""),
    ],
)  # fmt: skip
def test_words(text: str, value: object) -> None:
    found = read_word(text)
    assert found == value
    assert type(found) is type(value)


def test_settings() -> None:
    assert read_setting("a.b=1e-3") == ("a.b", 1e-3)
    assert read_setting("slides=a=b") == ("slides", "a=b")
    assert read_setting("x=[1, no, '2']") == ("x", [1, "no", "2"])
    assert read_setting("x={0.5: 1, y: [~]}") == ("x", {0.5: 1, "y": [None]})
    assert read_setting("x='1'") == ("x", "1")


@pytest.mark.parametrize("item", ["x", "=1", "x=[a", "x={", "x=[*a]", "x=[&a [*a]]", "x=[1] 2"])
def test_what_is_no_setting(item: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        read_setting(item)
