"""One slide through the stages: open, tissue, grid, plan; then, with all rows in, its files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsipipe.config import ExtractSettings
from wsipipe.embed.tiles import plan_jobs
from wsipipe.embed.trace import NO_TRACE, Trace
from wsipipe.embed.work import View
from wsipipe.errors import ReadError, WsipipeError
from wsipipe.pipeline.outputs import feature_meta, publish_outline, publish_picture
from wsipipe.pipeline.planning import SlidePlan, feature_path
from wsipipe.pipeline.privacy import mask_id
from wsipipe.pipeline.quality_rows import QualityRows
from wsipipe.pipeline.retry import patiently
from wsipipe.pipeline.rows import RowSink
from wsipipe.pipeline.targets import (
    Target,
    override_mpp,
    quality_filter,
    wanted_identity,
    wants_quality,
)
from wsipipe.slide import Slide, open_slide
from wsipipe.slide.staging import Stage
from wsipipe.store import (
    FeatureFile,
    Records,
    SlideRecord,
    SlideResult,
    file_stamp,
    identity_hash,
    write_features,
)
from wsipipe.tiling import TileGrid, make_grid, plan_together
from wsipipe.tissue import TissueMask, detect_tissue
from wsipipe.tissue.quality import slide_quality
from wsipipe.tissue.roi import read_roi
from wsipipe.types import Rows, TileArray

if TYPE_CHECKING:
    from wsipipe.encoders import Encoder

__all__ = ["RunContext", "SlideTask"]

_JOB_BYTES = 16 << 20  # pixels in one read job
_BATCH = 32  # tiles; jobs are whole multiples, so that small batches need no copies at seams
PARTIAL_FOLDER = ".partial"
_T = TypeVar("_T")


@dataclass(frozen=True)
class RunContext:
    """What all slides of a run share.

    Attributes:
        targets: Position = the encoder's index in the engine.
        batch_size: Asked when a file is written, for the record.
        stage: Where slides are copied to before they are read.
        trace: Told of each step.
        range_records: Who is at which range of a slide's rows, where slides are cut.
    """

    settings: ExtractSettings
    targets: Sequence[Target]
    encoders: Sequence[Encoder]
    records: Records
    batch_size: Callable[[], int]
    stage: Stage | None = None
    trace: Trace = NO_TRACE
    range_records: Records | None = None


@dataclass(eq=False)
class SlideTask:
    """See `wsipipe.embed.work.Task`.

    Attributes:
        results: How the slide ended for each target; filled by `finish`.
    """

    plan: SlidePlan
    run: RunContext
    stage: str = "open"
    step_since: float = 0.0
    results: list[SlideResult] = field(default_factory=list)
    tiles: int = 0
    picture_bad: int = 0  # blocks of the thumbnail's level that cannot be decoded
    timings: dict[str, float] = field(default_factory=dict)
    _slide: Slide | None = None
    _tissue: TissueMask | None = None
    _views: list[tuple[View, list[RowSink]]] = field(default_factory=list)
    _quality: dict[View, QualityRows] = field(default_factory=dict)
    _staged: str = ""  # where the copy lies
    _bad: int = 0
    _begun: float = 0.0

    def __post_init__(self) -> None:
        self.slide_id = self.plan.entry.slide_id
        self.path = self.plan.entry.path
        self.record: SlideRecord | None = None

    @property
    def seconds(self) -> float:
        """Since the slide was opened."""
        return time.monotonic() - self._begun if self._begun else 0.0

    def prepare(self) -> Sequence[View]:
        """Open, find tissue, lay the grid, plan the reads; publish the outline."""
        self._begun = time.monotonic()
        self.record = self._begin_record([target.folder for target in self.plan.todo])
        slide = self._open()
        tissue = self._step("tissue", lambda: self._find_tissue(slide))
        self._tissue = tissue
        views = self._step("grid", lambda: self._lay_grids(slide, tissue))
        self.tiles = sum(len(view.grid) for view in views)
        for view, sinks in self._views:
            # What former runs and other processes could not read counts: else a kill would reset
            # what `max_bad_tiles` adds up.
            self._count_bad(view, np.arange(len(view.grid)), sinks[0].status)
        return views

    def _begin_record(self, encoders: Sequence[str]) -> SlideRecord:
        return self.run.records.begin(self.slide_id, self.path, encoders)

    def accompany(self) -> None:
        """Publish the picture; tiles are read meanwhile."""
        self._step("thumbnail", lambda: self._draw(self._views[0][0].grid))

    def _draw(self, grid: TileGrid) -> None:
        assert self._slide is not None
        assert self._tissue is not None
        self.picture_bad = publish_picture(
            self.run.settings.out, self.slide_id, self._slide, self._tissue, grid
        )

    def _open(self) -> Slide:
        settings, path = self.run.settings, self.path
        if self.run.stage is not None:
            path = self._step("stage", lambda: self._fetch(self.path))
        mpp = override_mpp(settings, self.plan.entry)
        slide = self._step(
            "open", lambda: patiently(lambda: open_slide(path, mpp=mpp, icc=settings.icc))
        )
        self._slide = slide
        assert self.record is not None
        self.record.width, self.record.height = slide.dimensions
        self.record.mpp, self.record.mpp_source = slide.mpp, slide.mpp_source
        return slide

    def _fetch(self, path: str) -> str:
        assert self.run.stage is not None
        self._staged = self.run.stage.fetch(path)
        return self._staged

    def said_of_the_slide(self, error: Exception) -> Exception:
        """The error with the slide's own path in place of its copy's, which will be gone."""
        if self._staged and isinstance(error, WsipipeError):
            error.problem = error.problem.replace(self._staged, self.path)
            error.remedy = error.remedy.replace(self._staged, self.path)
        return error

    def _find_tissue(self, slide: Slide) -> TissueMask:
        method = self.run.settings.tissue
        tissue = detect_tissue(slide, method, slide_id=mask_id(method, self.plan.entry))
        self._publish_outline(slide, tissue)
        assert self.record is not None
        self.record.tissue_mm2 = tissue.area_mm2
        return tissue

    def _publish_outline(self, slide: Slide, tissue: TissueMask) -> None:
        publish_outline(self.run.settings, self.slide_id, self.path, slide, tissue)

    def _lay_grids(self, slide: Slide, tissue: TissueMask) -> list[View]:
        """One view for each tile size and mpp; encoders that share both share the pixels."""
        settings = self.run.settings
        roi = None
        if settings.roi is not None:
            classes = settings.roi_class or ()
            own = mask_id(settings.roi, self.plan.entry)
            roi = read_roi(settings.roi, slide, slide_id=own, classes=classes)
        shared: dict[tuple[int, float], list[Target]] = {}
        for target in self.plan.todo:
            shared.setdefault((target.tile_px, target.mpp), []).append(target)
        views = []
        for (tile_px, mpp), targets in shared.items():
            grid = make_grid(
                slide,
                None if settings.tissue == "none" else tissue,
                tile_px=tile_px,
                mpp=mpp,
                overlap=settings.overlap,
                min_tissue=settings.min_tissue,
                mpp_tolerance=settings.mpp_tolerance,
                max_upsample=settings.max_upsample,
                roi=roi,
            )
            views.append(self._view(slide, grid, targets))
        if len(views) > 1:
            together = plan_together([view.grid for view in views], [view.jobs for view in views])
            for view, jobs in zip(views, together, strict=True):
                view.jobs = jobs
        return views

    def _view(self, slide: Slide, grid: TileGrid, targets: Sequence[Target]) -> View:
        """The grid for the encoders that share it; what a former run has done is left out."""
        sinks = {self.run.targets.index(t): self._sink(t, slide, grid) for t in targets}
        missing = np.logical_or.reduce([sink.missing for sink in sinks.values()])
        quality = None
        if wants_quality(self.run.settings):
            quality = self._quality_rows(grid, next(iter(sinks.values())))
            missing = quality.missing | (missing & quality.kept)
        if self.plan.rows is not None:
            missing &= self.plan.rows.mask(len(grid))
        jobs = _jobs(slide, grid, missing)
        view = View(slide, grid, jobs, sinks, None if missing.all() else missing)
        self._views.append((view, list(sinks.values())))
        if quality is not None:
            self._quality[view] = quality
        return view

    def _quality_rows(self, grid: TileGrid, sink: RowSink) -> QualityRows:
        return QualityRows(
            len(grid),
            grid.mpp_effective,
            quality_filter(self.run.settings),
            final=sink.final,
            folder=self.run.settings.out / PARTIAL_FOLDER,
            identity=sink.identity,
            row_range=self.plan.rows,
            made_by=_places(grid),
        )

    def _sink(self, target: Target, slide: Slide, grid: TileGrid) -> RowSink:
        settings = self.run.settings
        encoder = self.run.encoders[self.run.targets.index(target)]
        return RowSink(
            target,
            feature_path(settings.out, target, self.slide_id),
            folder=settings.out / PARTIAL_FOLDER,
            identity=wanted_identity(settings, target, self.plan.entry, slide.fingerprint()),
            rows=len(grid),
            dtype=settings.dtype,
            row_range=self.plan.rows,
            made_by=f"{encoder.precision} {encoder.backend} {_places(grid)}",
        )

    def _step(self, stage: str, work: Callable[[], _T]) -> _T:
        begun = time.monotonic()
        self.stage, self.step_since = stage, begun
        with self.run.trace.span(stage, slide=self.slide_id):
            result = work()
        self.timings[stage] = round(time.monotonic() - begun, 3)
        return result

    def saw(
        self, view: View, rows: Rows, tiles: TileArray, status: NDArray[np.uint8]
    ) -> NDArray[np.bool_] | None:
        """Count unreadable tiles; measure the others, and leave out those that do not pass.

        Raises:
            ReadError: They are more than the run accepts.
        """
        self._count_bad(view, rows, status)
        quality = self._quality.get(view)
        return None if quality is None else quality.measure(rows, tiles, status)

    def _count_bad(self, view: View, rows: Rows, status: NDArray[np.uint8]) -> None:
        if not status.any():
            return
        self._bad += int(np.count_nonzero(status))
        limit = self.run.settings.max_bad_tiles
        if self._bad > limit * self.tiles:
            x, y = view.grid.coords[rows[np.argmax(status)]].tolist()
            raise ReadError(
                self.path,
                f"{self._bad} of {self.tiles} tiles cannot be read so far, more than "
                f"{limit:.2%} (one is at x={x}, y={y})",
            )

    def flush_if_due(self) -> None:
        """Bring rows to the disk that have waited for long."""
        for _, sinks in self._views:
            for sink in sinks:
                sink.flush_if_due()
        for quality in self._quality.values():
            quality.flush_if_due()

    def finish(self) -> None:
        """Publish the feature files and the record."""
        assert self._slide is not None
        assert self.record is not None
        for view, sinks in self._views:
            kept = self._kept(view)
            if kept is not None and view is self._views[0][0]:
                self._draw(view.grid.pick(kept))
            for sink in sinks:
                self._publish(self._slide, view, kept, sink)
            if (quality := self._quality.get(view)) is not None:
                quality.close(keep=False)
        self.run.records.finish(self.record, self.results, timings=self.timings)

    def _kept(self, view: View) -> NDArray[np.bool_] | None:
        """(N,) bool, the tiles that passed; None where all did."""
        kept = self._quality[view].kept if view in self._quality else None
        return None if kept is None or kept.all() else kept

    def _publish(
        self, slide: Slide, view: View, kept: NDArray[np.bool_] | None, sink: RowSink
    ) -> None:
        grid, status, features = view.grid, sink.status, sink.features()
        quality = self._quality[view].values() if view in self._quality else {}
        if kept is not None:
            grid, status, features = grid.pick(kept), status[kept], features[kept]
            quality = {name: values[kept] for name, values in quality.items()}
        means = {k: round(v, 6) for k, v in slide_quality(quality).items() if np.isfinite(v)}
        encoder = self.run.encoders[self.run.targets.index(sink.target)]
        file = FeatureFile(
            features=features,
            coords=grid.coords,
            tissue_fraction=grid.tissue_fraction,
            tile_status=status,
            meta=feature_meta(
                self.slide_id, slide, grid, sink, encoder, self.run.batch_size(), means
            ),
            quality=quality,
        )
        write_features(sink.final, file)
        sink.close(keep=False)
        empty = "no tile with enough tissue" if kept is None else "no tile passed the filters"
        self.results.append(
            SlideResult(
                encoder=sink.target.folder,
                status="done" if len(grid) else "empty",
                tiles=len(grid),
                bad_tiles=int(np.count_nonzero(status)),
                precision=encoder.precision,
                seconds=round(self.seconds, 3),
                identity=identity_hash(sink.identity),
                stamp=file_stamp(sink.final),
                reason="" if len(grid) else empty,
                quality=means,
            )
        )

    def abandon(self, *, keep: bool) -> None:
        """Not finished; with `keep` the rows that are in stay for a next run."""
        for _, sinks in self._views:
            for sink in sinks:
                sink.close(keep=keep)
        for quality in self._quality.values():
            quality.close(keep=keep)

    def close(self) -> None:
        """Close the slide; remove its copy."""
        if self._slide is not None:
            self._slide.close()
        if self._staged and self.run.stage is not None:
            self.run.stage.release(self.path)


def _places(grid: TileGrid) -> str:
    """Tissue found by a network may differ by a tile between devices: rows are not mixed then."""
    return hashlib.sha256(grid.coords.tobytes()).hexdigest()[:16]


def _jobs(slide: Slide, grid: TileGrid, missing: NDArray[np.bool_]) -> list[Any]:
    """Read jobs that hold a missing row."""
    if not len(grid):
        return []
    per_job = min(256, max(1, _JOB_BYTES // (grid.tile_px**2 * 3)))
    if per_job > _BATCH:
        per_job -= per_job % _BATCH
    jobs = plan_jobs(slide, grid, max_tiles=per_job)
    return [job for job in jobs if missing[job.rows].any()]
