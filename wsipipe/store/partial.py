"""Rows of a slide in progress, so that a killed run of a large slide goes on where it stood.

A row counts only if its own checksum is right, so neither the order in which a dying machine
writes pages nor damage can pass off half a row as whole. Nothing is written before the first flush
is due: a slide that is finished by then never makes a file.
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.owner import this_process
from wsipipe.store._partial_file import (
    ENTRY,
    HEADER_BYTES,
    RowRange,
    about,
    find_partials,
    header_page,
    is_orphan,
    is_whole,
    key_of,
    read_header,
    remove_stale_partials,
)
from wsipipe.store._steps import step
from wsipipe.store.publish import make_folder, output_error
from wsipipe.types import BoolArray, FloatArray, Rows

__all__ = [
    "FLUSH_ROWS",
    "FLUSH_S",
    "PartialRows",
    "RowRange",
    "find_partials",
    "is_whole",
    "remove_stale_partials",
]

FLUSH_S = 30.0
FLUSH_ROWS = 50_000
_FLUSH_BYTES = 128 << 20
_FAILED = 2  # an entry's state is the row's status + 1
_BLOCK_BYTES = 8 << 20


class PartialRows:
    """Features of one slide and encoder as they come in, in any order; thread-safe.

    Opening takes over what a killed run left for the same final file and identity, and what other
    processes have made of ranges of its rows; leftovers of another identity, and damaged ones, are
    removed.

    Args:
        final: The feature file that the rows are for.
        folder: Where the partial file lies if one is needed, on the same disk as the output.
        identity: Identity of the final file.
        rows: N, number of tiles of the slide.
        dim: D, numbers a tile.
        dtype: Stored dtype, float16 or float32.
        part: Tells apart several partial files for one feature file.
        row_range: Only these rows will come; the file is for another process to take in.
        made_by: What else decides what a row is but is not in the identity of the file, as the
            precision and the tiles' places: rows made by something else are not taken over.
        flush_s: Rows are on the disk at most so many seconds after they came.
        flush_rows: Or after so many rows, whichever is first.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(
        self,
        final: str | Path,
        *,
        folder: str | Path,
        identity: Mapping[str, Any] | str,
        rows: int,
        dim: int,
        dtype: str | np.dtype[Any] = "float16",
        part: str = "",
        row_range: RowRange | None = None,
        made_by: str = "",
        flush_s: float = FLUSH_S,
        flush_rows: int = FLUSH_ROWS,
    ) -> None:
        self.final = Path(final)
        self.folder = Path(folder)
        self.shape = (rows, dim)
        self.dtype = np.dtype(dtype)
        self.flush_s, self.flush_rows = flush_s, flush_rows
        self._row_bytes = dim * self.dtype.itemsize
        self._entries_at = HEADER_BYTES + rows * self._row_bytes
        self._entries = np.zeros(rows, ENTRY)
        self._waiting: list[tuple[Rows, FloatArray]] = []
        self._waiting_rows = 0
        self._waiting_since = 0.0
        self._lock = threading.Lock()
        self._fd = -1
        self._slide_key = key_of(self.final, self.folder, part)
        self._key = self._slide_key if row_range is None else f"{self._slide_key}-{row_range}"
        self._inside = np.True_ if row_range is None else row_range.mask(rows)
        self._header: dict[str, Any] = {
            **about(self.final, self.folder, identity),
            "rows": rows,
            "dim": dim,
            "dtype": self.dtype.name,
            "made_by": made_by,
        }
        self._path = self.folder / f"{self._key}.{this_process()}.part"
        self._recover()
        self._gather()
        self.recovered_rows = int(self.done.sum())

    @property
    def done(self) -> BoolArray:
        """(N,) bool, True where the row is there (also a tile that failed to be read)."""
        done: BoolArray = self._entries["state"] > 0
        return done

    @property
    def complete(self) -> bool:
        """True once every row is there."""
        return bool((self._entries["state"] > 0).all())

    @property
    def tile_status(self) -> NDArray[np.uint8]:
        """(N,) uint8, 0 good, 1 read failed; 0 also for rows that are not there yet."""
        status: NDArray[np.uint8] = (self._entries["state"] == _FAILED).astype(np.uint8)
        return status

    def put(self, rows: Rows, features: FloatArray, status: NDArray[np.uint8]) -> None:
        """Add rows; flushes if that is due.

        Args:
            rows: (B,) int64, indices of tiles.
            features: (B, D), cast to the stored dtype; rows with status 1 become NaN.
            status: (B,) uint8, 0 good, 1 read failed.

        Raises:
            StoreError: A good tile's features are not finite numbers in the stored dtype.
            OutputError: The disk is full. What was flushed before stays usable.
        """
        if not len(rows):
            return
        # A copy: the caller's buffer is filled again by the next batch.
        with np.errstate(over="ignore"):
            values = np.array(features, dtype=self.dtype, order="C", copy=True)
        values[status > 0] = np.nan
        self._refuse_infinite(values, status)
        with self._lock:
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting.append((np.array(rows, np.int64), values))
            self._waiting_rows += len(values)
            state = status.astype(np.uint32) + 1
            entries = self._entries
            entries["state"][rows] = state
            entries["crc"][rows] = [
                zlib.crc32(row.data, int(s)) for row, s in zip(values, state, strict=True)
            ]
            if self._due():
                self._flush()

    def _refuse_infinite(self, values: FloatArray, status: NDArray[np.uint8]) -> None:
        broken = ~np.isfinite(values).all(axis=1) & (status == 0)
        if broken.any():
            remedy = "Try --precision fp32."
            if self.dtype == np.float16:
                remedy = "Try --dtype float32 (float16 ends at 65,504), or --precision fp32."
            raise StoreError(
                self.final,
                f"the encoder gave {np.count_nonzero(broken)} tiles features that are no finite "
                f"numbers in {self.dtype.name}.",
                remedy,
            )

    def flush_if_due(self) -> None:
        """Flush if rows have waited for `flush_s`; for a clock of the caller's between batches."""
        with self._lock:
            if self._due():
                self._flush()

    def flush(self) -> None:
        """Bring all rows to the disk; they survive a kill of the process or of the machine.

        Raises:
            OutputError: The disk is full.
        """
        with self._lock:
            self._flush()

    def features(self) -> FloatArray:
        """(N, D) features in row order, NaN where a row is missing; mapped where a file exists.

        Raises:
            OutputError: The disk is full.
        """
        with self._lock:
            if self._fd < 0:
                values = np.full(self.shape, np.nan, self.dtype)
                for rows, features in self._waiting:
                    values[rows] = features
                return values
            self._write_waiting()
            mapped = self._mapped(self._path)
            missing = self._entries["state"] == 0
            if missing.any():
                mapped = np.array(mapped)
                mapped[missing] = np.nan
            return mapped

    def _mapped(self, path: Path) -> FloatArray:
        mapped: FloatArray = np.memmap(
            path, self.dtype, mode="r", offset=HEADER_BYTES, shape=self.shape
        )
        return mapped

    def close(self, *, whole: bool = False) -> None:
        """Flush and leave the rows for a next run, free to be taken by any host.

        Args:
            whole: No row of the range is left to make, see `is_whole`.

        Raises:
            OutputError: The disk is full.
        """
        with self._lock:
            if whole or self._waiting_rows or self._fd >= 0:
                self._flush(create=whole)
                self._close_fd()
                state = "whole" if whole else "free"
                with suppress(FileNotFoundError):
                    self._path.rename(self.folder / f"{self._key}.{state}.part")

    def discard(self) -> None:
        """Remove the file: the slide is published, or given up."""
        with self._lock:
            self._waiting, self._waiting_rows = [], 0
            self._close_fd()
            self._path.unlink(missing_ok=True)
            if self._key == self._slide_key:
                for path in self._others():
                    path.unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _due(self) -> bool:
        if not self._waiting:
            return False
        return (
            self._waiting_rows >= self.flush_rows
            or self._waiting_rows * self._row_bytes >= _FLUSH_BYTES
            or time.monotonic() - self._waiting_since >= self.flush_s
        )

    def _flush(self, *, create: bool = False) -> None:
        try:
            if create and self._fd < 0:
                self._create()
            self._write_waiting()
            if self._fd >= 0:
                step("partial:rows")
                os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
                step("partial:sync")
        except OSError as error:
            raise output_error(self._path, error) from error

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        try:
            if self._fd < 0:
                self._create()
            rows = np.concatenate([r for r, _ in self._waiting])
            values = np.concatenate([v for _, v in self._waiting])
            order = np.argsort(rows, kind="stable")
            rows, values = rows[order], values[order]
            # One write for each stretch of consecutive rows.
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                first = int(rows[run[0]])
                self._write_at(HEADER_BYTES + first * self._row_bytes, values[run[0] : run[-1] + 1])
            step("partial:features")
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                first, last = int(rows[run[0]]), int(rows[run[-1]])
                at = self._entries_at + first * ENTRY.itemsize
                self._write_at(at, self._entries[first : last + 1])
        except OSError as error:
            raise output_error(self._path, error) from error
        self._waiting, self._waiting_rows = [], 0

    def _write_at(self, offset: int, values: NDArray[Any]) -> None:
        left = np.ascontiguousarray(values).view(np.uint8).reshape(-1).data
        while left:
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written

    def _create(self) -> None:
        make_folder(self.folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o666)
        step("partial:create")
        os.pwrite(self._fd, header_page(self._header), 0)
        os.ftruncate(self._fd, self._entries_at + self._entries.nbytes)
        step("partial:header")

    def _recover(self) -> None:
        """Take over what a dead run left for the same file, or remove it."""
        for path, owner in find_partials(self.folder):
            if not path.name.startswith(f"{self._key}.") or not is_orphan(path, owner, self.folder):
                continue
            try:
                usable = self._fd < 0 and read_header(path) == self._header
                if not usable:
                    path.unlink()
                    continue
                path.rename(self._path)  # of several who find it, one succeeds
                self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                if os.fstat(self._fd).st_size != self._entries_at + self._entries.nbytes:
                    self._close_fd()
                    self._path.unlink()
                    continue
                self._entries = self._intact(self._fd)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise output_error(path, error) from error

    def _others(self) -> list[Path]:
        """Further files that hold rows of the slide and that nobody writes any more."""
        return [
            path
            for path, owner in find_partials(self.folder)
            if path.name.startswith(self._slide_key)
            and not path.name.startswith(f"{self._key}.")
            and is_orphan(path, owner, self.folder)
        ]

    def _gather(self) -> None:
        """Take in what others have made: of ranges, or before the slide was cut into ranges. Their
        files stay until the slide is over: that they are there says that nobody need make them."""
        for path in self._others():
            if read_header(path) != self._header:
                continue
            with suppress(FileNotFoundError), path.open("rb") as file:
                entries = self._intact(file.fileno())
                rows = np.flatnonzero((entries["state"] > 0) & ~self.done & self._inside)
                block = max(1, _BLOCK_BYTES // max(1, self._row_bytes))
                for some in np.split(rows, range(block, len(rows), block)):
                    if len(some):
                        status = (entries["state"][some] == _FAILED).astype(np.uint8)
                        self.put(some, self._mapped(path)[some], status)

    def _intact(self, fd: int) -> NDArray[Any]:
        """Entries of a file of this header; of rows whose checksum does not hold, empty ones."""
        raw = os.pread(fd, self._entries.nbytes, self._entries_at)
        entries = np.zeros_like(self._entries)
        if len(raw) != entries.nbytes:
            return entries
        entries[:] = np.frombuffer(raw, ENTRY)
        claimed = np.flatnonzero(entries["state"])
        block = max(1, _BLOCK_BYTES // max(1, self._row_bytes))
        for first in range(0, len(entries), block):
            inside = claimed[(claimed >= first) & (claimed < first + block)]
            if not len(inside):
                continue
            start = HEADER_BYTES + first * self._row_bytes
            data = memoryview(os.pread(fd, block * self._row_bytes, start))
            for row in inside:
                at = (int(row) - first) * self._row_bytes
                crc = zlib.crc32(data[at : at + self._row_bytes], int(entries["state"][row]))
                if crc != entries["crc"][row]:
                    entries[row] = (0, 0)
        return entries
