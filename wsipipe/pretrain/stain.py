"""Changes of stain, batched on the device: HED jitter, RandStainNA, transfer between tiles.

Images are float (B, 3, H, W) RGB in 0..1. All drawn numbers come in as tensors with one row a tile,
so that every process of a distributed run uses the rows of its own tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "STAIN_STATISTICS",
    "hed_jitter",
    "lab_statistics",
    "match_statistics",
    "randstainna",
    "recolour_to_dab",
]

# Rows haematoxylin, eosin, residual (Ruifrok & Johnston 2001), as scikit-image's rgb_from_hed.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_EPS = 1e-6

# Of colorectal H&E tiles in 8-bit LAB, from RandStainNA (2206.12694, MIT): for each of L, A, B the
# mean and spread of tile means, then of tile standard deviations.
STAIN_STATISTICS = (
    (158.033, 48.792, 36.899, 14.383),
    (151.187, 10.958, 8.134, 2.822),
    (116.812, 6.643, 6.129, 2.013),
)


def hed_jitter(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the optical density of each stain (Tellez et al. 1808.05896).

    S = −log(RGB + 1e-6)·M⁻¹; S' = scale·S + shift; RGB' = exp(−S'·M).

    Args:
        images: (B, 3, H, W).
        scale: (B, 3) factors; 1 leaves the image as it is.
        shift: (B, 3) offsets; 0 leaves it.
    """
    stains = torch.tensor(_STAINS, dtype=images.dtype, device=images.device)
    scale, shift = scale.to(images), shift.to(images)
    # Both changes of basis and the scaling are one 3 x 3 matrix a tile.
    matrix = (torch.linalg.inv(stains)[None] * scale[:, None, :]) @ stains
    log_rgb = (images + _EPS).log_().flatten(2)
    mixed = matrix.transpose(1, 2) @ log_rgb
    mixed -= (shift @ stains)[:, :, None]
    jittered: Tensor = (mixed.exp_() - _EPS).clamp_(0, 1).view_as(images)
    return jittered


def lab_statistics(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (B, 3) each."""
    return lab.mean(dim=(2, 3)), lab.std(dim=(2, 3))


def match_statistics(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give tiles other channel means and standard deviations in LAB (Reinhard 2001).

    Args:
        images: (B, 3, H, W).
        mean: (B, 3) in L 0..100, a, b.
        std: (B, 3).
    """
    from kornia.color import lab_to_rgb, rgb_to_lab

    lab = rgb_to_lab(images)
    own_mean, own_std = lab_statistics(lab)
    gain = (std / own_std.clamp_min(1e-3))[:, :, None, None]
    moved = (lab - own_mean[:, :, None, None]) * gain + mean[:, :, None, None]
    matched: Tensor = lab_to_rgb(moved).clamp_(0, 1)
    return matched


def randstainna(images: Tensor, draws: Tensor, std_hyper: float = -0.3) -> Tensor:
    """Random plausible stain statistics (RandStainNA 2206.12694).

    Args:
        images: (B, 3, H, W).
        draws: (B, 6) standard normal numbers: three for the means, three for the deviations.
        std_hyper: Widens (> 0) or narrows the distributions of both.
    """
    table = torch.tensor(STAIN_STATISTICS, dtype=images.dtype, device=images.device)
    draws = draws.to(images) * (1 + std_hyper)
    mean = table[:, 0] + draws[:, :3] * table[:, 1]
    # A drawn deviation can be negative (0.85 % of draws at std_hyper 0).
    std = (table[:, 2] + draws[:, 3:] * table[:, 3]).clamp_min(1.0)
    to_float = torch.tensor([100 / 255, 1, 1], dtype=images.dtype, device=images.device)
    offset = torch.tensor([0, 128, 128], dtype=images.dtype, device=images.device)
    return match_statistics(images, mean * to_float - offset, std * to_float)


def recolour_to_dab(images: Tensor) -> Tensor:
    """H&E as if stained with haematoxylin and DAB: eosin's place is taken by brown, weaker.

    Args:
        images: (B, 3, H, W) in 0..1.
    """
    stains = torch.tensor(_STAINS, dtype=images.dtype, device=images.device)
    brown = stains.clone()
    brown[1] = stains[2] * 0.7
    matrix = torch.linalg.inv(stains) @ brown
    density = -(images.clamp_min(0) + _EPS).log().flatten(2)
    recoloured: Tensor = (-(matrix.T @ density)).exp().clamp(0, 1).view_as(images)
    return recoloured
