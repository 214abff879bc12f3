"""What is done and what is not: settings compared with the files, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.config import ExtractSettings
from wsipipe.errors import IdentityMismatchError, SlideError, StoreError
from wsipipe.pipeline.targets import Target, wanted_identity
from wsipipe.slide.files import fingerprint
from wsipipe.store import check_file, read_attrs

if TYPE_CHECKING:
    from wsipipe.slide.discover import SlideEntry

__all__ = ["SlidePlan", "feature_path", "plan_slides"]

_FINGERPRINT = "slide_fingerprint"


@dataclass(frozen=True)
class SlidePlan:
    """One slide of a run.

    Attributes:
        todo: Targets whose file is to be made.
        done: Targets whose file is whole and of the wanted identity.
        error: Why the slide cannot be taken up; it then counts as failed.
    """

    entry: SlideEntry
    todo: tuple[Target, ...] = ()
    done: tuple[Target, ...] = ()
    error: Exception | None = None


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
    return [_Planner(settings, targets, entry).plan() for entry in entries]


@dataclass
class _Planner:
    settings: ExtractSettings
    targets: Sequence[Target]
    entry: SlideEntry
    _fingerprint: list[str] = field(default_factory=list)

    def plan(self) -> SlidePlan:
        todo: list[Target] = []
        done: list[Target] = []
        try:
            for target in self.targets:
                (done if self._is_done(target) else todo).append(target)
        except (SlideError, StoreError) as error:
            if isinstance(error, IdentityMismatchError) and not _only_the_slide(error):
                raise
            return SlidePlan(self.entry, tuple(self.targets), (), error)
        return SlidePlan(self.entry, tuple(todo), tuple(done))

    def _is_done(self, target: Target) -> bool:
        path = feature_path(self.settings.out, target, self.entry.slide_id)
        if not path.exists():
            return False
        check = check_file(path, self._wanted(target, path))
        if check.state == "done":
            return True
        if self.settings.recompute or check.state == "missing":
            return False
        check.raise_if_unusable()
        return False

    def _wanted(self, target: Target, path: Path) -> dict[str, Any]:
        return wanted_identity(self.settings, target, self.entry, self._print_now(path))

    def _print_now(self, path: Path) -> str:
        """The slide's fingerprint; the recorded one where the slide itself is not at hand."""
        if not self._fingerprint:
            try:
                self._fingerprint.append(fingerprint(self.entry.path))
            except SlideError:
                # Features outlive slides: what is whole stays done when the slide was archived.
                return str(read_attrs(path).get(_FINGERPRINT, ""))
        return self._fingerprint[0]


def _only_the_slide(error: IdentityMismatchError) -> bool:
    return set(error.fields) == {_FINGERPRINT}
