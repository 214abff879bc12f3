"""The few collective operations that losses and monitors need; no-ops in one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_max", "all_reduce_sum", "gather_rows", "rank", "world_size"]


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes (in place, no gradient)."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Maximum over processes (in place, no gradient)."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes, in rank order, (world·n, ...); gradients flow back to every rank.

    Gradients of all ranks' losses are summed, so that after DistributedDataParallel's averaging the
    update is that of one process with the joined batch.
    """
    if world_size() == 1:
        return x
    from lightly.utils.dist import gather

    return torch.cat(gather(x), dim=0)
