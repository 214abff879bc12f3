"""Recipes: one YAML file each, built on another by `base:`, in three scales.

recipe = load_recipe("virchow2", scale="smoke", changes={"optim.steps": 50})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wsipipe.errors import ConfigError
from wsipipe.pretrain.method_options import OPTIONS
from wsipipe.pretrain.options import Arch, Monitor, Optim, Sampler, Views

__all__ = ["SCALES", "Recipe", "list_recipes", "load_recipe", "recipe_source"]

SCALES = ("smoke", "small", "paper")


class Recipe(BaseModel):
    """A resolved recipe: everything that decides what is trained.

    Attributes:
        name: Of the recipe.
        scale: smoke, small or paper.
        title: One line.
        paper: Where it is described ("arXiv:2408.00738").
        exact: What follows the paper or its released code.
        deviations: What does not, or what nobody has published.
        method: Key of `OPTIONS`.
        loss: Options of the method, validated.
        seed: Of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scale: Literal["smoke", "small", "paper"]
    title: str
    paper: str
    licence: str = ""
    exact: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    method: str
    arch: Arch
    sampler: Sampler = Sampler()  # type: ignore[call-arg]
    views: Views = Views()  # type: ignore[call-arg]
    loss: Any = {}
    optim: Optim = Optim()  # type: ignore[call-arg]
    monitor: Monitor = Monitor()  # type: ignore[call-arg]
    seed: int = 0

    @model_validator(mode="after")
    def _options(self) -> Recipe:
        if self.method not in OPTIONS:
            raise ValueError(f"unknown method {self.method!r}: one of {', '.join(OPTIONS)}")
        if isinstance(self.loss, Mapping):
            object.__setattr__(self, "loss", OPTIONS[self.method].model_validate(self.loss))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON-able values."""
        document = self.model_dump(mode="json", by_alias=True, exclude={"loss"})
        document["loss"] = self.loss.model_dump(mode="json")
        return document

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to go on: all that changes the losses."""
        skipped = {"title", "paper", "licence", "exact", "deviations", "monitor"}
        return {k: v for k, v in self.to_dict().items() if k not in skipped}

    def digest(self) -> str:
        """sha256 of the identity."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    folder = files("wsipipe.pretrain") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def recipe_source(name: str) -> dict[str, Any]:
    """One recipe file, its `base` merged in; `scale` still holds all scales.

    Args:
        name: A packaged recipe, or the path of a YAML file.

    Raises:
        ConfigError: No such recipe, or the file is not a mapping.
    """
    document = _read(name)
    base = document.pop("base", None)
    if base is None:
        return document
    parent = recipe_source(base)
    # What a base follows exactly is not what its child's paper says.
    for key in ("exact", "deviations", "title", "paper"):
        parent.pop(key, None)
    if document.get("method", parent.get("method")) != parent.get("method"):
        parent.pop("loss", None)  # another method's options
    return _merge(parent, document)


def load_recipe(
    name: str, scale: str = "paper", changes: Mapping[str, Any] | None = None
) -> Recipe:
    """Resolve a recipe.

    Args:
        name: A packaged recipe, or the path of a YAML file.
        scale: smoke, small or paper.
        changes: {"optim.steps": 100, ...}, applied last.

    Raises:
        ConfigError: Unknown recipe, scale or key, or a value out of range.
    """
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}.", f"Choose one of {', '.join(SCALES)}.")
    document = recipe_source(name)
    scales = document.pop("scale", {})
    unknown = set(scales) - set(SCALES)
    if unknown:
        raise ConfigError(f"recipe {name}: unknown scales {', '.join(sorted(unknown))}.")
    document = _merge(document, scales.get(scale) or {})
    for key, value in (changes or {}).items():
        document = _merge(document, _nest(key.split("."), value))
    try:
        return Recipe.model_validate({**document, "scale": scale})
    except ValidationError as error:
        raise ConfigError(
            f"recipe {name}: {_explain(error)}.",
            f"`wsipipe pretrain --describe {name}` shows all keys.",
        ) from None


def _read(name: str) -> dict[str, Any]:
    packaged = files("wsipipe.pretrain") / "recipes" / f"{name}.yaml"
    if name in list_recipes():
        text = packaged.read_text(encoding="utf-8")
    elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"there is no recipe {name!r}.", "`wsipipe pretrain --list` names them all."
        )
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {name} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"recipe {name} is not a mapping of keys.")
    return document


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section.

    A mapping with numbers as keys (a mixture of mpp) replaces the other one whole, and so do the
    arguments of an architecture when another architecture is named.
    """
    merged = dict(base)
    if "timm" in over:
        merged.pop("args", None)
    for key, value in over.items():
        former = merged.get(key)
        if isinstance(value, Mapping) and isinstance(former, dict) and not _numbers(value):
            merged[key] = _merge(former, value)
        else:
            merged[key] = value
    return merged


def _numbers(mapping: Mapping[Any, Any]) -> bool:
    return bool(mapping) and all(isinstance(k, int | float) for k in mapping)


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nest(keys[1:], value) if len(keys) > 1 else value}


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(p) for p in item["loc"] if p != "function-after")
        unknown = item["type"] == "extra_forbidden"
        parts.append(f"unknown key {where!r}" if unknown else f"{where}: {item['msg']}")
    return "; ".join(parts)
