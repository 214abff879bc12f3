"""Several grids over one slide in one pass: each compressed tile is decoded once for all of them.

Encoders of different tile size or mpp often read the same level (224 and 256 px at 0.5 µm/px; 0.5
and 0.45 µm/px from a 0.25 µm/px level). Their jobs are ordered down the slide, and blocks that
jobs of any of these grids have in common go through one bounded `SharedBlocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsipipe.slide.shared import SharedBlocks
from wsipipe.tiling.grid import TileGrid
from wsipipe.tiling.plan import TileJob

__all__ = ["plan_together"]

# Two rows of 256 px blocks under a slide of 170,000 px; what does not fit is decoded again.
_SHARED_BYTES: Final = 256 * 1024 * 1024


def plan_together(
    grids: Sequence[TileGrid], jobs: Sequence[Sequence[TileJob]]
) -> list[list[TileJob]]:
    """Order the read jobs of several grids of one slide, and let them share what they decode.

    Args:
        grids: Of the same slide.
        jobs: For each grid, those of `plan_jobs` that will really be read.

    Returns:
        For each grid the same jobs; `index` is now their place among the jobs of all grids, and
        grids that read the same level share their blocks. Read in about the order of `index`.
    """
    every = [(at, job) for at, own in enumerate(jobs) for job in own]
    # By the top left corner of a job's first tile, in level-0 pixels: down the slide.
    every.sort(key=lambda pair: tuple(grids[pair[0]].coords[pair[1].rows[0]][::-1].tolist()))
    placed: list[list[TileJob]] = [[] for _ in grids]
    for place, (at, job) in enumerate(every):
        placed[at].append(replace(job, index=place))
    for level in {grid.read.level for grid in grids}:
        # Also where a grid is alone on its level: its store must know the new indices.
        same = [at for at, grid in enumerate(grids) if grid.read.level == level]
        _share([grids[at] for at in same], [placed[at] for at in same])
    return placed


def _share(grids: Sequence[TileGrid], jobs: Sequence[list[TileJob]]) -> None:
    """Give the jobs, all of one level, one store of blocks."""
    blocks, users = [], []
    for grid, own in zip(grids, jobs, strict=True):
        for job in own:
            needed = _beneath(grid, job)
            blocks.append(needed)
            users.append(np.full(len(needed), job.index, np.int64))
    if not blocks:
        return
    block, user = np.concatenate(blocks), np.concatenate(users)
    order = np.lexsort((user, block))
    block, user = block[order], user[order]
    ids, begin, uses = np.unique(block, return_index=True, return_counts=True)
    several = uses > 1
    last = user[begin + uses - 1]
    shared = SharedBlocks(ids[several], uses[several], last[several], max_bytes=_SHARED_BYTES)
    for own in jobs:
        own[:] = [replace(job, plan=replace(job.plan, shared=shared)) for job in own]


def _beneath(grid: TileGrid, job: TileJob) -> NDArray[np.int64]:
    """Ids of the blocks that a job needs, each once."""
    x, y = job.plan.x, job.plan.y
    col, row = grid.col_row[job.rows].T
    found = []
    for down in range(int((y.last - y.first)[row].max()) + 1):
        for across in range(int((x.last - x.first)[col].max()) + 1):
            at_col, at_row = x.first[col] + across, y.first[row] + down
            inside = (at_col <= x.last[col]) & (at_row <= y.last[row])
            found.append((at_row * job.plan.block_columns + at_col)[inside])
    blocks: NDArray[np.int64] = np.unique(np.concatenate(found))
    return blocks
