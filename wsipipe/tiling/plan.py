"""The read plan: which consecutive tiles are read together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from wsipipe.slide.slide import Slide
from wsipipe.tiling.grid import TileGrid
from wsipipe.types import Rows

__all__ = ["TileJob", "plan_jobs"]

_MAX_TILES: Final = 256


@dataclass(frozen=True, eq=False)
class TileJob:
    """Consecutive tiles of a grid that are read together.

    Attributes:
        index: Place of the job in the plan.
        rows: (n,) int64, indices into the grid, ascending.
    """

    index: int
    rows: Rows


def plan_jobs(slide: Slide, grid: TileGrid, *, max_tiles: int = _MAX_TILES) -> list[TileJob]:
    """Cut a grid into jobs of consecutive rows, in order.

    Args:
        max_tiles: Tiles in a job, at most.
    """
    return [
        TileJob(index, np.arange(start, min(start + max_tiles, len(grid)), dtype=np.int64))
        for index, start in enumerate(range(0, len(grid), max_tiles))
    ]
