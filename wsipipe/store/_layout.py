"""Lay out an HDF5 file without its bulk, then write the bytes ourselves.

HDF5 must not write under a name that matters, nor on a disk that may be full: killed half-way it
leaves files that open with half the rows, and "no space left" ends in a crash of the process when
the library cleans up. So h5py writes only the metadata (a few KB), into memory, with contiguous
datasets whose place is fixed at once but whose bytes are never written; the bytes then go from the
caller's arrays straight to those places. No copy of the features is made, of whatever size, and a
full disk is an ordinary `OSError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsipipe.store._steps import step
from wsipipe.store.publish import TemporaryFile

__all__ = ["Layout", "Placed", "lay_out"]

_PAGE = 4096
_BLOCK_BYTES = 8 << 20


class _SparseImage:
    """What h5py's file-object driver asks for; keeps only the pages that are written."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.position = 0
        self.size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        return self.size

    def flush(self) -> None:
        return

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        data = bytearray(left if size < 0 else min(size, left))
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self.position))
        done = 0
        while done < count:
            page, offset = divmod(self.position, _PAGE)
            length = min(_PAGE - offset, count - done)
            held = self.pages.get(page)
            view[done : done + length] = held[offset : offset + length] if held else bytes(length)
            done, self.position = done + length, self.position + length
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, offset = divmod(self.position, _PAGE)
            length = min(_PAGE - offset, len(view) - done)
            held = self.pages.setdefault(page, bytearray(_PAGE))
            held[offset : offset + length] = view[done : done + length]
            done, self.position = done + length, self.position + length
        self.size = max(self.size, self.position)
        return done


@dataclass(frozen=True)
class Placed:
    """Where one dataset's bytes go. `offset` is None for a dataset without elements."""

    values: NDArray[Any]
    offset: int | None


@dataclass(frozen=True)
class Layout:
    """Metadata pages, places of the bulk, and size of a file that is still to be written."""

    pages: Mapping[int, bytearray]
    placed: tuple[Placed, ...]
    size: int

    def write_to(self, file: TemporaryFile) -> None:
        """Write the whole file; the values may be memory-mapped, they go through in blocks."""
        for place in self.placed:
            if place.offset is None:
                continue
            # A row is small; blocks of whole rows keep memory bounded for mapped values.
            rows = max(1, _BLOCK_BYTES // max(1, place.values[:1].nbytes))
            at = place.offset
            for first in range(0, len(place.values), rows):
                block = np.ascontiguousarray(place.values[first : first + rows])
                file.write_at(at, block.view(np.uint8).reshape(-1).data)
                at += block.nbytes
            step("features:dataset")
        # Metadata last: until it is there, the bytes do not even look like HDF5. A page's gaps
        # between pieces of metadata may hold the ends of datasets, so only what HDF5 wrote counts.
        for page in sorted(self.pages, reverse=True):
            start = page * _PAGE
            for lo, hi in self._metadata_spans(start, min(start + _PAGE, self.size)):
                file.write_at(lo, memoryview(self.pages[page])[lo - start : hi - start])
        file.truncate(self.size)
        step("features:metadata")

    def _metadata_spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of [start, stop) lies outside every dataset."""
        bulk = sorted(
            (p.offset, p.offset + p.values.nbytes) for p in self.placed if p.offset is not None
        )
        spans = []
        for lo, hi in bulk:
            if lo >= stop:
                break
            if lo > start:
                spans.append((start, lo))
            start = max(start, hi)
        if start < stop:
            spans.append((start, stop))
        return spans


def lay_out(
    datasets: Mapping[str, NDArray[Any]], finish: Callable[[h5py.File], None] = lambda _: None
) -> Layout:
    """Lay out a file with `datasets` (name, may contain `/`, -> values), contiguous, in order.

    Args:
        datasets: Their bytes are not touched here.
        finish: Adds attributes and links to the open file.
    """
    image = _SparseImage()
    placed = []
    # Page-aligned bulk can be memory-mapped by readers.
    with h5py.File(image, "w", alignment_threshold=1 << 14, alignment_interval=_PAGE) as file:
        for name, values in datasets.items():
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.CONTIGUOUS)
            creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            creation.set_obj_track_times(False)  # the same input gives the same bytes
            linking = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            linking.set_create_intermediate_group(True)
            dataset = h5py.h5d.create(
                file.id,
                name.encode(),
                h5py.h5t.py_create(values.dtype),
                h5py.h5s.create_simple(values.shape),
                creation,
                linking,
            )
            placed.append(Placed(values, dataset.get_offset() if values.size else None))
        finish(file)
    return Layout(image.pages, tuple(placed), image.size)
