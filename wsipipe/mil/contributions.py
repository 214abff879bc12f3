"""What each tile adds to the prediction, for models with and without attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsipipe.mil.packing import rows_tensor
from wsipipe.mil.standardise import standardised

if TYPE_CHECKING:
    from wsipipe.mil.ensemble import FoldModel

__all__ = ["contributions"]


def contributions(fold: FoldModel, bag: Any, target: int = 0) -> NDArray[np.float64]:
    """Contribution of each tile to the evidence for the last class (or value, or risk).

    Where a model gives logits per tile these are taken; else the gradient of the bag's evidence by
    each tile's features times the features' distance from the bag's mean (first-order effect of
    replacing the tile by the mean tile).

    Returns:
        (N,) float64; positive = speaks for.
    """
    said = fold.info["targets"][target]
    start, width = said["start"], max(1, len(said["classes"]))
    out = []
    for member, norm in zip(fold.members, fold.norms, strict=True):
        device = member.device
        x = rows_tensor(bag[: len(bag)], device).float()
        if norm is not None:
            x = standardised(x, norm)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            got = member.forward_bags([x])
            if got.instance_logits is not None:
                z = got.instance_logits[:, start : start + width]
                value = _evidence(z)
            else:
                evidence = _evidence(got.logits[:, start : start + width]).sum()
                (slope,) = torch.autograd.grad(evidence, x)
                value = (slope * (x - x.mean(dim=0))).sum(dim=1)
        out.append(value.detach().double().cpu().numpy())
    return np.mean(out, axis=0)  # type: ignore[no-any-return]


def _evidence(z: torch.Tensor) -> torch.Tensor:
    """(R, C) -> (R,): the last class against the others."""
    if z.shape[1] == 1:
        return z[:, 0]
    return z[:, -1] - torch.logsumexp(z[:, :-1], dim=1)
