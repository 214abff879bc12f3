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


def _plain(value: Any, where: str) -> Any:
    """`value` made of dict, list, str, int, float, bool and None only."""
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no place in an identity")
        # 0 and 0.0 are one setting; which of the two was typed must not matter.
        return int(value) if value.is_integer() else value
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(_plain(list(value), where), key=repr)
    if isinstance(value, PurePath):
        raise TypeError(f"{where}: a path is not part of an identity, its content's hash is")
    raise TypeError(f"{where}: {type(value).__name__} has no canonical JSON")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and one text for equal numbers.

    Numpy scalars, tuples, sets, enums and Fractions are accepted; NaN, infinity and paths are not.

    >>> canonical_json({"b": 1.0, "a": (0.5, True)})
    '{"a":[0.5,true],"b":1}'
    """
    plain = _plain(value, "identity")
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
