"""Features by mean and spread of the training part, in one place for training and use."""

from __future__ import annotations

from torch import Tensor

__all__ = ["standardised"]

# A column that is nearly constant in training has a tiny spread: one tile that differs would come
# out at hundreds and drown all others.
_CLIP = 10.0


def standardised(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    """(x - mean) / spread in float32, cut to +-10. (..., D) -> (..., D)."""
    mean, std = norm
    return ((x.float() - mean) / std).clamp_(-_CLIP, _CLIP)
