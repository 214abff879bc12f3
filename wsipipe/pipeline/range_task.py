"""A range of a slide's rows, made for whoever publishes the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wsipipe.embed.outcome import Status
from wsipipe.pipeline.slide_task import SlideTask
from wsipipe.slide import Slide
from wsipipe.store import SlideRecord, check_file
from wsipipe.tissue import TissueMask

__all__ = ["RangeTask"]


@dataclass(eq=False)
class RangeTask(SlideTask):
    """See `wsipipe.pipeline.ranges`. Publishes nothing: its rows stay in partial files, and its
    record is its own, as several processes are at the slide."""

    def _begin_record(self, encoders: Sequence[str]) -> SlideRecord:
        assert self.run.range_records is not None
        return self.run.range_records.begin(self.plan.key, "", encoders)

    def _publish_outline(self, slide: Slide, tissue: TissueMask) -> None:
        """The slide's own task does."""

    def accompany(self) -> None:
        """The slide's own task draws the picture."""

    def finish(self) -> None:
        """Leave the rows to the slide's own task."""
        if self._is_published():
            self.abandon(keep=False)
            return
        # Quality first: that the features' file is whole says that all is there.
        for quality in self._quality.values():
            quality.close(keep=True, whole=True)
        for _, sinks in self._views:
            for sink in sinks:
                sink.close(keep=True, whole=True)

    def _is_published(self) -> bool:
        """Whether a run that does not cut has done the slide meanwhile."""
        sinks = [sink for _, sinks in self._views for sink in sinks]
        return all(check_file(sink.final, sink.identity).state == "done" for sink in sinks)

    def end_record(self, status: Status) -> None:
        """Record how it ended."""
        assert self.run.range_records is not None
        if self.record is not None:
            self.run.range_records.finish(self.record, [], state=status)
            self.record = None
