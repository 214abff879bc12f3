"""Several grids in one pass: the pixels of each as alone, each block decoded once for all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from gridkit import image_slide

from wsipipe.tiling import make_grid, plan_jobs
from wsipipe.tiling.together import plan_together


def count_decodes(slide, monkeypatch):
    seen = Counter()
    usual = type(slide).read_block

    def counted(self, level, col, row, *rest):
        seen[level, col, row] += 1
        return usual(self, level, col, row, *rest)

    monkeypatch.setattr(type(slide), "read_block", counted)
    return seen


def read_in_order(slide, grids, jobs):
    from wsipipe.embed import read_job

    pixels = [np.zeros((len(g), g.tile_px, g.tile_px, 3), np.uint8) for g in grids]
    order = sorted(((job, at) for at, own in enumerate(jobs) for job in own),
                   key=lambda pair: pair[0].index)  # fmt: skip
    for job, at in order:
        pixels[at][job.rows] = read_job(slide, grids[at], job)[0]
    return pixels


@pytest.mark.parametrize(
    "sizes", [((64, 0.5), (96, 0.5)), ((64, 0.5), (50, 0.77)), ((64, 0.5), (64, 0.5), (33, 1.3))]
)
def test_grids_of_one_level_decode_each_block_once(sizes, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (900, 700, 3), dtype=np.uint8)
    slide = image_slide(image, block=64, mpp="0.5")
    grids = [make_grid(slide, None, tile_px=px, mpp=mpp, min_tissue=0) for px, mpp in sizes]
    assert {grid.read.level for grid in grids} == {0}
    alone = [plan_jobs(slide, grid, max_tiles=20) for grid in grids]
    expected = [read_in_order(slide, [g], [own])[0] for g, own in zip(grids, alone, strict=True)]
    seen = count_decodes(slide, monkeypatch)
    fresh = [plan_jobs(slide, grid, max_tiles=20) for grid in grids]
    found = read_in_order(slide, grids, plan_together(grids, fresh))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
    assert set(seen.values()) == {1}


def test_jobs_go_down_the_slide_and_keep_their_rows():
    image = np.zeros((900, 700, 3), np.uint8)
    slide = image_slide(image, block=64, mpp="0.5")
    grids = [make_grid(slide, None, tile_px=px, mpp=0.5, min_tissue=0) for px in (64, 96)]
    jobs = [plan_jobs(slide, grid, max_tiles=7) for grid in grids]
    jobs[0] = jobs[0][3:]  # what a former run has done is not read
    together = plan_together(grids, jobs)
    for before, after in zip(jobs, together, strict=True):
        assert [j.rows.tolist() for j in before] == [j.rows.tolist() for j in after]
    flat = sorted((j.index, grids[at].coords[j.rows[0]][1]) for at in (0, 1) for j in together[at])
    assert [index for index, _ in flat] == list(range(len(flat)))
    assert [y for _, y in flat] == sorted(y for _, y in flat)
