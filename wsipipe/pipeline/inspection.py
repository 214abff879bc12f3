"""What a slide is and what a run over it would take; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wsipipe.config import ExtractSettings
from wsipipe.embed.tiles import plan_jobs, read_job
from wsipipe.errors import MissingMppError, WsipipeError
from wsipipe.pipeline.targets import Target, override_mpp
from wsipipe.slide import Slide, open_slide
from wsipipe.tiling import TileGrid, make_grid
from wsipipe.tissue import TissueMask, detect_tissue

if TYPE_CHECKING:
    from wsipipe.slide.discover import SlideEntry

__all__ = ["Probe", "SlideFacts", "inspect_slide"]

_PROBE_TILES = 16
_PROBE_REPEATS = 3


@dataclass(frozen=True)
class SlideFacts:
    """One slide as `inspect` reports it. What is unknown is None or empty.

    Attributes:
        levels: [width, height, down-sample in x, in y] of each.
        mpp: (x, y) µm per level-0 pixel.
        tiles: Encoder's folder -> tiles to come.
        read: Encoder's folder -> how they are read (native, area, interpolate), from which level.
        bytes: Of the feature files to come.
        read_s: Seconds of one core that reading takes, (low, high), measured on a few tiles.
        error: Why a run would fail on this slide.
    """

    slide_id: str
    path: str
    reader: str = ""
    reader_reason: str = ""
    vendor: str | None = None
    size: tuple[int, int] | None = None
    levels: tuple[tuple[float, float, float, float], ...] = ()
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    mpp_notes: tuple[str, ...] = ()
    bounds: tuple[int, int, int, int] | None = None
    tissue_mm2: float | None = None
    tiles: dict[str, int] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    read_s: tuple[float, float] | None = None
    error: str | None = None


def inspect_slide(
    settings: ExtractSettings, targets: Sequence[Target], entry: SlideEntry
) -> SlideFacts:
    """Open, measure, plan. Errors of the slide are in the result, not raised."""
    facts: dict[str, Any] = {"slide_id": entry.slide_id, "path": str(entry.path)}
    try:
        mpp = override_mpp(settings, entry)
        with open_slide(entry.path, mpp=mpp, icc=settings.icc) as slide:
            facts.update(_about(slide))
            facts.update(_planned(settings, targets, slide, entry.slide_id))
    except WsipipeError as error:
        facts["error"] = str(error)
    return SlideFacts(**facts)


def _about(slide: Slide) -> dict[str, Any]:
    try:
        mpp = (float(slide.mpp_xy[0]), float(slide.mpp_xy[1]))
    except MissingMppError:
        mpp = None
    bounds = slide.bounds
    return {
        "reader": slide.reader,
        "reader_reason": slide.reader_reason,
        "vendor": slide.vendor,
        "size": slide.dimensions,
        "levels": tuple(
            (level.width, level.height, *(round(float(d), 4) for d in level.downsample))
            for level in slide.levels
        ),
        "mpp": mpp,
        "mpp_source": slide.mpp_source,
        "mpp_notes": slide.mpp_notes,
        "bounds": bounds and (bounds.x, bounds.y, bounds.width, bounds.height),
    }


def _planned(
    settings: ExtractSettings, targets: Sequence[Target], slide: Slide, slide_id: str
) -> dict[str, Any]:
    tissue = detect_tissue(slide, settings.tissue, slide_id=slide_id)
    grids = {t.folder: lay_grid(settings, slide, tissue, t) for t in targets}
    width = np.dtype(settings.dtype).itemsize
    low = high = 0.0
    for grid in {(g.tile_px, g.mpp): g for g in grids.values()}.values():
        fast, slow = _reading_s(slide, grid)
        low, high = low + fast, high + slow
    return {
        "tissue_mm2": round(tissue.area_mm2, 4),
        "tiles": {name: len(grid) for name, grid in grids.items()},
        "read": {n: f"{g.read.mode} from level {g.read.level}" for n, g in grids.items()},
        # coords, tissue_fraction and tile_status are 21 bytes a tile.
        "bytes": sum(len(grids[t.folder]) * (t.card.dim * width + 21) for t in targets),
        "read_s": (round(low, 2), round(high, 2)),
    }


def lay_grid(
    settings: ExtractSettings, slide: Slide, tissue: TissueMask, target: Target
) -> TileGrid:
    """The grid that a run with these settings lays for one encoder."""
    return make_grid(
        slide,
        None if settings.tissue == "none" else tissue,
        tile_px=target.tile_px,
        mpp=target.mpp,
        overlap=settings.overlap,
        min_tissue=settings.min_tissue,
        mpp_tolerance=settings.mpp_tolerance,
        max_upsample=settings.max_upsample,
    )


def _reading_s(slide: Slide, grid: TileGrid) -> tuple[float, float]:
    """Seconds of one core to read all tiles, (low, high), from a few jobs spread over the slide."""
    jobs = plan_jobs(slide, grid, max_tiles=_PROBE_TILES)
    if not jobs:
        return 0.0, 0.0
    chosen = {round(i * (len(jobs) - 1) / _PROBE_REPEATS) for i in range(_PROBE_REPEATS + 1)}
    each = []
    for index in sorted(chosen):
        begun = time.perf_counter()
        read_job(slide, grid, jobs[index])
        each.append((time.perf_counter() - begun) / len(jobs[index].rows))
    return min(each) * len(grid), max(each) * len(grid)


@dataclass(frozen=True)
class Probe:
    """How fast an encoder is here: tiles a second over all processors, (low, high)."""

    device: str
    precision: str
    rate: tuple[float, float]


def probe_encoder(settings: ExtractSettings, target: Target) -> Probe:
    """Time an encoder on noise, as many forwards side by side as a run would use.

    Raises:
        GatedEncoderError, WeightsError: The weights cannot be had.
    """
    from concurrent.futures import ThreadPoolExecutor

    from wsipipe.embed.forward import prepare_torch
    from wsipipe.embed.resources import available_cpus, share_threads
    from wsipipe.encoders import create_encoder

    encoder = create_encoder(
        target.name,
        weights=settings.weights,
        device=settings.device,
        precision=settings.precision,
    )
    on_cpu = encoder.device.type == "cpu"
    threads = share_threads(available_cpus(), on_cpu=on_cpu)
    prepare_torch(threads.intra)
    encoder.run_side_by_side(threads.streams)
    size = settings.batch_size if isinstance(settings.batch_size, int) else 8 if on_cpu else 64
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (size, target.tile_px, target.tile_px, 3), np.uint8)
    rates = []
    with ThreadPoolExecutor(threads.streams) as pool:
        for attempt in range(_PROBE_REPEATS + 1):
            begun = time.perf_counter()
            handles = list(pool.map(encoder.start, [tiles] * threads.streams))
            for handle in handles:
                handle.result()
            if attempt:  # the first one warms up
                rates.append(size * threads.streams / (time.perf_counter() - begun))
    return Probe(str(encoder.device), encoder.precision, (min(rates), max(rates)))
