"""Learning rate, weight decay, momentum over the steps; parameter groups with layer decay."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from wsipipe.pretrain.options import Optim

__all__ = ["build_optimizer", "cosine", "learning_rate", "set_schedule", "warmup_cosine"]


def cosine(step: int, total: int, first: float, last: float) -> float:
    """Half a cosine from `first` at step 0 to `last` at step total − 1."""
    from lightly.utils.scheduler import cosine_schedule

    return float(cosine_schedule(min(step, total), total, first, last))


def learning_rate(optim: Optim) -> float:
    """Highest learning rate: scaled by the batch size as the recipe says."""
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[optim.lr_rule]
    return float(optim.lr * (optim.batch / optim.lr_batch) ** power)


def warmup_cosine(step: int, total: int, warmup: float, low: float = 0.0) -> float:
    """Factor on the learning rate: linear up to 1 over `warmup` of the steps, cosine to `low`."""
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / rising
    return cosine(step - rising, total - rising, 1.0, low)


def build_optimizer(module: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """The optimiser over all parameters that are trained.

    Each group carries `lr_scale` (layer decay) and `decay` (whether weight decay applies: not to
    biases, norms, tokens and position embeddings).
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    depth = _depth(module)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = optim.layer_decay ** (depth + 1 - _layer(name, depth))
        if "patch_embed" in name:
            scale *= optim.patch_embed_lr
        decay = parameter.ndim > 1 and not re.search(r"pos_embed|_token", name)
        key = (scale, decay)
        group = groups.setdefault(key, {"params": [], "lr_scale": scale, "decay": decay})
        group["params"].append(parameter)
    lr, listed = learning_rate(optim), list(groups.values())
    if optim.name == "sgd":
        return torch.optim.SGD(listed, lr=lr, momentum=optim.momentum)
    if optim.name == "lars":
        from lightly.utils.lars import LARS

        lars: torch.optim.Optimizer = LARS(listed, lr=lr, momentum=optim.momentum)
        return lars
    return torch.optim.AdamW(listed, lr=lr, betas=optim.betas)


def set_schedule(optimizer: torch.optim.Optimizer, optim: Optim, step: int) -> tuple[float, float]:
    """Set learning rate and weight decay of a step; returns both."""
    lr = learning_rate(optim) * warmup_cosine(step, optim.steps, optim.warmup, optim.min_lr)
    decay = cosine(step, optim.steps, *optim.weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr, decay


def _depth(module: nn.Module) -> int:
    found = [re.search(r"student\.net\.blocks\.(\d+)\.", n) for n, _ in module.named_parameters()]
    return max((int(m.group(1)) + 1 for m in found if m), default=0)


def _layer(name: str, depth: int) -> int:
    """0 for the embedding, i + 1 for block i, depth + 1 for what comes after and for heads."""
    if not name.startswith("student.net."):
        return depth + 1
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if re.search(r"patch_embed|pos_embed|_token|stem", name) else depth + 1
