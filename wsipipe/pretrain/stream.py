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
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, ReadError, SlideError
from wsipipe.pretrain.options import HsvFilter, Sampler
from wsipipe.pretrain.source import TileBatch, permuted_rows
from wsipipe.slide import ReadPlan, Slide, SlideEntry, choose_level, open_slide
from wsipipe.tissue import TissueMask, detect_tissue
from wsipipe.types import TileArray

__all__ = ["Anchors", "SlideSource", "allowed_mpp", "hsv_share"]

log = logging.getLogger(__name__)

_TRIES = 12
_CANDIDATES = 8
_MAX_UPSAMPLE = 1.10
_TOLERANCE = 0.05


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


@dataclass
class _Unit:
    """A usable slide: what was found out about it once."""

    entry: SlideEntry
    mpp: float
    options: dict[float, float] | tuple[float, float]
    tissue_mm2: float


@dataclass
class _Open:
    """A slide of the pool with its tissue."""

    slide: Slide
    tissue: TissueMask
    places: NDArray[np.int64]  # flat indices of mask pixels that are tissue
    plans: dict[float, ReadPlan] = field(default_factory=dict)

    def plan(self, mpp: float) -> ReadPlan:
        """How pixels at `mpp` are read; remembered, for exact arithmetic takes its time."""
        if mpp not in self.plans:
            if len(self.plans) > 1000:  # continuous magnification
                self.plans.clear()
            self.plans[mpp] = choose_level(
                self.slide, mpp, mpp_tolerance=_TOLERANCE, max_upsample=_MAX_UPSAMPLE
            )
        return self.plans[mpp]


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
        self.sampler, self.seed, self.tissue, self.cache = sampler, seed, tissue, cache
        self.classes: dict[str, int] = {}
        self.px = sampler.px
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pretrain-tile")
        self.skipped: list[tuple[str, str]] = []
        self._entries = list(entries)
        found = list(self._threads.map(self._examine, self._entries))
        self.units = [u for u in found if isinstance(u, _Unit)]
        self.skipped = [
            (e.slide_id, u) for e, u in zip(entries, found, strict=True) if isinstance(u, str)
        ]
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

    def _examine(self, entry: SlideEntry) -> _Unit | str:
        try:
            with open_slide(entry.path, mpp=entry.mpp) as slide:
                own = float(max(slide.mpp_xy))
                options = allowed_mpp(self.sampler.mpp, own)
                if not options:
                    return f"its {own:g} µm per pixel cannot give mpp {self.sampler.mpp}"
                tissue = self._find_tissue(slide, entry.slide_id)
                if tissue.is_empty:
                    return "no tissue"
                return _Unit(entry, own, options, tissue.area_mm2)
        except SlideError as error:
            return error.reason

    def _find_tissue(self, slide: Slide, slide_id: str) -> TissueMask:
        path = None
        if self.cache is not None:
            path = self.cache / f"{slide_id.replace('/', '__')}-{slide.fingerprint()[:12]}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as stored:
                    mask = np.unpackbits(stored["bits"])[: int(np.prod(stored["shape"]))]
                    return TissueMask(
                        mask.reshape(stored["shape"]).astype(bool),
                        (Fraction(str(stored["dx"])), Fraction(str(stored["dy"]))),
                        self.tissue,
                        {},
                        slide.mpp_xy,
                    )
        found = detect_tissue(slide, self.tissue, slide_id=slide_id)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}")
            dx, dy = (str(d) for d in found.downsample)
            bits, shape = np.packbits(found.mask), np.array(found.mask.shape)
            with temporary.open("wb") as file:
                np.savez(file, bits=bits, shape=shape, dx=np.array(dx), dy=np.array(dy))
            temporary.rename(path)
        return found

    def _get(self, index: int) -> _Open:
        """The open slide; opened once by whichever thread comes first."""
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
            gate = self._opening.setdefault(index, threading.Lock())
        with gate:
            with self._lock:
                if index in self._open:
                    return self._open[index]
            entry = self.units[index].entry
            slide = open_slide(entry.path, mpp=entry.mpp)
            tissue = self._find_tissue(slide, entry.slide_id)
            opened = _Open(slide, tissue, np.flatnonzero(tissue.mask))
            with self._lock:
                self._open[index] = opened
                # Batches in flight span two pools, and the monitor asks for the first one: beyond
                # three pools nobody reads any more.
                while len(self._open) > 3 * self.sampler.pool:
                    self._open.popitem(last=False)[1].slide.close()
            return opened

    def close(self) -> None:
        """See `Source`."""
        self._threads.shutdown(cancel_futures=True)
        for opened in self._open.values():
            opened.slide.close()
        self._open.clear()

    def sample_slide(self, index: int, n: int, seed: int) -> tuple[TileArray, NDArray[np.float64]]:
        """Random tiles of one slide: (n, px, px, 3) uint8, and (n, 2) centres in level-0 pixels."""
        rng = np.random.default_rng([seed, index, 2])
        opened = self._get(index)
        mpp = self._draw_mpp(self.units[index], rng)
        plan = choose_level(opened.slide, mpp, mpp_tolerance=_TOLERANCE, max_upsample=_MAX_UPSAMPLE)
        down = opened.slide.levels[plan.level].downsample
        edge = np.array([float(plan.scale[a]) * self.px for a in (0, 1)])
        corners = self._place(opened, plan, rng.random((n, _CANDIDATES, 5)), None)
        tiles = [_read(opened.slide, plan, corner, self.px) for corner in corners]
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
        seeds, draws = rng.integers(0, 2**63, n), rng.random((n, _CANDIDATES, 5))
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

    def _draw_mpp(self, unit: _Unit, rng: np.random.Generator) -> float:
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
            opened = self._get(int(key[0]))
            around = None if centres is None else centres[mine[group]]
            corners[group] = self._place(opened, opened.plan(key[1]), draws[mine[group]], around)
        return corners

    def _tile(
        self,
        index: int,
        mpp: float,
        seed: int,
        corner: NDArray[np.int64],
        centre: NDArray[np.float64] | None,
    ) -> tuple[TileArray, TileArray | None]:
        """Read a tile; elsewhere if it cannot be read or the colour filter refuses it."""
        opened, rng = self._get(index), np.random.default_rng(seed)
        plan = opened.plan(mpp)
        around = None if centre is None else centre[None]
        problem: ReadError | None = None
        tile, hsv = None, self.sampler.hsv
        for _ in range(_TRIES):
            try:
                tile = _read(opened.slide, plan, corner, self.px)
                if hsv is None or hsv_share(tile, hsv) >= hsv.share:
                    break
            except ReadError as error:
                problem = error
            corner = self._place(opened, plan, rng.random((1, _CANDIDATES, 5)), around)[0]
        if tile is None:
            assert problem is not None
            raise problem
        return tile, self._region(opened.slide, mpp, plan, corner, rng)

    def _place(
        self,
        opened: _Open,
        plan: ReadPlan,
        draws: NDArray[np.float64],
        centres: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        """Corners, in pixels of the plan's level, of R tiles with enough tissue.

        Args:
            opened: Slide and tissue.
            plan: How tiles are read.
            draws: (R, K, 5) uniform numbers for K candidates each; the first that has enough
                tissue is taken, else the one with most.
            centres: (R, 2) level-0 pixels to stay near, or None for anywhere in the tissue.

        Returns:
            (R, 2) int64.
        """
        slide, level = opened.slide, opened.slide.levels[plan.level]
        down = np.array([float(d) for d in level.downsample])
        edge = np.array([_source_px(plan, level.downsample, self.px, a) for a in (0, 1)])
        if centres is not None and not np.isnan(centres).any():
            middle = centres[:, None] + (draws[..., 1:3] - 0.5) * edge * down
        else:
            places = opened.places[(draws[..., 0] * len(opened.places)).astype(np.int64)]
            width = opened.tissue.mask.shape[1]
            pixel = np.stack([places % width, places // width], axis=-1)
            step = np.array([float(d) for d in opened.tissue.downsample])
            middle = (pixel + draws[..., 1:3]) * step
        corner = np.floor(middle / down - edge / 2)
        if self.sampler.snap:
            corner = _snapped(corner, edge, slide.block_sizes[plan.level], draws[..., 3:5])
        room = np.maximum(0, np.array([level.width, level.height]) - edge)
        corner = np.clip(corner, 0, room)
        boxes = np.concatenate([corner * down, (corner + edge) * down], axis=-1).reshape(-1, 4)
        covered = opened.tissue.coverage(boxes).reshape(corner.shape[:2])
        good = covered >= self.sampler.tissue
        best = np.where(good.any(axis=1), good.argmax(axis=1), covered.argmax(axis=1))
        chosen: NDArray[np.int64] = corner[np.arange(len(corner)), best].astype(np.int64)
        return chosen

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


def allowed_mpp(
    wanted: dict[float, float] | tuple[float, float] | float, own: float
) -> dict[float, float] | tuple[float, float] | None:
    """The part of a recipe's mpp that a slide of `own` mpp can give; None if nothing."""
    finest = own / _MAX_UPSAMPLE
    if isinstance(wanted, dict):
        return {m: w for m, w in wanted.items() if m >= finest and w > 0} or None
    if isinstance(wanted, tuple):
        low = max(wanted[0], finest)
        return (low, wanted[1]) if low < wanted[1] else None
    return {wanted: 1.0} if wanted >= finest else None


def hsv_share(tile: TileArray, bounds: HsvFilter) -> float:
    """Share of pixels within the bounds."""
    import cv2

    hsv = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    low = np.array([bounds.h[0], bounds.s[0], bounds.v[0]])
    high = np.array([bounds.h[1], bounds.s[1], bounds.v[1]])
    return float(cv2.inRange(hsv, low, high).mean() / 255)


def _source_px(plan: ReadPlan, down: tuple[Fraction, Fraction], px: int, axis: int) -> int:
    """Pixels of the level under a tile's edge."""
    return max(1, round(float(plan.scale[axis] / down[axis]) * px))


def _read(slide: Slide, plan: ReadPlan, corner: NDArray[np.int64], px: int) -> TileArray:
    """A tile; resampled by area (or cubic where coarser), to the nearest whole source pixel.

    Extraction resamples exactly (`Slide.read`); here a third of a pixel more or less is nothing
    beside the random crop, and OpenCV is several times as fast.
    """
    down = slide.levels[plan.level].downsample
    width, height = (_source_px(plan, down, px, a) for a in (0, 1))
    pixels = slide.read_level(plan.level, int(corner[0]), int(corner[1]), width, height)
    if (width, height) == (px, px):
        return pixels
    import cv2

    how = cv2.INTER_AREA if width > px else cv2.INTER_CUBIC
    resized: TileArray = cv2.resize(pixels, (px, px), interpolation=how)
    return resized


def _snapped(
    corner: NDArray[np.float64],
    edge: NDArray[np.int64],
    block: tuple[int, int],
    draws: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Move corners, by less than a block, so that tiles touch as few blocks as they can."""
    size = np.array(block)
    if (size < 64).any() or (size > 4096).any():
        return corner  # strips or single images: nothing to win
    slack = -(-edge // size) * size - edge
    start = np.round(corner / size) * size
    moved: NDArray[np.float64] = start + np.floor(draws * (slack + 1))
    return moved
