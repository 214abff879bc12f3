"""Tile encoders: cards, the grammar of names, weights, transforms; one file a family in `zoo/`.

Importing this package, listing and resolving load no torch; making an encoder does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wsipipe.encoders.card import EncoderCard, check_card, is_off_card
from wsipipe.encoders.registry import list_encoders, resolve

if TYPE_CHECKING:
    from wsipipe.encoders.check import check_encoder as check_encoder
    from wsipipe.encoders.create import create_encoder as create_encoder
    from wsipipe.encoders.encoder import Encoder as Encoder
    from wsipipe.encoders.encoder import PendingFeatures as PendingFeatures
    from wsipipe.encoders.sourcing import identify as identify

# name -> module; all but `identify` load torch.
_LAZY = {
    "Encoder": "encoder",
    "PendingFeatures": "encoder",
    "check_encoder": "check",
    "create_encoder": "create",
    "identify": "sourcing",
}

__all__ = [
    "Encoder",
    "EncoderCard",
    "PendingFeatures",
    "check_card",
    "check_encoder",
    "create_encoder",
    "identify",
    "is_off_card",
    "list_encoders",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'wsipipe.encoders' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wsipipe.encoders.{_LAZY[name]}"), name)
