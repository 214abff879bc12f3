"""Identity: a sha256 over what changes the numbers, and what differs between two of them.

Done is a property of the file: a result is taken for finished only if it carries the identity
that is asked for. The text that is hashed is canonical JSON, so that two machines agree on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np

__all__ = ["canonical_json", "identity_differences", "identity_hash"]


class _NoPlaceError(Exception):
    """A value that has no canonical JSON; the names that lead to it come on the way out."""

    def __init__(self, problem: str, kind: type[Exception]) -> None:
        super().__init__(problem)
        self.problem, self.kind, self.names = problem, kind, [""]

    def __str__(self) -> str:
        return f"identity{''.join(reversed(self.names))}: {self.problem}"


def _plain(value: Any) -> Any:
    """`value` made of dict, list, str, int, float, bool and None only.

    Called for every field of every slide: the common types come first, and names are only put
    together where something is wrong.
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        # 0 and 0.0 are one setting; which of the two was typed must not matter.
        if value.is_integer():
            return int(value)
        if not math.isfinite(value):
            raise _NoPlaceError(f"{value} has no place in an identity", ValueError)
        return value
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            try:
                found[str(key)] = _plain(item)
            except _NoPlaceError as error:
                error.names.append(f".{key}")
                raise
        return found
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain_of_rare(value)


def _plain_of_rare(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    if isinstance(value, set | frozenset):
        return sorted(_plain(list(value)), key=repr)
    for kind in (str, int, float):  # of classes derived from them
        if isinstance(value, kind):
            return _plain(kind(value))
    if isinstance(value, PurePath):
        problem = "a path is not part of an identity, its content's hash is"
    else:
        problem = f"{type(value).__name__} has no canonical JSON"
    raise _NoPlaceError(problem, TypeError)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and one text for equal numbers.

    Numpy scalars, tuples, sets, enums and Fractions are accepted; NaN, infinity and paths are not.

    >>> canonical_json({"b": 1.0, "a": (0.5, True)})
    '{"a":[0.5,true],"b":1}'
    """
    try:
        plain = _plain(value)
    except _NoPlaceError as error:
        raise error.kind(str(error)) from None
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def identity_hash(identity: Mapping[str, Any] | str) -> str:
    """Hex sha256 of an identity, given as a mapping or as its canonical JSON."""
    text = identity if isinstance(identity, str) else canonical_json(identity)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def identity_differences(
    stored: Mapping[str, Any] | str, wanted: Mapping[str, Any] | str
) -> dict[str, tuple[object, object]]:
    """The fields in which two identities differ.

    Returns:
        Field name (nested ones dotted: `tissue.min_hole_um2`) -> (stored, wanted); a field that
        one side lacks is None there. As `IdentityMismatchError` takes it.
    """

    def flat(value: Any, name: str = "") -> dict[str, object]:
        if isinstance(value, dict) and value:
            found: dict[str, object] = {}
            for key, item in value.items():
                found.update(flat(item, f"{name}.{key}" if name else key))
            return found
        return {name: value}

    def fields(identity: Mapping[str, Any] | str) -> dict[str, object]:
        text = identity if isinstance(identity, str) else canonical_json(identity)
        return flat(json.loads(text))

    old, new = fields(stored), fields(wanted)
    names = [*old, *(name for name in new if name not in old)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}
