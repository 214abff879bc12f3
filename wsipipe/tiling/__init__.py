"""The tile grid (exact arithmetic) and the read plan (which blocks serve which tiles)."""

from __future__ import annotations

from wsipipe.tiling.grid import ReadSpec, TileGrid, make_grid
from wsipipe.tiling.plan import TileJob, plan_jobs
from wsipipe.tiling.together import plan_together

__all__ = ["ReadSpec", "TileGrid", "TileJob", "make_grid", "plan_jobs", "plan_together"]
