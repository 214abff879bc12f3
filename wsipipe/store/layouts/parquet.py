"""Parquet: `<encoder>/<slide>.parquet`, one row a tile, features as a list of fixed length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from wsipipe.errors import MissingExtraError
from wsipipe.store.events import plain
from wsipipe.store.layouts._common import Bag
from wsipipe.store.publish import TemporaryFile, publishing

__all__ = ["export"]

_ROWS = 16_384  # a row group


class _Appending:
    """A file for pyarrow to write to from start to end."""

    def __init__(self, file: TemporaryFile) -> None:
        self._file = file
        self._position = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write one file a slide and encoder; the root attributes go into the schema's metadata.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("export", "Writing Parquet", ["pyarrow"]) from error
    written = []
    for bag in bags:
        content = bag.content
        value = pa.float16() if content.features.dtype == np.float16 else pa.float32()
        listed = pa.list_(value, content.features.shape[1])
        schema = pa.schema(
            [
                ("row", pa.int64()),
                ("x", pa.int64()),
                ("y", pa.int64()),
                ("tissue_fraction", pa.float32()),
                ("tile_status", pa.uint8()),
                *((name, pa.float32()) for name in content.quality),
                ("features", listed),
            ],
            metadata={"wsipipe": json.dumps(plain(content.attrs | {"slide_id": bag.slide_id}))},
        )
        path = dest / bag.encoder / f"{bag.slide_id}.parquet"
        with publishing(path) as temporary, pq.ParquetWriter(_Appending(temporary), schema) as file:
            for first in range(0, len(content), _ROWS):
                part = slice(first, first + _ROWS)
                features = np.ascontiguousarray(content.features[part])
                rows = len(features)
                fraction, status = content.tissue_fraction, content.tile_status
                columns = [
                    pa.array(np.arange(first, first + rows)),
                    pa.array(content.coords[part, 0]),
                    pa.array(content.coords[part, 1]),
                    pa.nulls(rows, pa.float32()) if fraction is None else pa.array(fraction[part]),
                    pa.nulls(rows, pa.uint8()) if status is None else pa.array(status[part]),
                    *(pa.array(values[part]) for values in content.quality.values()),
                    pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), type=listed),
                ]
                file.write_table(pa.Table.from_arrays(columns, schema=schema))
        written.append(path)
    return written
