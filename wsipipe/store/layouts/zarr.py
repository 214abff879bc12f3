"""Zarr v3: `<encoder>/<slide>.zarr`, a group with the arrays and attributes of a feature file.

Features are chunked by rows and sharded, so that an object store holds few objects. A folder
cannot be replaced in one step: it is made beside and renamed, after a former one is moved away.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wsipipe.errors import MissingExtraError
from wsipipe.owner import this_process
from wsipipe.store.events import plain
from wsipipe.store.layouts._common import Bag
from wsipipe.store.publish import make_folder, output_error

__all__ = ["export"]

_CHUNK_ROWS, _SHARD_ROWS = 256, 4096


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write one group a slide and encoder.

    Raises:
        MissingExtraError: zarr (3 or later) is not installed.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "Writing Zarr", ["zarr"]) from error
    written = []
    for bag in bags:
        path = dest / bag.encoder / f"{bag.slide_id}.zarr"
        make_folder(path.parent)
        draft = path.with_name(f".{path.name}.{this_process()}.tmp")
        former = path.with_name(f".{path.name}.{this_process()}.old")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            _write(zarr, bag, draft)
            if path.exists():
                path.rename(former)
            draft.rename(path)
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)
        written.append(path)
    return written


def _write(zarr: Any, bag: Bag, folder: Path) -> None:
    content = bag.content
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    group.attrs.update(plain(content.attrs))
    rows, dim = content.features.shape
    features = group.create_array(
        "features",
        shape=(rows, dim),
        dtype=content.features.dtype,
        chunks=(_CHUNK_ROWS, dim),
        shards=(_SHARD_ROWS, dim),
    )
    for first in range(0, rows, _SHARD_ROWS):
        features[first : first + _SHARD_ROWS] = content.features[first : first + _SHARD_ROWS]
    coords = group.create_array("coords", data=content.coords)
    coords.attrs.update(plain(content.coords_attrs))
    for name, values in (
        ("tissue_fraction", content.tissue_fraction),
        ("tile_status", content.tile_status),
        *((f"quality/{key}", value) for key, value in content.quality.items()),
    ):
        if values is not None:
            group.create_array(name, data=values)
