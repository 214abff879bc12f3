"""What each tile adds to the prediction, for models with and without attention."""

from __future__ import annotations

from collections.abc import Mapping
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
                value = _evidence(got.instance_logits, said)
            else:
                evidence = _evidence(got.logits, said).sum()
                (slope,) = torch.autograd.grad(evidence, x)
                value = (slope * (x - x.mean(dim=0))).sum(dim=1)
        out.append(value.detach().double().cpu().numpy())
    return np.mean(out, axis=0)  # type: ignore[no-any-return]


def _evidence(logits: torch.Tensor, said: Mapping[str, Any]) -> torch.Tensor:
    """(R, all columns) -> (R,): the last class against the others, the value, or the risk."""
    z = logits[:, said["start"] :]
    if said["task"] == "classification":
        z = z[:, : len(said["classes"])]
        return z[:, -1] - torch.logsumexp(z[:, :-1], dim=1)
    if said["loss"] != "nll":
        return z[:, 0]
    # As `raw_risk`: minus the expected bins survived.
    base = torch.as_tensor(said.get("base") or 0.0, dtype=z.dtype, device=z.device)
    return -torch.cumprod(torch.sigmoid(-(z[:, : said["bins"]] + base)), dim=1).sum(dim=1)
