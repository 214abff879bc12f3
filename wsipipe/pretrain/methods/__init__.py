"""The methods by name. Each is imported when it is used."""

from __future__ import annotations

import importlib

from wsipipe.pretrain.methods.base import At, Method
from wsipipe.pretrain.recipe import Recipe

__all__ = ["METHODS", "At", "Method", "create_method"]

METHODS = {
    "simclr": ("contrastive", "SimClr"),
    "moco-v2": ("contrastive", "MocoV2"),
    "moco-v3": ("contrastive", "MocoV3"),
    "byol": ("contrastive", "Byol"),
    "dino": ("distill", "Dino"),
    "mae": ("masked", "Mae"),
    "simmim": ("masked", "SimMim"),
    "beit": ("masked", "Beit"),
    "pathoduet": ("pathoduet", "PathoDuet"),
    "multitask": ("supervised", "MultiTask"),
    "fixmatch": ("supervised", "FixMatch"),
    "clip": ("clip", "Clip"),
    "finetune": ("finetune", "Finetune"),
}


def create_method(recipe: Recipe, classes: dict[str, int] | None = None) -> Method:
    """Build the recipe's method.

    Args:
        recipe: Resolved recipe.
        classes: Task -> number of classes, for methods that learn from labels.
    """
    module, name = METHODS[recipe.method]
    cls = getattr(importlib.import_module(f"wsipipe.pretrain.methods.{module}"), name)
    method: Method = cls(recipe, classes)
    return method
