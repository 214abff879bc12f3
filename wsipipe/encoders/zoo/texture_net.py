"""The network of `texture`: puts the measurements of `texture_parts` together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.zoo import texture_parts as parts

# Four tiles of 224 px and their channels fit a core's second-level cache.
_GROUP = 4
_MIN_PX = 64


class Texture(nn.Module):
    """Maps (B, 3, H, W) float in [0, 1] to (B, dim) float32; small tiles are enlarged to 64 px."""

    unmix: Tensor
    filters: Tensor
    harmonics: Tensor
    patterns: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("unmix", parts.unmixing())
        self.register_buffer("filters", parts.oriented_filters())
        self.register_buffer("harmonics", parts.orientation_harmonics())
        self.register_buffer("patterns", parts.uniform_patterns())

    def forward(self, tiles: Tensor) -> Tensor:
        """Describe tiles.

        Args:
            tiles: (B, 3, H, W), RGB in [0, 1].

        Returns:
            (B, dim) float32; the order of the numbers is that of `zoo/texture.py`.
        """
        with torch.autocast(tiles.device.type, enabled=False):
            tiles = tiles.float()
            if tiles.device.type != "cpu":
                return self._describe(tiles)
            if not len(tiles):
                return tiles.new_zeros((0, self.dim))
            starts = range(0, len(tiles), _GROUP)
            return torch.cat([self._group(tiles[i : i + _GROUP]) for i in starts])

    def _group(self, tiles: Tensor) -> Tensor:
        missing = _GROUP - len(tiles)
        if not missing:
            return self._describe(tiles)
        filled = torch.cat([tiles, tiles[-1:].expand(missing, -1, -1, -1)])
        return self._describe(filled)[: len(tiles)]

    def _describe(self, tiles: Tensor) -> Tensor:
        shortest = min(tiles.shape[-2:])
        if shortest < _MIN_PX:
            size = [math.ceil(n * _MIN_PX / shortest) for n in tiles.shape[-2:]]
            tiles = F.interpolate(tiles, size=size, mode="bilinear", align_corners=False)
        stains = parts.separate(parts.halve(tiles), self.unmix)
        half = parts.halve(stains)
        quarter = parts.halve(half)
        two = [level[:, :2] for level in (stains, half, quarter)]
        return torch.cat(
            [
                parts.moments(stains),
                parts.quantiles(quarter),
                parts.joint_histogram(stains),
                parts.local_patterns(two[0], 1, self.patterns),
                parts.local_patterns(two[1], 1, self.patterns),
                parts.local_patterns(two[1], 2, self.patterns),
                parts.local_patterns(two[2], 1, self.patterns),
                parts.orientation_energies(two[1], self.filters, self.harmonics, stride=2),
                parts.orientation_energies(two[2], self.filters, self.harmonics),
                parts.covariances(stains, half),
            ],
            dim=1,
        )
