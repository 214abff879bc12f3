"""Tiles straight from slides: a pool of open slides, random places in their tissue.

Which slides are open, which tiles a batch holds and where they lie follow from (seed, batch number)
alone. Nothing needs saving but the number of the step, and every process computes the same draws
and reads only its own rows.

A 256 px tile at a free place among compressed blocks of 256 px costs four decodes. Two ways around:

* `sampler.snap`: place tiles within as few blocks as possible (one, here; the random crop that
  follows moves the picture anyway);
* `sampler.share`: cut several tiles, at free places, from blocks that are decoded once, and deal
  them out to as many batches in a row. Each tile's place has the distribution that it has without
  sharing, and within a batch places are independent; neighbours meet only in different batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, ReadError
from wsipipe.pretrain.drawing import Anchors, Draw, draw_mpp, draw_tiles
from wsipipe.pretrain.options import Sampler
from wsipipe.pretrain.placing import (
    CANDIDATES,
    hsv_share,
    place_beside,
    place_tiles,
    read_tile,
    read_tiles,
)
from wsipipe.pretrain.pool import OpenSlide, SlidePool
from wsipipe.pretrain.source import TileBatch
from wsipipe.pretrain.windows import Windows
from wsipipe.slide import ReadPlan, Slide, SlideEntry
from wsipipe.types import TileArray

__all__ = ["SlideSource"]

log = logging.getLogger(__name__)

_TRIES = 12


# Tiles (rows, share, px, px, 3) and the regions around them.
_Pixels = tuple[TileArray, TileArray | None]


class SlideSource:
    """Random tiles of many slides; a `Source`.

    Args:
        entries: Slides, as `find_slides` gives them.
        sampler: The recipe's sampling.
        seed: Of all draws.
        tissue: Tissue method, or a folder of masks.
        cache: Folder in which tissue masks are kept between visits; None = found again each time.
        workers: Threads that read.
        anchors: For `balance: clusters`.

    Attributes:
        names: Ids of the usable slides.
        skipped: (slide_id, reason) of the others.

    Raises:
        ConfigError: No slide is usable; every reason is named.
    """

    def __init__(
        self,
        entries: Sequence[SlideEntry],
        sampler: Sampler,
        *,
        seed: int = 0,
        tissue: str = "auto",
        cache: Path | None = None,
        workers: int = 2,
        anchors: Anchors | None = None,
    ) -> None:
        self.sampler, self.seed = sampler, seed
        self.classes: dict[str, int] = {}
        self.px = sampler.px
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pretrain-tile")
        self._pool = SlidePool(
            entries,
            sampler.mpp,
            # Batches in flight span two pools, and the monitor asks for the first one: beyond
            # three pools nobody reads any more.
            open_at_once=3 * sampler.pool,
            tissue=tissue,
            cache=cache,
            threads=self._threads,
        )
        self.units, self.skipped = self._pool.units, self._pool.skipped
        for slide_id, reason in self.skipped:
            log.warning("%s is left out: %s", slide_id, reason)
        if not self.units:
            reasons = "; ".join(f"{s}: {r}" for s, r in self.skipped[:5])
            raise ConfigError(f"none of {len(entries)} slides can be used ({reasons}).")
        if len(self.units) < sampler.slides_per_batch:
            log.warning(
                "batches come from %d slides, not from %d as the recipe asks: there are no more",
                len(self.units),
                sampler.slides_per_batch,
            )
        self.names: Sequence[str] = [u.entry.slide_id for u in self.units]
        self.anchors = anchors
        self._windows = Windows[tuple[int, int, int, int], _Pixels]()

    def close(self) -> None:
        """See `Source`."""
        self._threads.shutdown(cancel_futures=True)
        self._pool.close()

    def sample_slide(self, index: int, n: int, seed: int) -> tuple[TileArray, NDArray[np.float64]]:
        """Random tiles of one slide: (n, px, px, 3) uint8, and (n, 2) centres in level-0 pixels."""
        rng = np.random.default_rng([seed, index, 2])
        opened = self._pool.get(index)
        mpp = draw_mpp(self.units[index], rng)
        plan = opened.plan(mpp)
        down = opened.slide.levels[plan.level].downsample
        edge = np.array([float(plan.scale[a]) * self.px for a in (0, 1)])
        corners = self._place(opened, plan, rng.random((n, CANDIDATES, 5)), None)
        tiles = [read_tile(opened.slide, plan, corner, self.px) for corner in corners]
        return np.stack(tiles), corners * np.array([float(d) for d in down]) + edge / 2

    def batch(self, index: int, n: int, rows: slice) -> TileBatch:
        """See `Source`."""
        number, part = divmod(index, self.sampler.share)
        draw = draw_tiles(number, n, self.units, self.sampler, self.anchors, self.seed)
        mine = np.arange(n)[rows]
        if self.sampler.share == 1:
            tiles, regions = self._read(draw, mine)
        else:
            first, last, _ = rows.indices(n)
            tiles, regions = self._windows.get(
                (number, n, first, last), lambda: self._read(draw, mine)
            )
        # Copies where tiles are shared: a view that somebody keeps would keep the whole window.
        around = None if regions is None else np.ascontiguousarray(regions[:, part])
        own = np.ascontiguousarray(tiles[:, part])
        return TileBatch(own, draw.slides, draw.mpp, region=around)

    def _read(self, draw: Draw, mine: NDArray[np.int64]) -> _Pixels:
        """Pixels of these rows, all tiles of each."""
        corners = self._corners(draw, mine)
        region_px = self.sampler.region.px if self.sampler.region else 0
        shape = (len(mine), self.sampler.share)
        tiles = np.empty((*shape, self.px, self.px, 3), np.uint8)
        regions = np.empty((*shape, region_px, region_px, 3), np.uint8) if region_px else None

        def read(k: int) -> None:
            around = None if regions is None else regions[k]
            self._row(draw, int(mine[k]), corners[k], tiles[k], around)

        list(self._threads.map(read, range(len(mine))))
        return tiles, regions

    def _corners(self, draw: Draw, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """Corners of this process's rows, (len(mine), share, 2); one look-up a slide and mpp."""
        corners = np.empty((len(mine), self.sampler.share, 2), np.int64)
        keys = np.stack([draw.slides[mine].astype(np.float64), draw.mpp[mine]], axis=1)
        for key in np.unique(keys, axis=0):
            group = np.flatnonzero((keys == key).all(axis=1))
            rows = mine[group]
            opened = self._pool.get(int(key[0]))
            plan = opened.plan(key[1])
            around = None if draw.centres is None else draw.centres[rows]
            corners[group, 0] = self._place(opened, plan, draw.places[rows], around)
            corners[group, 1:] = place_beside(
                opened,
                plan,
                corners[group, 0],
                draw.more[rows],
                px=self.px,
                min_tissue=self.sampler.tissue,
            )
        return corners

    def _place(
        self,
        opened: OpenSlide,
        plan: ReadPlan,
        draws: NDArray[np.float64],
        centres: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        return place_tiles(
            opened,
            plan,
            draws,
            centres,
            px=self.px,
            min_tissue=self.sampler.tissue,
            snap=self.sampler.snap,
        )

    def _row(
        self,
        draw: Draw,
        row: int,
        corners: NDArray[np.int64],
        tiles: TileArray,
        regions: TileArray | None,
    ) -> None:
        """Read the tiles of a row into `tiles` (share, px, px, 3), and their regions."""
        mpp = float(draw.mpp[row])
        opened = self._pool.get(int(draw.slides[row]))
        plan = opened.plan(mpp)
        around = None if draw.centres is None else draw.centres[row][None]
        together: Sequence[TileArray | None] = [None] * len(corners)
        if len(corners) > 1:
            try:
                together = read_tiles(opened.slide, plan, corners, self.px)
            except ReadError:
                log.debug("tiles are read one by one: not all of their blocks can be decoded")
        for part, tile in enumerate(together):
            rng = np.random.default_rng(int(draw.seeds[row]) + part)
            tiles[part], corner = self._tile(opened, plan, corners[part], around, tile, rng)
            if regions is not None:
                regions[part] = self._region(opened.slide, mpp, plan, corner, rng)

    def _tile(
        self,
        opened: OpenSlide,
        plan: ReadPlan,
        corner: NDArray[np.int64],
        around: NDArray[np.float64] | None,
        tile: TileArray | None,
        rng: np.random.Generator,
    ) -> tuple[TileArray, NDArray[np.int64]]:
        """The tile at `corner` (read it if None); elsewhere if it is unreadable or refused."""
        problem: ReadError | None = None
        found: tuple[TileArray, NDArray[np.int64]] | None = None
        hsv = self.sampler.hsv
        for _ in range(_TRIES):
            try:
                if tile is None:
                    tile = read_tile(opened.slide, plan, corner, self.px)
                found, tile = (tile, corner), None
                if hsv is None or hsv_share(found[0], hsv) >= hsv.share:
                    return found
            except ReadError as error:
                problem = error
            corner = self._place(opened, plan, rng.random((1, CANDIDATES, 5)), around)[0]
        if found is None:
            assert problem is not None
            raise problem
        return found

    def _region(
        self,
        slide: Slide,
        mpp: float,
        plan: ReadPlan,
        corner: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> TileArray:
        spec = self.sampler.region
        assert spec is not None
        down = slide.levels[plan.level].downsample
        edge = np.array([float(plan.scale[a]) * self.px for a in (0, 1)])
        offset = rng.random(2) * edge * (spec.factor - 1)
        x, y = (int(int(corner[a]) * down[a] - offset[a]) for a in (0, 1))
        coarse = mpp * spec.factor * self.px / spec.px
        return slide.read(x, y, spec.px, spec.px, mpp=coarse)
