"""Other people's trained checkpoints as our aggregators: CLAM, DTFD, DSMIL, TransMIL and others.

Only tensors are read (`weights_only=True`, safetensors): a pickle that holds anything else is
refused. The kind is found by the names of the tensors; dimensions come from their shapes.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.base import Aggregator
from wsipipe.mil.importer_kinds import KINDS, State
from wsipipe.mil.registry import create_aggregator

__all__ = ["import_checkpoint", "import_state"]


def import_checkpoint(path: str | Path, **settings: Any) -> Aggregator:
    """Load a peer's checkpoint file (.pt, .pth, .safetensors).

    Args:
        path: The file.
        **settings: What the file does not say (`k_sample`, `subtyping`, `distill`, `groups`, ...).

    Returns:
        The aggregator in eval mode, float32.

    Raises:
        CorruptFileError: The file holds more than tensors, or cannot be read.
        ConfigError: Nobody knows this layout.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return import_state(load_file(path), source=str(path), **settings)
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CorruptFileError(
            path,
            f"is not a checkpoint of tensors only ({type(error).__name__}).",
            "Save its state_dict again with torch.save(model.state_dict(), ...).",
        ) from error
    return import_state(_flatten(raw), source=str(path), **settings)


def import_state(state: State, *, source: str = "state", **settings: Any) -> Aggregator:
    """The same from tensors by the peer's names. See `import_checkpoint`."""
    state = {k.replace(".module.", ".").removeprefix("module."): v for k, v in state.items()}
    for kind in KINDS:
        if any(re.search(kind.mark, key) for key in state):
            break
    else:
        raise ConfigError(
            f"{source}: the layout of this checkpoint is not known.",
            f"Known are: {', '.join(k.name for k in KINDS)}.",
        )
    sized = kind.settings(state)
    model = create_aggregator(
        sized.pop("aggregator") if "aggregator" not in settings else settings.pop("aggregator"),
        **{**{k: v for k, v in sized.items() if k != "aggregator"}, **settings},
    )
    renamed = {_rename(k, kind.renames): v for k, v in state.items() if not re.search(kind.drop, k)}
    own = model.state_dict()
    ready = _fit_shapes(renamed, own, source)
    model.load_state_dict(ready)
    return model.eval()


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in renames:
        key = re.sub(pattern, new, key)
    return key


def _fit_shapes(renamed: State, own: State, source: str) -> dict[str, Tensor]:
    ready = dict(renamed)
    # CLAM-MB keeps one Linear(hidden, 1) a class; here they are the rows of one layer.
    for part in ("weight", "bias"):
        rows = sorted(
            (k for k in ready if re.fullmatch(rf"head\.\d+\.{part}", k)),
            key=lambda k: int(k.split(".")[1]),
        )
        if rows:
            ready[f"head.{part}"] = torch.cat([ready.pop(k) for k in rows])
    missing, unknown = sorted(set(own) - set(ready)), sorted(set(ready) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"{source}: tensors do not fit (missing: {missing or '-'}; unknown: {unknown or '-'})."
        )
    for key, value in own.items():
        if ready[key].numel() != value.numel():
            raise ConfigError(
                f"{source}: {key} is {tuple(ready[key].shape)}, expected {tuple(value.shape)}."
            )
        ready[key] = ready[key].reshape(value.shape).to(value.dtype)
    return ready


def _flatten(raw: Any) -> dict[str, Tensor]:
    """Nested dictionaries (DTFD, Lightning) as one, under the names that the kinds know."""
    if isinstance(raw, Mapping) and "state_dict" in raw:
        raw = raw["state_dict"]
    own = {"dim_reduction": "dimReduction", "att_classifier": "attCls"}
    flat: dict[str, Tensor] = {}
    for key, value in raw.items() if isinstance(raw, Mapping) else ():
        if isinstance(value, Mapping):
            flat.update({f"{own.get(key, key)}.{k}": v for k, v in value.items()})
        elif isinstance(value, Tensor):
            flat[str(key)] = value
    return flat
