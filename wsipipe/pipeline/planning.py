"""What is done and what is not: settings compared with the files, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsipipe.config import ExtractSettings
from wsipipe.errors import IdentityMismatchError, SlideError, StoreError
from wsipipe.pipeline.targets import Target, override_mpp, wanted_identity, wanted_tissue
from wsipipe.slide.files import fingerprint
from wsipipe.store import (
    Records,
    RowRange,
    SlideRecord,
    canonical_json,
    check_file,
    file_stamp,
    identity_differences,
    identity_hash,
    read_attrs,
)
from wsipipe.tissue.geojson import recorded

if TYPE_CHECKING:
    from wsipipe.slide.discover import SlideEntry

__all__ = ["SlidePlan", "feature_path", "plan_slides"]

_FINGERPRINT = "slide_fingerprint"
_PLACE = "fingerprint of the slide"  # stands where a slide's own is put in
_FEW, _THREADS = 64, 8


@dataclass(frozen=True)
class SlidePlan:
    """One slide of a run.

    Attributes:
        todo: Targets whose file is to be made.
        done: Targets whose file is whole and of the wanted identity.
        statuses: Of the files of `done`: "done", "empty", or "" where no record says it.
        error: Why the slide cannot be taken up; it then counts as failed.
        rows: Only these rows are made, for another process to publish; None = all.
        ranges: So many processes make its rows; with `rows` None, it is published when all have.
    """

    entry: SlideEntry
    todo: tuple[Target, ...] = ()
    done: tuple[Target, ...] = ()
    statuses: tuple[str, ...] = ()
    error: Exception | None = None
    rows: RowRange | None = None
    ranges: int = 1

    @property
    def key(self) -> str:
        """What a lease on this piece of work is called."""
        slide_id = self.entry.slide_id
        return slide_id if self.rows is None else f"{slide_id}~{self.rows}"


def feature_path(out: Path, target: Target, slide_id: str) -> Path:
    """Where the features of a slide lie."""
    return out / "features" / target.folder / f"{slide_id}.h5"


def plan_slides(
    settings: ExtractSettings, targets: Sequence[Target], entries: Sequence[SlideEntry]
) -> list[SlidePlan]:
    """Compare what is asked for with what is there.

    Raises:
        IdentityMismatchError: A file was made with other settings, and `recompute` is off. All
            differing fields of the first such file are named.
    """
    identities = _Identities(settings)

    def plan(entry: SlideEntry) -> SlidePlan:
        return _Planner(settings, identities, targets, entry).plan()

    if len(entries) < _FEW:
        return [plan(entry) for entry in entries]
    # Most of the time goes by waiting for the file server, and for hashes: neither holds the lock.
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            return list(pool.map(plan, entries))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Identities:
    """The wanted identities as canonical JSON. Slides of a run differ in little but their
    fingerprint, so the text is made once and that is put in."""

    def __init__(self, settings: ExtractSettings) -> None:
        self._settings = settings
        masks = (settings.tissue, settings.roi)
        self._alike = not any(mask is not None and Path(mask).is_dir() for mask in masks)
        self._texts: dict[tuple[str, float | None], str] = {}

    def text(self, target: Target, entry: SlideEntry, fingerprint: str) -> str:
        """Canonical JSON of what `target`'s file of the slide should be."""
        settings = self._settings
        if not self._alike:
            return canonical_json(wanted_identity(settings, target, entry, fingerprint))
        key = (target.folder, override_mpp(settings, entry))
        known = self._texts.get(key)
        if known is None:
            known = canonical_json(wanted_identity(settings, target, entry, _PLACE))
            self._texts[key] = known
        return known.replace(_PLACE, fingerprint)


@dataclass
class _Planner:
    settings: ExtractSettings
    identities: _Identities
    targets: Sequence[Target]
    entry: SlideEntry
    _fingerprint: str = ""

    def plan(self) -> SlidePlan:
        record = Records(self.settings.out).read(self.entry.slide_id)
        todo: list[Target] = []
        done: list[Target] = []
        statuses: list[str] = []
        try:
            for target in self.targets:
                status = self._status(target, record)
                if status is None:
                    todo.append(target)
                else:
                    done.append(target)
                    statuses.append(status)
            if todo:
                self._check_outline()
        except (SlideError, StoreError) as error:
            if isinstance(error, IdentityMismatchError) and not _only_the_slide(error):
                raise
            return SlidePlan(self.entry, tuple(self.targets), error=error)
        return SlidePlan(self.entry, tuple(todo), tuple(done), tuple(statuses))

    def _status(self, target: Target, record: SlideRecord | None) -> str | None:
        """None if the file is to be made; else as in `SlidePlan.statuses`."""
        path = feature_path(self.settings.out, target, self.entry.slide_id)
        stamp = file_stamp(path)
        if not stamp:
            return None
        wanted = self.identities.text(target, self.entry, self._print_now(path))
        known = record.results.get(target.folder) if record is not None else None
        if known is not None and known.status not in ("done", "empty"):
            known = None
        if known is not None and known.stamp == stamp and known.identity == identity_hash(wanted):
            return known.status
        check = check_file(path, wanted)
        if check.state == "done":
            return known.status if known is not None else ""
        if not self.settings.recompute and check.state != "missing":
            check.raise_if_unusable()
        return None

    def _check_outline(self) -> None:
        """Another encoder's features were made within the outline that is there: it stays."""
        settings = self.settings
        path = settings.out / "tissue" / f"{self.entry.slide_id}.geojson"
        # Masks of one's own are held to their bytes already.
        known = None if settings.recompute or Path(settings.tissue).is_dir() else recorded(path)
        if known is None:
            return
        wanted = {"tissue": wanted_tissue(settings, self.entry)}
        fields = identity_differences({"tissue": known.get("tissue")}, wanted)
        if fields:
            raise IdentityMismatchError(path, fields)

    def _print_now(self, path: Path) -> str:
        """The slide's fingerprint; the recorded one where the slide itself is not at hand."""
        if not self._fingerprint:
            try:
                self._fingerprint = fingerprint(self.entry.path)
            except SlideError:
                # Features outlive slides: what is whole stays done when the slide was archived.
                return str(read_attrs(path).get(_FINGERPRINT, ""))
        return self._fingerprint


def _only_the_slide(error: IdentityMismatchError) -> bool:
    return set(error.fields) == {_FINGERPRINT}
