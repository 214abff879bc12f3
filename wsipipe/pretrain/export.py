"""The way back: a folder in timm's format that `wsipipe extract --encoder FOLDER` takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from wsipipe import __version__
from wsipipe.pretrain.backbone import POOLING, Backbone, timm_arguments
from wsipipe.pretrain.recipe import Recipe

__all__ = ["encoder_config", "export_encoder"]


def encoder_config(backbone: Backbone, recipe: Recipe, mpp: float | None) -> dict[str, Any]:
    """config.json: architecture, arguments, preprocessing, and what timm's format has no word for.

    Written from nothing: timm's own settings of the architecture would carry the tag, address and
    licence of its ImageNet weights.
    """
    px = recipe.views.global_.px
    # "No normalisation" has no word in timm's format; these numbers mean the same.
    mean, std = recipe.views.mean or (0.0, 0.0, 0.0), recipe.views.std or (1.0, 1.0, 1.0)
    pooling = POOLING[backbone.pool] if backbone.is_vit else "gap"
    return {
        "architecture": recipe.arch.timm,
        "num_classes": 0,
        "num_features": backbone.dim,
        "global_pool": timm_arguments(recipe.arch).get("global_pool", "avg"),
        "model_args": timm_arguments(recipe.arch),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, px, px],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
        },
        "wsipipe": {
            "dim": backbone.out_dim,
            "tile_px": px,
            "mpp": mpp,
            "pooling": pooling,
            "mean": list(mean),
            "std": list(std),
        },
    }


def export_encoder(
    backbone: Backbone,
    recipe: Recipe,
    folder: Path,
    history: dict[str, Any],
    head: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write config.json, model.safetensors and manifest.json; the folder appears whole.

    Args:
        backbone: The network to keep.
        recipe: How it was trained.
        folder: Where; replaced if it exists.
        history: For the manifest: steps, tiles and slides seen, initial weights and their licence.
        head: Classifier to write as head.safetensors.
    """
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {k: v.detach().cpu().float().contiguous() for k, v in _state(backbone).items()}
    save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
    if head:
        kept = {k: v.detach().cpu().float().contiguous() for k, v in head.items()}
        save_file(kept, temporary / "head.safetensors")
    digest = hashlib.sha256((temporary / "model.safetensors").read_bytes()).hexdigest()
    config = encoder_config(backbone, recipe, _mpp(recipe))
    config["wsipipe"]["name"] = f"{recipe.name}-{recipe.scale}-{digest[:8]}"
    config["wsipipe"]["licence"] = history.get("initial_licence") or "of whoever trained it"
    manifest = {
        "recipe": recipe.to_dict(),
        "recipe_sha256": recipe.digest(),
        "weights_sha256": digest,
        "wsipipe_version": __version__,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        **history,
    }
    for name, document in (("config.json", config), ("manifest.json", manifest)):
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (temporary / name).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    return folder


def _state(backbone: Backbone) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = backbone.net.state_dict()
    return state


def _mpp(recipe: Recipe) -> float | None:
    """The resolution the encoder is meant for: the recipe's, or the heaviest of a mixture."""
    mpp = recipe.sampler.mpp
    if isinstance(mpp, dict):
        return float(max(mpp, key=lambda m: mpp[m]))
    if isinstance(mpp, tuple):
        return float((mpp[0] * mpp[1]) ** 0.5)
    return float(mpp)
