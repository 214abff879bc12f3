"""`metrics.jsonl`, one object a line, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends metrics of steps; on resuming, lines of steps that are trained again are dropped.

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
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _board(out, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line: {"step": ..., name: value, ...}."""
        rounded = {k: float(v) for k, v in values.items()}
        self.file.write(json.dumps({"step": step, **rounded}) + "\n")
        if self.board is not None:
            for name, value in rounded.items():
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Let readers see everything."""
        self.file.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.board is not None:
            self.board.close()


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
