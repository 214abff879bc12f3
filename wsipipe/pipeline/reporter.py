"""What a run tells whoever watches it; silent unless overridden."""

from __future__ import annotations

from collections.abc import Sequence

from wsipipe.embed.engine import Snapshot
from wsipipe.pipeline.planning import SlidePlan

__all__ = ["Reporter"]


class Reporter:
    """Hears of a run's course, in the run's own thread. This one says nothing."""

    def planned(self, plans: Sequence[SlidePlan]) -> None:
        """The slides are known, and what is done of them already."""

    def say(self, message: str) -> None:
        """A sentence worth reading once: a licence, a warning."""

    def slide_over(self, slide_id: str, status: str, detail: str) -> None:
        """A slide is done, empty, failed or abandoned."""

    def tick(self, snapshot: Snapshot) -> None:
        """Several times a second."""

    def closed(self) -> None:
        """The run is over."""
