"""The first stages alone: tissue, and tissue with its tile grid. Resumable, slide by slide.

    OUT/tissue/<slide_id>.geojson, OUT/thumbnails/<slide_id>.jpg
    OUT/tiles/<px>px-<mpp>mpp/<slide_id>.h5    coords, tissue_fraction, quality/<name> on request

A tissue file records what it was made with. One that somebody has edited since is never replaced
unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.embed.drain import Drain
from wsipipe.errors import (
    Drained,
    IdentityMismatchError,
    OutputError,
    SlideError,
    StoreError,
    TissueError,
    WsipipeError,
)
from wsipipe.slide.discover import SlideEntry, find_slides
from wsipipe.store import identity_differences, publish_bytes, remove_stale_temporaries
from wsipipe.store.pseudonyms import check_pseudonyms
from wsipipe.tissue import TissueMask, detect_tissue, tissue_settings, write_tissue_geojson
from wsipipe.tissue.geojson import read_tissue_geojson, recorded

if TYPE_CHECKING:
    from wsipipe.slide import Slide

__all__ = ["StageResult", "StageSettings", "TissueStage", "run_stage"]


@dataclass(frozen=True)
class StageSettings:
    """What the commands `tissue` and `tile` were asked to do.

    Attributes:
        out: Folder of the run.
        tissue: Method as in `detect_tissue`.
        slide_mpp: µm per level-0 pixel for all slides; wins over metadata.
        recompute: Replace files of other settings and edited ones.
        workers: Slides at a time.
    """

    out: Path
    tissue: str = "auto"
    slide_mpp: float | None = None
    recompute: bool = False
    workers: int = 1


@dataclass(frozen=True)
class StageResult:
    """How one slide ended.

    Attributes:
        status: "done", "empty" (no tissue, or no tile), or "failed".
        kept: True where a former run had done it already.
        numbers: What was measured, for the report (tissue_mm2, pen_mm2, tiles, ...).
        error, remedy: Of a failed slide.
    """

    slide_id: str
    path: str
    status: str
    kept: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""

    @property
    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        found = {"slide_id": self.slide_id, "path": self.path, "status": self.status}
        failure = {"error": self.error, "remedy": self.remedy} if self.error else {}
        return {**found, "kept": self.kept, **self.numbers, **failure}


class TissueStage:
    """Finds the tissue of slides and publishes mask and picture."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings

    def check(self, entry: SlideEntry) -> None:
        """Look at what is there before anything starts.

        Raises:
            IdentityMismatchError: A mask of other settings is there, and `recompute` is off.
        """
        known = recorded(self.mask_path(entry))
        if known is None or self.settings.recompute or self._is_source():
            return
        wanted = {"tissue": tissue_settings(self.settings.tissue, slide_id=entry.slide_id)}
        fields = identity_differences({"tissue": known.get("tissue")}, wanted)
        if fields:
            raise IdentityMismatchError(self.mask_path(entry), fields)

    def run(self, entry: SlideEntry) -> StageResult:
        """One slide.

        Raises:
            WsipipeError: It cannot be done.
        """
        kept = self._kept(entry)
        if kept is not None:
            return kept
        with self.open(entry) as slide:
            tissue = self.find(entry, slide)
            self.publish_picture(entry, slide, tissue, None)
        return self._result(entry, tissue.area_mm2, tissue.pen_mm2)

    def open(self, entry: SlideEntry) -> Slide:
        """The slide of an entry."""
        from wsipipe.slide import open_slide

        mpp = entry.mpp if entry.mpp is not None else self.settings.slide_mpp
        return open_slide(entry.path, mpp=mpp)

    def mask_path(self, entry: SlideEntry) -> Path:
        """Where the mask of a slide lies."""
        return self.settings.out / "tissue" / f"{entry.slide_id}.geojson"

    def find(self, entry: SlideEntry, slide: Slide) -> TissueMask:
        """The mask of a slide: the published one where it is right, else a new one, published."""
        path = self.mask_path(entry)
        if self._is_current(entry, slide.fingerprint()):
            return read_tissue_geojson(path, slide)
        self._spare_edits(entry)
        tissue = detect_tissue(slide, self.settings.tissue, slide_id=entry.slide_id)
        if not self._is_source():
            document = write_tissue_geojson(
                tissue, slide_id=entry.slide_id, fingerprint=slide.fingerprint()
            )
            publish_bytes(path, document)
        return tissue

    def publish_picture(
        self, entry: SlideEntry, slide: Slide, tissue: TissueMask, grid: Any
    ) -> None:
        """Draw and publish the thumbnail."""
        from wsipipe.report.thumbnail import draw_thumbnail, thumbnail_jpeg

        picture = draw_thumbnail(slide, tissue, grid, entry.slide_id)
        path = self.settings.out / "thumbnails" / f"{entry.slide_id}.jpg"
        publish_bytes(path, thumbnail_jpeg(picture))

    def _kept(self, entry: SlideEntry) -> StageResult | None:
        from wsipipe.slide import fingerprint

        picture = self.settings.out / "thumbnails" / f"{entry.slide_id}.jpg"
        if self.settings.recompute or not picture.exists():
            return None
        if not self._is_current(entry, fingerprint(entry.path)):
            return None
        known = recorded(self.mask_path(entry)) or {}
        return self._result(entry, known["tissue_mm2"], known["pen_mm2"], kept=True)

    def _is_current(self, entry: SlideEntry, fingerprint: str) -> bool:
        """Whether the published mask is of these settings and of this slide's file."""
        known = recorded(self.mask_path(entry))
        if known is None or self.settings.recompute or self._is_source():
            return False
        wanted = tissue_settings(self.settings.tissue, slide_id=entry.slide_id)
        if identity_differences({"tissue": known.get("tissue")}, {"tissue": wanted}):
            return False
        if known.get("slide_fingerprint") not in ("", fingerprint):
            raise SlideError(
                entry.path,
                "the slide's file has changed since its tissue was found.",
                "Use --recompute to find it anew.",
            )
        return known.get("slide_fingerprint") == fingerprint

    def _spare_edits(self, entry: SlideEntry) -> None:
        path = self.mask_path(entry)
        edited = path.exists() and recorded(path) is None
        if edited and not self.settings.recompute and not self._is_source():
            raise TissueError(
                entry.path,
                f"{path} was edited, or made by another tool.",
                f"Use it with --tissue {path.parent}, or replace it with --recompute.",
            )

    def _is_source(self) -> bool:
        """True where the masks are read from the very folder that they would be written to."""
        given = Path(self.settings.tissue)
        folder = self.settings.out / "tissue"
        return given.is_dir() and folder.is_dir() and given.samefile(folder)

    def _result(
        self, entry: SlideEntry, tissue_mm2: float, pen_mm2: float, *, kept: bool = False
    ) -> StageResult:
        numbers = {"tissue_mm2": round(tissue_mm2, 4), "pen_mm2": round(pen_mm2, 4)}
        status = "done" if tissue_mm2 > 0 else "empty"
        return StageResult(entry.slide_id, entry.path, status, kept, numbers)


def run_stage(
    stage: TissueStage,
    inputs: Sequence[str],
    *,
    drain: Drain | None = None,
    watch: Callable[[StageResult], None] = lambda result: None,
) -> list[StageResult]:
    """Run a stage over slides; one that fails stops no other.

    Args:
        stage: A `TissueStage` or one built on it.
        inputs: As for `find_slides`.
        drain: Asks to stop between slides.
        watch: Told of each result as it comes, from the calling thread.

    Returns:
        One result a slide, in the order of the slides.

    Raises:
        ConfigError, IdentityMismatchError: Refused before anything started.
        OutputError: The output cannot be written.
        Drained: A stop was requested and slides are left.
    """
    drain = drain or Drain()
    # A misspelt method is one mistake, not one a slide.
    tissue_settings(stage.settings.tissue)
    check_pseudonyms(stage.settings.out, None)
    entries = find_slides(list(inputs))
    for entry in entries:
        _check(stage, entry)
    remove_stale_temporaries(stage.settings.out)
    results = []
    for result in _in_order(stage, entries, drain):
        results.append(result)
        watch(result)
    if len(results) < len(entries):
        raise Drained(str(drain.signal_name))
    return results


def _check(stage: TissueStage, entry: SlideEntry) -> None:
    try:
        stage.check(entry)
    except SlideError:
        return  # This slide will fail by itself, with this very reason.


def _in_order(
    stage: TissueStage, entries: Sequence[SlideEntry], drain: Drain
) -> Iterator[StageResult]:
    if stage.settings.workers == 1:
        for entry in entries:
            if drain.requested:
                return
            yield _guarded(stage, entry)
        return
    with ThreadPoolExecutor(stage.settings.workers) as pool:
        waiting = [
            pool.submit(lambda e: None if drain.requested else _guarded(stage, e), entry)
            for entry in entries
        ]
        for future in waiting:
            result = future.result()
            if result is None:
                return
            yield result


def _guarded(stage: TissueStage, entry: SlideEntry) -> StageResult:
    try:
        return stage.run(entry)
    except WsipipeError as error:
        # What is wrong with one slide or its files ends that slide; a full disk, missing weights
        # or a wrong setting would end the next one too.
        if not isinstance(error, SlideError | StoreError) or isinstance(error, OutputError):
            raise
        return StageResult(
            entry.slide_id, entry.path, "failed", error=error.problem, remedy=error.remedy
        )
