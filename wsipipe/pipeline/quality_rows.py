"""Quality of a slide's tiles, measured on the pixels that the encoders are about to see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.pipeline.rows import OpenRows
from wsipipe.store import PartialRows, RowRange
from wsipipe.tissue.quality import MEASURES, QualityFilter, tile_quality
from wsipipe.types import BoolArray, Rows, TileArray

__all__ = ["QualityRows"]

# Measures are 0 and more; a partial file takes no NaN for a good tile.
_NOT_MEASURED = -1.0


class QualityRows(OpenRows):
    """Numbers of all tiles of one grid; survives a killed run as the features do.

    Args:
        rows: N, number of tiles.
        mpp: µm per pixel of the tiles.
        accepted: Which tiles are kept.
        final: The feature file that these rows go into; with several encoders, the first one's.
        folder: Where the partial file lies, should the slide take long enough to need one.
        identity: Identity of the final file.
        row_range: The rows that are made here; None = all.
        made_by: See `PartialRows`.
    """

    def __init__(
        self,
        rows: int,
        mpp: float,
        accepted: QualityFilter,
        *,
        final: Path,
        folder: Path,
        identity: Mapping[str, Any],
        row_range: RowRange | None = None,
        made_by: str = "",
    ) -> None:
        self._mpp, self._accepted = mpp, accepted
        partial = PartialRows(
            final,
            folder=folder,
            identity=identity,
            rows=rows,
            dim=len(MEASURES),
            dtype="float32",
            part="quality",
            row_range=row_range,
            made_by=made_by,
        )
        super().__init__(partial)
        self._known = partial.done
        self._values = np.array(partial.features())
        self._values[self._values == _NOT_MEASURED] = np.nan

    @property
    def missing(self) -> BoolArray:
        """(N,) bool, tiles that were not seen yet."""
        return ~self._known

    @property
    def kept(self) -> BoolArray:
        """(N,) bool, tiles that pass; those that were not seen, or could not be read, pass."""
        return self._accepted.keep(self.values())

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Measure -> (N,) float32; NaN where it is unknown."""
        return {name: self._values[:, i].copy() for i, name in enumerate(MEASURES)}

    def measure(self, rows: Rows, tiles: TileArray, status: NDArray[np.uint8]) -> BoolArray:
        """Measure the tiles (n, H, W, 3) of `rows` (n,). Any thread, each row once.

        Returns:
            (n,) bool, the tiles that pass.
        """
        new = ~self._known[rows]
        good = new & (status == 0)
        found = tile_quality(tiles if good.all() else tiles[good], self._mpp)
        values = np.full((len(rows), len(MEASURES)), np.nan, np.float32)
        values[good] = np.stack([found[name] for name in MEASURES], axis=1)
        stored = np.where(np.isnan(values), np.float32(_NOT_MEASURED), values)
        self._keep(rows[new], stored[new], status[new])
        self._values[rows[new]] = values[new]
        self._known[rows[new]] = True
        return self._accepted.keep({m: self._values[rows, i] for i, m in enumerate(MEASURES)})
