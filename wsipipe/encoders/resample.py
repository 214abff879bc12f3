"""Resize 8-bit images on any device, to the very bytes that PIL gives.

The makers' transforms resize with PIL: an antialiased filter along rows, rounded to 8 bits, then
along columns, rounded again, in fixed-point arithmetic of 22 bits. A float resize differs by a
level in up to a fifth of the pixels, and at sharp edges by eight. Here each pass is a product with
a matrix of those fixed-point coefficients, split in two halves of 11 bits: every product and sum is
then a whole number below 2^24, exact in float32 (and in TF32), so the result is PIL's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.encoders.card import Interpolation

__all__ = ["resize_bytes"]

_FRACTION_BITS = 22  # PIL's PRECISION_BITS for 8-bit images: 32 - 8 - 2
_HALF_BITS = 11
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def resize_bytes(pixels: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize as `PIL.Image.resize` does.

    Args:
        pixels: (B, C, H, W) uint8.
        size: New (height, width).
        interpolation: "bilinear" or "bicubic", both antialiased when shrinking.

    Returns:
        (B, C, *size) uint8, on the same device.
    """
    resized = _along_last(pixels, size[1], interpolation)
    return _along_last(resized.mT, size[0], interpolation).mT


def _along_last(pixels: Tensor, length: int, interpolation: Interpolation) -> Tensor:
    if pixels.shape[-1] == length:
        return pixels
    high, low = (
        torch.from_numpy(half).to(pixels.device)
        for half in _coefficients(pixels.shape[-1], length, interpolation)
    )
    floats = pixels.float()
    total = ((floats @ high).int() << _HALF_BITS) + (floats @ low).int()
    rounded = (total + (1 << (_FRACTION_BITS - 1))) >> _FRACTION_BITS
    return rounded.clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _coefficients(
    before: int, after: int, interpolation: Interpolation
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two (before, after) matrices: the upper and the lower 11 bits of PIL's coefficients."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    fixed = np.zeros((before, after), dtype=np.int64)
    for column in range(after):
        centre = (column + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), before)
        weights = _kernel((np.arange(first, last) - centre + 0.5) / stretch, interpolation)
        weights = weights / weights.sum() * (1 << _FRACTION_BITS)
        # Rounded half away from zero, as C's cast of x ± 0.5 does.
        fixed[first:last, column] = np.trunc(weights + np.copysign(0.5, weights))
    high = (fixed + (1 << (_HALF_BITS - 1))) >> _HALF_BITS
    low = fixed - (high << _HALF_BITS)
    return high.astype(np.float32), low.astype(np.float32)


def _kernel(at: NDArray[Any], interpolation: Interpolation) -> NDArray[Any]:
    x: NDArray[Any] = np.abs(at)
    if interpolation == "bilinear":
        triangle: NDArray[Any] = np.maximum(1 - x, 0)
        return triangle
    # Cubic convolution with a = -0.5 (Keys 1981).
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    cubic: NDArray[Any] = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return cubic
