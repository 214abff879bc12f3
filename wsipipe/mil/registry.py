"""The names of aggregators. A new one is a file and a line here, or an entry point elsewhere."""

from __future__ import annotations

import difflib
import importlib
import inspect
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from wsipipe.errors import ConfigError

if TYPE_CHECKING:
    from wsipipe.mil.base import Aggregator

__all__ = ["AGGREGATORS", "aggregator_class", "create_aggregator", "list_aggregators"]

# name -> (module:class, fixed arguments)
AGGREGATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean": ("wsipipe.mil.aggregators.pooling:PooledInstances", {"pooling": "mean"}),
    "max": ("wsipipe.mil.aggregators.pooling:PooledInstances", {"pooling": "max"}),
    "lse": ("wsipipe.mil.aggregators.pooling:PooledInstances", {"pooling": "lse"}),
    "abmil": ("wsipipe.mil.aggregators.abmil:ABMIL", {"gated": True}),
    "abmil-plain": ("wsipipe.mil.aggregators.abmil:ABMIL", {"gated": False}),
    "clam-sb": ("wsipipe.mil.aggregators.clam:CLAM", {"multi_branch": False}),
    "clam-mb": ("wsipipe.mil.aggregators.clam:CLAM", {"multi_branch": True}),
    "dsmil": ("wsipipe.mil.aggregators.dsmil:DSMIL", {}),
    "dtfd": ("wsipipe.mil.aggregators.dtfd:DTFD", {"distill": "afs"}),
    "dtfd-maxs": ("wsipipe.mil.aggregators.dtfd:DTFD", {"distill": "maxs"}),
    "dtfd-maxmins": ("wsipipe.mil.aggregators.dtfd:DTFD", {"distill": "maxmins"}),
    "acmil": ("wsipipe.mil.aggregators.acmil:ACMIL", {}),
    "transmil": ("wsipipe.mil.aggregators.transmil:TransMIL", {"varlen": False}),
    "transmil-varlen": ("wsipipe.mil.aggregators.transmil:TransMIL", {"varlen": True}),
    "transformer": ("wsipipe.mil.aggregators.transformer:Transformer", {}),
    "ilra": ("wsipipe.mil.aggregators.ilra:ILRA", {}),
    "rrt": ("wsipipe.mil.aggregators.rrt:RRT", {}),
    "wikg": ("wsipipe.mil.aggregators.wikg:WiKG", {}),
    "s4": ("wsipipe.mil.aggregators.s4:S4MIL", {}),
    "linear": ("wsipipe.mil.aggregators.vectors:LinearProbe", {}),
    "knn": ("wsipipe.mil.aggregators.vectors:KNearest", {}),
    "coxnet": ("wsipipe.mil.aggregators.vectors:CoxNet", {}),
    "panther": ("wsipipe.mil.aggregators.panther:Panther", {}),
}

ENTRY_POINT_GROUP = "wsipipe.aggregators"


def list_aggregators() -> list[str]:
    """All names, ours first, then those of installed plugins."""
    plugins = [e.name for e in entry_points(group=ENTRY_POINT_GROUP) if e.name not in AGGREGATORS]
    return [*AGGREGATORS, *sorted(plugins)]


def aggregator_class(name: str) -> tuple[type[Aggregator], dict[str, Any]]:
    """The class behind a name, and the arguments the name fixes.

    Raises:
        ConfigError: Nobody has registered this name.
    """
    if name in AGGREGATORS:
        target, fixed = AGGREGATORS[name]
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute), dict(fixed)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.load(), {}
    near = difflib.get_close_matches(name, list_aggregators(), n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(list_aggregators())}."
    raise ConfigError(f"No aggregator is called '{name}'.", hint)


def create_aggregator(name: str, *, in_dim: int, n_classes: int = 2, **settings: Any) -> Aggregator:
    """Make an aggregator with fresh weights.

    Args:
        name: One of `list_aggregators()`.
        in_dim: Dimension of the features.
        n_classes: Columns of the logits.
        **settings: What the aggregator's class takes (`hidden`, `dropout`, ...).

    Returns:
        A module: `model(features (B, N, D), mask (B, N)) -> MILOutput`.

    Raises:
        ConfigError: Unknown name or setting.
    """
    cls, fixed = aggregator_class(name)
    allowed = inspect.signature(cls.__init__).parameters
    for key in settings:
        if key not in allowed:
            known = [k for k in allowed if k not in ("self", "in_dim", "n_classes", *fixed)]
            raise ConfigError(
                f"Aggregator '{name}' has no setting '{key}'.", f"It has: {', '.join(known)}."
            )
    return cls(in_dim=in_dim, n_classes=n_classes, **{**fixed, **settings})
