"""A `.pt` file with one tensor, written without torch and without a copy of the numbers.

The format (a zip archive: `data.pkl` refers to the storage `data/0`) is that of `torch.save` since
1.6; the pickle below holds nothing but the one call that `torch.load(weights_only=True)` allows.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from wsipipe.store.publish import TemporaryFile, publishing

__all__ = ["publish_tensor"]

_BLOCK_BYTES = 8 << 20


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _pickle(shape: tuple[int, int]) -> bytes:
    """`_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`, protocol 2."""
    rows, columns = shape
    storage = (
        b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
        + _int(rows * columns) + b"tQ"
    )  # fmt: skip
    arguments = (
        b"(" + storage + _int(0) + _int(rows) + _int(columns) + b"\x86" + _int(columns) + _int(1)
        + b"\x86\x89" + b"ccollections\nOrderedDict\n)R" + b"t"
    )  # fmt: skip
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


class _Appending:
    """The part of a file that `zipfile` needs to append to one it cannot seek in."""

    def __init__(self, file: TemporaryFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        return


def publish_tensor(path: Path, values: NDArray[np.float32]) -> Path:
    """Publish (N, D) float32 `values` as a tensor that `torch.load` reads."""
    step = max(1, _BLOCK_BYTES // max(1, values[:1].nbytes))
    with (
        publishing(path) as temporary,
        zipfile.ZipFile(cast("IO[bytes]", _Appending(temporary)), "w") as archive,
    ):
        archive.writestr(f"{path.stem}/data.pkl", _pickle((values.shape[0], values.shape[1])))
        archive.writestr(f"{path.stem}/byteorder", "little")
        with archive.open(f"{path.stem}/data/0", "w", force_zip64=True) as entry:
            for first in range(0, len(values), step):
                block = np.ascontiguousarray(values[first : first + step], "<f4")
                entry.write(block.view(np.uint8).reshape(-1).data)
        archive.writestr(f"{path.stem}/version", "3\n")
    return path
