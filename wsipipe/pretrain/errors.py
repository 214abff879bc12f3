"""What can go wrong while an encoder trains."""

from __future__ import annotations

from pathlib import Path

from wsipipe.errors import WsipipeError

__all__ = ["CollapseError", "DivergedError", "TrainingError"]


class TrainingError(WsipipeError):
    """Training stopped. `checkpoint` is the last good checkpoint, or None."""

    def __init__(self, problem: str, remedy: str = "", checkpoint: Path | None = None) -> None:
        kept = f" The last good checkpoint is {checkpoint}." if checkpoint else ""
        super().__init__(f"{problem}{kept}", remedy)
        self.checkpoint = checkpoint


class DivergedError(TrainingError):
    """The loss is not a number any more."""


class CollapseError(TrainingError):
    """The features have become (nearly) the same for every tile."""
