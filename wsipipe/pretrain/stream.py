"""Tiles straight from slides: a pool of open slides, random places in their tissue.

Which slides are open, which tiles a batch holds and where they lie follow from (seed, batch number)
alone. Nothing needs saving but the number of the step, and every process computes the same draws
and reads only its own rows.

Tiles are placed so that they need as few compressed blocks as possible (`sampler.snap`): a 256 px
tile at a free place in 256 px blocks costs four decodes, within one block it costs one, and the
random crop that follows moves the picture anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, ReadError
from wsipipe.pretrain.options import Sampler
from wsipipe.pretrain.placing import CANDIDATES, hsv_share, place_tiles, read_tile
from wsipipe.pretrain.pool import OpenSlide, SlidePool, UsableSlide
from wsipipe.pretrain.source import TileBatch, permuted_rows
from wsipipe.slide import ReadPlan, Slide, SlideEntry
from wsipipe.types import TileArray

__all__ = ["Anchors", "SlideSource"]

log = logging.getLogger(__name__)

_TRIES = 12


@dataclass(frozen=True)
class Anchors:
    """Places of known kind, for balanced sampling.

    Attributes:
        slide: (A,) int64, index of the slide.
        xy: (A, 2) float64, tile centres in level-0 pixels.
        cluster: (A,) int64.
    """

    slide: NDArray[np.int64]
    xy: NDArray[np.float64]
    cluster: NDArray[np.int64]


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
        self._areas = np.array([u.tissue_mm2 for u in self.units])

    # -- once a slide -----------------------------------------------------------------------

    def close(self) -> None:
        """See `Source`."""
        self._threads.shutdown(cancel_futures=True)
        self._pool.close()

    def sample_slide(self, index: int, n: int, seed: int) -> tuple[TileArray, NDArray[np.float64]]:
        """Random tiles of one slide: (n, px, px, 3) uint8, and (n, 2) centres in level-0 pixels."""
        rng = np.random.default_rng([seed, index, 2])
        opened = self._pool.get(index)
        mpp = self._draw_mpp(self.units[index], rng)
        plan = opened.plan(mpp)
        down = opened.slide.levels[plan.level].downsample
        edge = np.array([float(plan.scale[a]) * self.px for a in (0, 1)])
        corners = self._place(opened, plan, rng.random((n, CANDIDATES, 5)), None)
        tiles = [read_tile(opened.slide, plan, corner, self.px) for corner in corners]
        return np.stack(tiles), corners * np.array([float(d) for d in down]) + edge / 2

    # -- batches ----------------------------------------------------------------------------

    def batch(self, index: int, n: int, rows: slice) -> TileBatch:
        """See `Source`."""
        rng = np.random.default_rng([self.seed, index])
        pool_size = min(self.sampler.pool, len(self.units))
        pool = permuted_rows(index // self.sampler.reuse, pool_size, len(self.units), self.seed)
        pool = np.unique(pool)
        centres = None
        if self.sampler.balance == "clusters":
            slides, centres = self._balanced(pool, n, rng)
        else:
            slides = self._draw_slides(pool, n, rng)
        mpp = np.array([self._draw_mpp(self.units[s], rng) for s in slides])
        seeds, draws = rng.integers(0, 2**63, n), rng.random((n, CANDIDATES, 5))
        mine = np.arange(n)[rows]
        corners = self._all_places(mine, slides, mpp, draws, centres)
        region_px = self.sampler.region.px if self.sampler.region else 0
        tiles = np.empty((len(mine), self.px, self.px, 3), np.uint8)
        regions = np.empty((len(mine), region_px, region_px, 3), np.uint8) if region_px else None

        def read(k: int) -> None:
            row = mine[k]
            centre = None if centres is None else centres[row]
            tiles[k], region = self._tile(
                int(slides[row]), mpp[row], int(seeds[row]), corners[k], centre
            )
            if regions is not None and region is not None:
                regions[k] = region

        list(self._threads.map(read, range(len(mine))))
        return TileBatch(tiles, slides, mpp, region=regions)

    def _draw_slides(
        self, pool: NDArray[np.int64], n: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Slides by weight, with at least `slides_per_batch` different ones where there are."""
        weights = np.ones(len(pool)) if self.sampler.balance == "slides" else self._areas[pool]
        weights = weights / weights.sum()
        drawn = rng.choice(pool, n, p=weights)
        distinct = min(self.sampler.slides_per_batch, len(pool), n)
        drawn[:distinct] = rng.choice(pool, distinct, replace=False, p=weights)
        return rng.permutation(drawn)

    def _balanced(
        self, pool: NDArray[np.int64], n: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Every cluster that the pool has the same share; slides and centres of n tiles."""
        if self.anchors is None:
            raise ConfigError(
                "balance: clusters needs clusters of tiles.", "Give them with --clusters FILE.csv."
            )
        here = np.flatnonzero(np.isin(self.anchors.slide, pool))
        if not len(here):
            return self._draw_slides(pool, n, rng), np.full((n, 2), np.nan)
        kinds = np.unique(self.anchors.cluster[here])
        wanted = rng.choice(kinds, n)
        chosen = np.empty(n, np.int64)
        for kind in kinds:
            rows = np.flatnonzero(wanted == kind)
            chosen[rows] = rng.choice(here[self.anchors.cluster[here] == kind], len(rows))
        return self.anchors.slide[chosen], self.anchors.xy[chosen]

    def _draw_mpp(self, unit: UsableSlide, rng: np.random.Generator) -> float:
        if isinstance(unit.options, tuple):
            low, high = np.log(unit.options)
            return float(np.exp(rng.uniform(low, high)))
        values = list(unit.options)
        weights = np.array(list(unit.options.values()))
        return float(rng.choice(values, p=weights / weights.sum()))

    def _all_places(
        self,
        mine: NDArray[np.int64],
        slides: NDArray[np.int64],
        mpp: NDArray[np.float64],
        draws: NDArray[np.float64],
        centres: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """First corners of this process's rows, (len(mine), 2); one look-up a slide and mpp."""
        corners = np.empty((len(mine), 2), np.int64)
        keys = np.stack([slides[mine].astype(np.float64), mpp[mine]], axis=1)
        for key in np.unique(keys, axis=0):
            group = np.flatnonzero((keys == key).all(axis=1))
            opened = self._pool.get(int(key[0]))
            around = None if centres is None else centres[mine[group]]
            corners[group] = self._place(opened, opened.plan(key[1]), draws[mine[group]], around)
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

    def _tile(
        self,
        index: int,
        mpp: float,
        seed: int,
        corner: NDArray[np.int64],
        centre: NDArray[np.float64] | None,
    ) -> tuple[TileArray, TileArray | None]:
        """Read a tile; elsewhere if it cannot be read or the colour filter refuses it."""
        opened, rng = self._pool.get(index), np.random.default_rng(seed)
        plan = opened.plan(mpp)
        around = None if centre is None else centre[None]
        problem: ReadError | None = None
        tile, hsv = None, self.sampler.hsv
        for _ in range(_TRIES):
            try:
                tile = read_tile(opened.slide, plan, corner, self.px)
                if hsv is None or hsv_share(tile, hsv) >= hsv.share:
                    break
            except ReadError as error:
                problem = error
            corner = self._place(opened, plan, rng.random((1, CANDIDATES, 5)), around)[0]
        if tile is None:
            assert problem is not None
            raise problem
        return tile, self._region(opened.slide, mpp, plan, corner, rng)

    def _region(
        self,
        slide: Slide,
        mpp: float,
        plan: ReadPlan,
        corner: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> TileArray | None:
        spec = self.sampler.region
        if spec is None:
            return None
        down = slide.levels[plan.level].downsample
        edge = np.array([float(plan.scale[a]) * self.px for a in (0, 1)])
        offset = rng.random(2) * edge * (spec.factor - 1)
        x, y = (int(int(corner[a]) * down[a] - offset[a]) for a in (0, 1))
        coarse = mpp * spec.factor * self.px / spec.px
        return slide.read(x, y, spec.px, spec.px, mpp=coarse)
