"""Where rows of one slide gather, from any thread, until their file is published."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import EncoderError
from wsipipe.pipeline.targets import Target
from wsipipe.store import PartialRows, RowRange
from wsipipe.types import FloatArray, Rows

__all__ = ["OpenRows", "RowSink"]


class OpenRows:
    """A `PartialRows` that threads write to until one of them closes it; later rows are let go."""

    def __init__(self, partial: PartialRows) -> None:
        self._partial = partial
        self._lock = threading.Lock()
        self._open = True

    def flush_if_due(self) -> None:
        """Bring rows to the disk that have waited for long."""
        with self._lock:
            if self._open:
                self._partial.flush_if_due()

    def close(self, *, keep: bool, whole: bool = False) -> None:
        """No more rows; with `keep` those that are in stay for a next run, or, where they are
        `whole` as a range of the slide's rows, for the process that publishes them."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            if keep:
                self._partial.close(whole=whole)
            else:
                self._partial.discard()

    def _keep(self, rows: Rows, values: NDArray[np.float32], status: NDArray[np.uint8]) -> None:
        with self._lock:
            if self._open:
                self._partial.put(rows, values, status)


class RowSink(OpenRows):
    """Checks one encoder's rows and keeps them for the file, or for a killed run's successor.

    Args:
        final: The feature file to come.
        folder: Where the partial file lies, should the slide take long enough to need one.
        identity: Identity of the final file.
        rows: N, number of tiles.
        dtype: Stored dtype.
        row_range: The rows that are made here; None = all.
        made_by: See `PartialRows`.
    """

    def __init__(
        self,
        target: Target,
        final: Path,
        *,
        folder: Path,
        identity: dict[str, Any],
        rows: int,
        dtype: str,
        row_range: RowRange | None = None,
        made_by: str = "",
    ) -> None:
        self.target, self.final, self.identity = target, final, identity
        self._dtype = np.dtype(dtype)
        super().__init__(
            PartialRows(
                final,
                folder=folder,
                identity=identity,
                rows=rows,
                dim=target.card.dim,
                dtype=dtype,
                row_range=row_range,
                made_by=made_by,
            )
        )

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(N,) bool, True for rows that are still to come."""
        return ~self._partial.done

    @property
    def status(self) -> NDArray[np.uint8]:
        """(N,) uint8, 0 good, 1 unreadable."""
        return self._partial.tile_status

    def put(self, rows: Rows, features: NDArray[np.float32], status: NDArray[np.uint8]) -> None:
        """Keep features (n, D) of `rows` (n,).

        Raises:
            EncoderError: A value is not finite, or too large for the stored dtype.
            OutputError: The disk is full.
        """
        good = features[status == 0]
        largest = float(np.abs(good).max(initial=0.0))
        if not largest <= float(np.finfo(self._dtype).max):
            name = self.target.name
            if np.isfinite(largest):
                problem, remedy = f"gave {largest:g}, too large for float16.", "--dtype float32"
            else:
                problem, remedy = "gave a value that is not finite.", "--precision fp32"
            raise EncoderError(name, f"encoder {name}: {problem}", f"Use {remedy}.")
        self._keep(rows, features, status)

    def features(self) -> FloatArray:
        """(N, D) in row order."""
        return self._partial.features()
