"""Is one feature file what it says? Its structure, its attributes, its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import StoreError
from wsipipe.store.features import (
    ENCODING_TYPE,
    ENCODING_VERSION,
    content_hash,
    open_h5,
    plain_attributes,
)
from wsipipe.store.identity import identity_hash

__all__ = ["verify_features"]

_REQUIRED_ATTRIBUTES = (
    *("encoding-type", "encoding-version", "wsipipe_version", "slide_id", "slide_fingerprint"),
    *("encoder", "encoder_revision", "pooling", "mpp", "mpp_effective", "tile_px", "level0_mpp"),
    *("mpp_source", "overlap", "precision", "identity", "identity_json", "created_utc"),
)
_COORDS_ATTRIBUTES = (
    *("patch_size", "patch_size_level0", "level0_magnification", "target_magnification"),
    *("overlap", "level0_width", "level0_height", "name"),
)


def verify_features(path: str | Path, *, quick: bool = False) -> tuple[list[str], dict[str, Any]]:
    """Check one feature file.

    Args:
        path: The file.
        quick: Look at structure and attributes only, not at the bytes.

    Returns:
        Problems in words ([] = sound), and the root attributes as far as they can be read.
    """
    try:
        with open_h5(path) as h5:
            attrs = plain_attributes(h5.attrs)
            problems = list(_structure(h5, attrs))
            if not problems and not quick:
                problems = list(_content(h5, attrs))
            return problems, {**attrs, "rows": len(h5["coords"]) if "coords" in h5 else 0}
    except StoreError as error:
        return [error.reason], {}
    except OSError as error:
        return [f"cannot be read to its end ({error})"], {}


def _structure(h5: h5py.File, attrs: Mapping[str, Any]) -> Iterator[str]:
    kinds: dict[str, tuple[int, str]] = {
        "features": (2, "float16 float32"),
        "coords": (2, "int64"),
        "tissue_fraction": (1, "float32"),
        "tile_status": (1, "uint8"),
    }
    for name in h5.get("quality", {}):
        kinds[f"quality/{name}"] = (1, "float32")
    rows = len(h5["coords"]) if isinstance(h5.get("coords"), h5py.Dataset) else 0
    for name, (ndim, dtypes) in kinds.items():
        dataset = h5.get(name)
        if not isinstance(dataset, h5py.Dataset):
            yield f"no dataset {name}"
        elif dataset.ndim != ndim or dataset.dtype.name not in dtypes.split():
            yield f"{name} is {dataset.dtype} {dataset.shape}"
        elif len(dataset) != rows:
            yield f"{name} has {len(dataset)} rows, coords has {rows}"
    if "feats" not in h5 or "features" not in h5 or h5["feats"] != h5["features"]:
        yield "feats is not the same dataset as features"
    if missing := [name for name in _REQUIRED_ATTRIBUTES if name not in attrs]:
        yield f"attributes are missing: {', '.join(missing)}"
        return
    if (attrs["encoding-type"], attrs["encoding-version"]) != (ENCODING_TYPE, ENCODING_VERSION):
        yield f"encoding is {attrs['encoding-type']} {attrs['encoding-version']}"
    if identity_hash(str(attrs["identity_json"])) != attrs["identity"]:
        yield "the identity is not the hash of identity_json"
    if "coords" in h5:
        known = h5["coords"].attrs
        if missing := [name for name in _COORDS_ATTRIBUTES if name not in known]:
            yield f"attributes of coords are missing: {', '.join(missing)}"


def _content(h5: h5py.File, attrs: Mapping[str, Any]) -> Iterator[str]:
    datasets = {name: h5[name] for name in ("features", "coords", "tissue_fraction", "tile_status")}
    datasets |= {f"quality/{name}": values for name, values in h5.get("quality", {}).items()}
    stored = attrs.get("content_sha256")
    if stored is not None and content_hash(datasets) != stored:
        yield "its bytes have changed since they were written (sha256 differs)"
    status: NDArray[np.uint8] = h5["tile_status"][()]
    if status.size and status.max() > 1:
        yield f"tile_status has values up to {status.max()}"
    yield from _features_content(h5["features"], status)
    fraction = h5["tissue_fraction"][()]
    # Other tools do not record the fraction; their order and the slide's size may be unknown, too.
    imported = "imported_from" in attrs
    within = (fraction >= 0) & (fraction <= 1)
    if not (within | np.isnan(fraction) if imported else within).all():
        yield "tissue_fraction leaves [0, 1]"
    coords = h5["coords"][()]
    known = h5["coords"].attrs
    size = np.array([known["level0_width"], known["level0_height"]])
    if len(coords) and size.all() and ((coords < 0) | (coords >= size)).any():
        yield "coords lie outside the slide"
    if len(coords) > 1 and not imported:
        step = np.diff(coords, axis=0)
        if not ((step[:, 1] > 0) | ((step[:, 1] == 0) & (step[:, 0] > 0))).all():
            yield "coords are not in row-major order, or some are there twice"


def _features_content(features: h5py.Dataset, status: NDArray[np.uint8]) -> Iterator[str]:
    step = max(1, (8 << 20) // max(1, features.shape[1] * features.dtype.itemsize))
    stray = silent = zero = 0
    for first in range(0, len(features), step):
        block = features[first : first + step]
        bad = status[first : first + step] > 0
        finite = np.isfinite(block)
        stray += int(np.count_nonzero(~finite[~bad].all(axis=1)))
        silent += int(np.count_nonzero(finite[bad].any(axis=1)))
        zero += int(np.count_nonzero(~block[~bad].any(axis=1)))
    if stray:
        yield f"{stray} tiles with NaN or infinite features that no failed read explains"
    if silent:
        yield f"{silent} tiles that failed to be read have numbers"
    if zero:
        yield f"{zero} tiles have features of zeros only"
