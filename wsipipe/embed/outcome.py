"""What the engine says of its run: how tasks ended, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsipipe.embed.work import Task

__all__ = ["Listener", "Outcome", "Snapshot", "Status"]

Status = Literal["done", "failed", "abandoned"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` is what failed it, in `stage`; None otherwise."""

    task: Task
    status: Status
    stage: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Snapshot:
    """Where the run stands; times are sums over streams, in seconds."""

    slides_over: int
    tiles: int
    tiles_ahead: int  # of prepared slides, not embedded yet
    busy_s: float
    waiting_s: float
    batch_size: int

    @property
    def waiting(self) -> float:
        """Share of its time that the device waited on reading, 0 to 1."""
        return self.waiting_s / ((self.waiting_s + self.busy_s) or 1.0)


class Listener:
    """Hears what happens, in the caller's thread. Override what is of interest."""

    def began(self, task: Task) -> None:
        """A task's preparation has begun."""

    def over(self, outcome: Outcome) -> None:
        """A task is over. May raise, which ends the run."""

    def tick(self, snapshot: Snapshot) -> None:
        """Several times a second."""
