"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsipipe.errors import Drained

__all__ = ["RunDrained", "RunResult"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended, slide by slide.

    Attributes:
        out: Folder of the run.
        done: Ids of slides whose files are all there (made now or before), with tiles.
        empty: Ids of slides without enough tissue; they are done, with a file of no rows.
        failed: Ids of slides that failed; `reasons` says why.
        pending: Ids of slides that were not taken up (drained, stopped, or in other hands).
        reasons: Slide id -> what happened and what to do.
        tiles: Tiles embedded by this run.
        seconds: Wall time of this run.
    """

    out: Path
    done: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    tiles: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """As the command line ends: 0, or 1 where a slide failed or was left."""
        return 1 if self.failed or self.pending else 0


class RunDrained(Drained):
    """A run that was asked to stop, with slides left. `result` says how far it came."""

    def __init__(self, signal_name: str, result: RunResult | None = None) -> None:
        super().__init__(signal_name)
        self.result = result
