"""From uint8 tiles to what the network sees, on the device that holds the network.

Tiles travel as bytes (a quarter of the traffic of floats). Scaling to 0..1 and normalising are one
multiply and one add: (x / 255 - mean) / std = x * 1/(255 std) - mean/std.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.resample import resize_bytes

__all__ = ["Transform"]


class Transform(nn.Module):
    """Resize (only where the size differs), centre crop, scale and normalise.

    Args:
        card: Says the sizes, the interpolation and the normalisation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, card: EncoderCard) -> None:
        super().__init__()
        self.any_size = card.any_size
        self.resize_px = card.resize_px or card.tile_px
        self.crop_px = card.input_px
        self.interpolation = card.interpolation
        mean = torch.tensor(card.mean or (0.0, 0.0, 0.0), dtype=torch.float64)
        std = torch.tensor(card.std or (1.0, 1.0, 1.0), dtype=torch.float64)
        # Folded in float64 so that the rounding is that of one operation, not of three.
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Transform a batch.

        Args:
            tiles: (B, H, W, 3) uint8, on the device of this module.

        Returns:
            (B, 3, crop_px, crop_px) float32; (B, 3, H, W) where the card takes any size.
        """
        pixels = tiles.permute(0, 3, 1, 2)
        if not self.any_size:
            pixels = self._crop(self._resize(pixels))
        return self._normalise(pixels.permute(0, 2, 3, 1))

    def _normalise(self, tiles: Tensor) -> Tensor:
        """Tiles (B, H, W, 3) uint8 to normalised planes (B, 3, H, W) float32.

        On CPU torch converts and broadcasts a channels-last view byte by byte (1.4 ms a tile of
        224 px, a tenth of a ViT-S/16's forward). Whole rows of W·3 numbers use vector instructions,
        and the change to planes, which the networks' first layers were written for, is one copy:
        0.1 ms.
        """
        width = tiles.shape[2]
        rows = tiles.flatten(2).to(torch.float32)
        scale, shift = self.scale.flatten().repeat(width), self.shift.flatten().repeat(width)
        rows = torch.addcmul(shift, rows, scale)
        planes = rows.reshape(*tiles.shape).permute(0, 3, 1, 2)
        return planes.contiguous()

    def _resize(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        shortest = min(height, width)
        if shortest == self.resize_px:
            return pixels
        # As torchvision's Resize(int): the long edge is truncated to whole pixels.
        size = (
            int(self.resize_px * height / shortest),
            int(self.resize_px * width / shortest),
        )
        return resize_bytes(pixels, size, self.interpolation)

    def _crop(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if (height, width) == (self.crop_px, self.crop_px):
            return pixels
        top = round((height - self.crop_px) / 2)
        left = round((width - self.crop_px) / 2)
        return pixels[..., top : top + self.crop_px, left : left + self.crop_px]
