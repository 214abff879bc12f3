"""Words of users (`--set KEY=VALUE`, recipes) as values, by the rules of YAML 1.2's core schema.

YAML 1.1, which the usual parsers speak, takes `no` and `on` for booleans and `1e-4` for text: a
folder called `no` and a learning rate would both be lost.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from wsipipe.errors import ConfigError

__all__ = ["read_setting", "read_word"]

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NAMED: dict[str, Any] = {
    **dict.fromkeys(("null", "Null", "NULL", "~")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    ".inf": float("inf"),
    "-.inf": -float("inf"),
    ".nan": float("nan"),
}


def read_word(text: str) -> Any:
    """A plain word: number, true, false, null, else the text itself."""
    if text in _NAMED:
        return _NAMED[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_setting(item: str, option: str = "--set") -> tuple[str, Any]:
    """`KEY=VALUE`; a value in brackets or braces is a YAML list or mapping of words.

    Args:
        item: What the user wrote.
        option: The flag it was given to, for messages.

    Raises:
        ConfigError: No "=", no key, or brackets that do not close.
    """
    key, sign, text = item.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{option} {item!r} is not KEY=VALUE.", f"Write {option} KEY=VALUE.")
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return key.strip(), read_word(text)
    try:
        return key.strip(), _value(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        problem = f"{option} {item!r}: the value is not YAML."
        raise ConfigError(problem, "Close what is opened, and quote what is no list.") from None


def _value(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {_value(key): _value(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return read_word(node.value) if node.style is None else node.value
