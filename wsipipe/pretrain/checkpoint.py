"""Checkpoints: whole or absent, never unpickled, refused by another recipe."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from wsipipe.errors import ConfigError, CorruptFileError, OutputError
from wsipipe.pretrain.recipe import Recipe

__all__ = ["differences", "latest", "load_checkpoint", "save_checkpoint"]

_KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `step-XXXXXXXX.pt` under its final name only when it is whole; keep the last two.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    path = folder / f"step-{step:08d}.pt"
    temporary = folder / f".{path.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(path, f"cannot be written ({error}).", "Free some space.") from error
    for stale in folder.glob(".step-*.pt.*"):
        stale.unlink(missing_ok=True)
    for old in sorted(folder.glob("step-*.pt"))[:-_KEEP]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return max(folder.glob("step-*.pt"), default=None)


def load_checkpoint(path: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint of this very recipe.

    Raises:
        ConfigError: It was made by another recipe or with other settings; they are named.
        CorruptFileError: It cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        stored = json.loads(state["recipe"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise CorruptFileError(
            path, f"is not a whole checkpoint ({error}).", "Remove it; the one before is used."
        ) from error
    found = differences(stored, json.loads(json.dumps(recipe.identity())))
    if found:
        listed = "; ".join(f"{k}: {a!r} there, {b!r} asked" for k, (a, b) in found.items())
        raise ConfigError(
            f"{path} was made by other settings ({listed}).",
            "Give the former settings, or another --out.",
        )
    return state


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) wherever two nested documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in sorted({*old, *new}):
            found.update(differences(old.get(key), new.get(key), f"{prefix}{key}."))
        return found
    return {} if old == new else {prefix.rstrip("."): (old, new)}
