"""A stand-in for the features stage of most tools: a DataLoader over OpenSlide regions.

It does what they have in common (a region at the finest level that is not coarser, PIL's resize to
the tile, ToTensor, one worker process, batches of 64) and nothing that costs them more.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openslide
import torch

import wsipipe as wp


class Regions(torch.utils.data.Dataset):
    def __init__(self, path: Path, coords: np.ndarray, side0: int, tile_px: int) -> None:
        self.path, self.coords, self.side0, self.tile_px = path, coords, side0, tile_px
        self.slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.slide is None:
            self.slide = openslide.OpenSlide(str(self.path))
        x, y = self.coords[index].tolist()
        region = self.slide.read_region((x, y), 0, (self.side0, self.side0)).convert("RGB")
        tile = np.array(region.resize((self.tile_px, self.tile_px)))
        return torch.from_numpy(tile).permute(2, 0, 1).float() / 255


def usual_rate(path: Path, mpp: float) -> float:
    """Tiles per CPU-second, workers included."""
    with wp.open_slide(path) as slide:
        grid = wp.make_grid(slide, None, tile_px=224, mpp=mpp)
        side0 = round(224 * mpp / slide.mpp)
    data = Regions(path, grid.coords, side0, 224)
    begun = sum(os.times()[:4])
    for batch in torch.utils.data.DataLoader(data, batch_size=64, num_workers=1):
        batch.mean()
    return len(grid) / (sum(os.times()[:4]) - begun)
