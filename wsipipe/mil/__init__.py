"""Multiple-instance learning on feature files: aggregators, audited evaluation, prediction.

    model = wp.mil.create_aggregator("abmil", in_dim=1024, n_classes=2)
    out = model(features, mask)          # features (B, N, D), mask (B, N): .logits, .attention

Importing this package is cheap; torch and scikit-learn load with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Aggregator": "wsipipe.mil.base",
    "MILOutput": "wsipipe.mil.base",
    "create_aggregator": "wsipipe.mil.registry",
    "list_aggregators": "wsipipe.mil.registry",
    "import_checkpoint": "wsipipe.mil.importers",
    "Bag": "wsipipe.mil.bags",
    "find_bags": "wsipipe.mil.bags",
    "read_bag": "wsipipe.mil.bags",
    "train": "wsipipe.mil.crossval",
    "predict": "wsipipe.mil.prediction",
    "load_ensemble": "wsipipe.mil.prediction",
    "selftest": "wsipipe.mil.assumption",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:
    from wsipipe.mil.assumption import selftest as selftest
    from wsipipe.mil.bags import Bag as Bag
    from wsipipe.mil.bags import find_bags as find_bags
    from wsipipe.mil.bags import read_bag as read_bag
    from wsipipe.mil.base import Aggregator as Aggregator
    from wsipipe.mil.base import MILOutput as MILOutput
    from wsipipe.mil.crossval import train as train
    from wsipipe.mil.importers import import_checkpoint as import_checkpoint
    from wsipipe.mil.prediction import load_ensemble as load_ensemble
    from wsipipe.mil.prediction import predict as predict
    from wsipipe.mil.registry import create_aggregator as create_aggregator
    from wsipipe.mil.registry import list_aggregators as list_aggregators


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wsipipe.mil' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
