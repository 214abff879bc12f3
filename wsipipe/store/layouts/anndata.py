"""AnnData: `<encoder>/<slide>.h5ad`, tiles as observations, features as variables.

    X (N, D)   obs: x, y, tissue_fraction, tile_status, and what was measured of quality
    obsm/spatial (N, 2): tile centres, level-0
    uns/wsipipe: the root attributes of the feature file

Written by the format's own rules (encoding-type and encoding-version on every element, anndata
0.8 and later), so that the package is not needed; squidpy and scanpy read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsipipe.store.layouts._common import Bag, publish_h5

__all__ = ["export"]

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write one file a slide and encoder."""
    return [_export_one(bag, dest / bag.encoder / f"{bag.slide_id}.h5ad") for bag in bags]


def _export_one(bag: Bag, path: Path) -> Path:
    content = bag.content
    columns: dict[str, NDArray[Any]] = {
        "x": content.coords[:, 0],
        "y": content.coords[:, 1],
        "tissue_fraction": _or_nan(content.tissue_fraction, len(content)),
        "tile_status": _or_zero(content.tile_status, len(content)),
        **content.quality,
    }
    half = content.coords_attrs["patch_size_level0"] / 2
    datasets: dict[str, NDArray[Any]] = {
        "X": content.features,
        "obsm/spatial": content.coords + half,
        **{f"obs/{name}": values for name, values in columns.items()},
    }
    attributes: dict[str, dict[str, Any]] = {
        "/": {"encoding-type": "anndata", "encoding-version": "0.1.0"},
        **{name: dict(_ARRAY) for name in datasets},
    }

    def finish(h5: h5py.File) -> None:
        _frame(h5.require_group("obs"), list(columns), len(content))
        _frame(h5.require_group("var"), [], content.features.shape[1])
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            h5.require_group(name).attrs.update(_DICT)
        own = h5.create_group("uns/wsipipe")
        own.attrs.update(_DICT)
        for name, value in content.attrs.items():
            kind = "string" if isinstance(value, str) else "numeric-scalar"
            own[name] = value
            own[name].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})

    return publish_h5(path, datasets, attributes, finish)


def _frame(group: h5py.Group, columns: list[str], rows: int) -> None:
    """Make `group` a data frame whose index is "0", "1", ..."""
    index = np.array([str(i) for i in range(rows)], dtype=object)
    group.create_dataset("_index", data=index, dtype=h5py.string_dtype())
    group["_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    group.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    )
    group.attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())


def _or_nan(values: NDArray[np.float32] | None, rows: int) -> NDArray[np.float32]:
    return np.full(rows, np.nan, np.float32) if values is None else values


def _or_zero(values: NDArray[np.uint8] | None, rows: int) -> NDArray[np.uint8]:
    return np.zeros(rows, np.uint8) if values is None else values
