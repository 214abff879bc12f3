"""One batch through one encoder: launch, fetch, and smaller pieces when memory runs out."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.embed.tuning import BatchTuner
from wsipipe.errors import ModelError
from wsipipe.types import TileArray

__all__ = ["Forward", "keep_freed_memory", "prepare_torch"]

# glibc's mallopt parameters, and how much may stay with the process.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving each large array back to the system.

    A fresh page costs a fault and its zeroing: on one core `texture` in batches of 32 falls from
    3.1 to 2.0 ms a tile, and a model that does nothing from 1.1 to 0.5 ms in batches of 64. What
    stays is bounded by what a forward needs at its peak. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def prepare_torch(intra: int, *, deterministic: bool = False) -> None:
    """Set torch's threads within one forward; with `deterministic`, only bit-stable kernels.

    TF32 stays off: its 10-bit products would pass for fp32 in the records.
    """
    import torch

    torch.set_num_threads(intra)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


class Forward:
    """Calls encoders on uint8 batches. Safe to use from several threads.

    Args:
        encoders: Each with `start(tiles)`, as `wsipipe.encoders.Encoder`.
        tuner: Told of batches that are too large.
        one_by_one: Feed single tiles. A matrix product's rounding may depend on the number of its
            rows; one tile a forward on one thread makes a row's bits independent of its company.
    """

    def __init__(
        self, encoders: Sequence[Any], tuner: BatchTuner, *, one_by_one: bool = False
    ) -> None:
        self._encoders = encoders
        self._tuner = tuner
        self._one_by_one = one_by_one

    def launch(self, index: int, tiles: TileArray) -> Pending:
        """Start encoder `index` on `tiles`; on a GPU the call returns before the device is done."""
        step = 1 if self._one_by_one else len(tiles)
        pieces = [tiles[start : start + step] for start in range(0, len(tiles), step)]
        return Pending(self, index, [(piece, self._start(index, piece)) for piece in pieces])

    def _start(self, index: int, tiles: TileArray) -> Any:
        """A handle, or None when memory ran out: dealt with outside of the handler, which would
        keep the failed forward's tensors alive."""
        import torch

        try:
            return self._encoders[index].start(tiles)
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as error:
            # The CPU allocator has no class of its own.
            if "can't allocate memory" not in str(error):
                raise
        return None

    def smaller(self, index: int, tiles: TileArray) -> NDArray[np.float32]:
        """Features of `tiles` in halves, after the whole did not fit."""
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._tuner.too_large(len(tiles)):
            raise ModelError(
                self.name(index),
                f"encoder {self.name(index)}: not even one tile fits into memory.",
                "Use a device with more memory, or a smaller encoder.",
            )
        middle = len(tiles) // 2
        halves = [self.launch(index, part).fetch() for part in (tiles[:middle], tiles[middle:])]
        return np.concatenate(halves)

    def name(self, index: int) -> str:
        """Name of encoder `index`."""
        card = getattr(self._encoders[index], "card", None)
        return str(getattr(card, "name", index))


class Pending:
    """Features on their way; `fetch` waits for them."""

    def __init__(self, forward: Forward, index: int, pieces: list[tuple[TileArray, Any]]) -> None:
        self._forward, self._index, self._pieces = forward, index, pieces

    def fetch(self) -> NDArray[np.float32]:
        """Features (B, D) float32.

        Raises:
            EncoderError: The encoder's output is not one row a tile.
        """
        found = []
        for tiles, result in self._pieces:
            rows = self._forward.smaller(self._index, tiles) if result is None else result.result()
            if rows.ndim != 2 or len(rows) != len(tiles):
                name = self._forward.name(self._index)
                raise ModelError(
                    name,
                    f"encoder {name}: gave an array {rows.shape} for {len(tiles)} tiles.",
                    "It must map (B, 3, H, W) to (B, dim).",
                )
            found.append(rows)
        return found[0] if len(found) == 1 else np.concatenate(found)
