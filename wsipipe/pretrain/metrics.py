"""`metrics.jsonl`, one object a line, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsipipe.errors import OutputError
from wsipipe.store import publish_text

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends metrics of steps; on resuming, lines of steps that are trained again are dropped.

    All methods raise OutputError where the disk is full.

    Args:
        out: Folder of the run.
        first_step: Step at which this process starts.
    """

    def __init__(self, out: Path, first_step: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "metrics.jsonl"
        kept = []
        if first_step and self.path.is_file():
            # A killed writer may leave half a line at the end: the step check drops it too.
            kept = [x for x in self.path.read_text("utf-8").splitlines() if _step(x) < first_step]
        publish_text(self.path, "".join(f"{line}\n" for line in kept))
        self.file = self.path.open("a", encoding="utf-8")
        with self._disk():
            self.board = _board(out, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: {"step": ..., name: value, ...}."""
        rounded = {k: float(v) for k, v in values.items()}
        with self._disk():
            self.file.write(json.dumps({"step": step, **rounded}) + "\n")
            if self.board is not None:
                for name, value in rounded.items():
                    self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Let readers see everything."""
        with self._disk():
            self.file.flush()
            if self.board is not None:
                self.board.flush()

    def close(self) -> None:
        """Close the files."""
        with self._disk():
            self.file.close()
            if self.board is not None:
                self.board.close()

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """A full disk ends a run; TensorBoard's writer reports it here too, from its own thread."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                self.path, f"cannot be written ({error}).", "Free some space, and run again."
            ) from error


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _board(out: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=first_step or None)
