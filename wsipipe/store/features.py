"""The feature file: what is in it, written whole, read whole or mapped.

    features (N, D) f16/f32, `feats` the same   coords (N, 2) int64   tissue_fraction (N,) f32
    tile_status (N,) u8: 0 good, 1 read failed  quality/<name> (N,) f32, where measured

Rows belong together: row i of each is tile i, in the grid's row-major order. N = 0 is valid.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wsipipe import __version__
from wsipipe.errors import CorruptFileError, StoreError
from wsipipe.store._layout import lay_out
from wsipipe.store.identity import canonical_json, identity_hash
from wsipipe.store.publish import publishing
from wsipipe.types import Coords, FloatArray

__all__ = [
    "FeatureFile",
    "FeatureMeta",
    "Features",
    "read_attrs",
    "read_features",
    "write_features",
]

ENCODING_TYPE = "wsipipe-features"
ENCODING_VERSION = "1"
_HASH_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class FeatureMeta:
    """What a feature file says about itself.

    Attributes:
        encoder: Catalogue name or the name that was asked for.
        mpp: Target µm per pixel; `mpp_effective` that of the pixels that were read.
        tile_px: Tile edge at the target resolution; `tile_px0` the same in level-0 pixels.
        stride_px: Step between tiles at the target resolution.
        overlap: As asked for, fraction of a tile.
        precision: What the model computed in: fp32, bf16, fp16.
        identity: What was asked for; see `wsipipe.store.identity`.
        extra: Further root attributes (numbers, strings), for instance the batch sizes used.
    """

    slide_id: str
    slide_fingerprint: str
    encoder: str
    encoder_revision: str
    pooling: str
    mpp: float
    mpp_effective: float
    level0_mpp: float
    mpp_source: str
    tile_px: int
    tile_px0: float
    stride_px: int
    overlap: float
    level0_width: int
    level0_height: int
    precision: str
    identity: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def root_attributes(self) -> dict[str, Any]:
        """Attributes of the file, in the order in which they are written."""
        text = canonical_json(self.identity)
        return {
            "encoding-type": ENCODING_TYPE,
            "encoding-version": ENCODING_VERSION,
            "wsipipe_version": __version__,
            "slide_id": self.slide_id,
            "slide_fingerprint": self.slide_fingerprint,
            "encoder": self.encoder,
            "encoder_revision": self.encoder_revision,
            "pooling": self.pooling,
            "mpp": float(self.mpp),
            "mpp_effective": float(self.mpp_effective),
            "tile_px": int(self.tile_px),
            "level0_mpp": float(self.level0_mpp),
            "mpp_source": self.mpp_source,
            "overlap": float(self.overlap),
            "precision": self.precision,
            "identity": identity_hash(text),
            "identity_json": text,
            "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **self.extra,
        }

    def coords_attributes(self) -> dict[str, Any]:
        """Attributes of `coords` under TRIDENT's names, which other readers know.

        Magnifications are 10/mpp to the nearest integer (TRIDENT's own come from buckets of mpp);
        `overlap` is in pixels at the target resolution.
        """
        return {
            "patch_size": int(self.tile_px),
            "patch_size_level0": max(1, round(self.tile_px0)),
            "level0_magnification": _magnification(self.level0_mpp),
            "target_magnification": _magnification(self.mpp),
            "overlap": int(self.tile_px - self.stride_px),
            "level0_width": int(self.level0_width),
            "level0_height": int(self.level0_height),
            "name": Path(self.slide_id).name,
        }


def _magnification(mpp: float) -> int:
    return max(1, round(10 / mpp))


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """All that is written for one slide and encoder. Arrays may be memory-mapped.

    Attributes:
        features: (N, D) float16 or float32; rows of failed tiles are NaN.
        coords: (N, 2) int64 level-0 (x, y) of top-left corners.
        tissue_fraction: (N,) float32 in [0, 1].
        tile_status: (N,) uint8, 0 good, 1 read failed.
        quality: name -> (N,) float32, one number a tile (blur, pen, ...).
    """

    features: FloatArray
    coords: Coords
    tissue_fraction: NDArray[np.float32]
    tile_status: NDArray[np.uint8]
    meta: FeatureMeta
    quality: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {
            "features": (self.features, 2, (np.float16, np.float32)),
            "coords": (self.coords, 2, (np.int64,)),
            "tissue_fraction": (self.tissue_fraction, 1, (np.float32,)),
            "tile_status": (self.tile_status, 1, (np.uint8,)),
            **{f"quality/{name}": (v, 1, (np.float32,)) for name, v in self.quality.items()},
        }
        rows = len(self.coords)
        for name, (values, ndim, dtypes) in shapes.items():
            if values.ndim != ndim or len(values) != rows or values.dtype not in dtypes:
                raise ValueError(
                    f"{self.meta.slide_id}: {name} is {values.dtype} {values.shape}, "
                    f"not {' or '.join(np.dtype(d).name for d in dtypes)} with {rows} rows"
                )
        if self.coords.shape[1] != 2:
            raise ValueError(f"{self.meta.slide_id}: coords has {self.coords.shape[1]} columns")


def write_features(path: str | Path, file: FeatureFile) -> Path:
    """Publish `file` under `path`, whole or not at all; memory does not grow with its size.

    Raises:
        OutputError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    datasets: dict[str, NDArray[Any]] = {
        "features": file.features,
        "coords": file.coords,
        "tissue_fraction": file.tissue_fraction,
        "tile_status": file.tile_status,
        **{f"quality/{name}": values for name, values in file.quality.items()},
    }

    digest = content_hash(datasets)

    def finish(h5: h5py.File) -> None:
        h5["feats"] = h5["features"]
        for name, value in file.meta.coords_attributes().items():
            h5["coords"].attrs[name] = value
        for name, value in file.meta.root_attributes().items():
            h5.attrs[name] = value
        h5.attrs["content_sha256"] = digest

    layout = lay_out(datasets, finish)
    with publishing(path) as temporary:
        layout.write_to(temporary)
    return Path(path)


def content_hash(datasets: Mapping[str, Any]) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes of datasets (arrays or HDF5's), by name.

    `verify` tells rotten bytes by it; HDF5 itself has no checksum for contiguous data.
    """
    digest = hashlib.sha256()
    for name in sorted(datasets):
        values = datasets[name]
        digest.update(f"{name} {values.dtype.str} {tuple(values.shape)}\n".encode())
        rows = max(1, _HASH_BYTES * len(values) // max(1, values.nbytes))
        for first in range(0, len(values), rows):
            block = np.ascontiguousarray(values[first : first + rows])
            digest.update(block.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Features:
    """A bag as read: row i of each array is tile i.

    Attributes:
        features: (N, D) float16 or float32.
        tissue_fraction: (N,) float32, or None in files of other tools.
        tile_status: (N,) uint8, or None in files of other tools.
        attrs: Root attributes; empty in files that have none.
        coords_attrs: Attributes of `coords`.
        quality: name -> (N,) float32.
        path: Where it was read from.
        level0_coords: (N, 2) int64, or None where the file has no level-0 coordinates.
    """

    features: FloatArray
    tissue_fraction: NDArray[np.float32] | None
    tile_status: NDArray[np.uint8] | None
    attrs: dict[str, Any]
    coords_attrs: dict[str, Any]
    quality: dict[str, NDArray[np.float32]]
    path: Path
    level0_coords: Coords | None

    @property
    def coords(self) -> Coords:
        """(N, 2) int64 level-0 (x, y) of the tiles' top-left corners.

        Raises:
            StoreError: The file has none, or has them in another unit; they are never guessed.
        """
        if self.level0_coords is None:
            raise StoreError(
                self.path,
                "no level-0 coordinates in this file.",
                "Convert it with `wsipipe import`, which asks for what is missing.",
            )
        return self.level0_coords

    def __len__(self) -> int:
        return len(self.features)


def plain_attributes(attributes: h5py.AttributeManager) -> dict[str, Any]:
    """HDF5 attributes as Python's own str, int, float; arrays stay arrays."""
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, bytes):
            found[name] = value.decode("utf-8", errors="replace")
        elif isinstance(value, np.generic):
            found[name] = value.item()
        else:
            found[name] = value
    return found


def open_h5(path: str | Path) -> h5py.File:
    """Open `path` for reading, without asking for a lock that network file systems lack.

    Raises:
        CorruptFileError: It is not a whole HDF5 file.
        StoreError: It is not there, or may not be read.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError as error:
        raise StoreError(path, "no such file.") from error
    except PermissionError as error:
        raise StoreError(path, "may not be read.", "Check its owner and permissions.") from error
    except OSError as error:
        raise CorruptFileError(
            path, f"not a whole HDF5 file ({error}).", "Remove it and run extract again."
        ) from error


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Root attributes of a feature file; cheap (about 1.5 ms).

    Raises:
        CorruptFileError: It is not a whole HDF5 file.
    """
    with open_h5(path) as h5:
        return plain_attributes(h5.attrs)


def _mapped(path: Path, dataset: h5py.Dataset) -> NDArray[Any] | None:
    """The dataset as a read-only map of the file, where it is contiguous and of native bytes."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.chunks is not None or not dataset.dtype.isnative:
        return None
    return np.memmap(path, dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def _features_dataset(path: Path, h5: h5py.File) -> h5py.Dataset:
    for name in ("features", "feats", "patch_embeddings"):
        if isinstance(h5.get(name), h5py.Dataset):
            return h5[name]
    raise CorruptFileError(path, "no dataset `features` (nor `feats`) in it.")


def read_features(path: str | Path, *, lazy: bool = False) -> Features:
    """Read a feature file of this package, or one that has `features` (or `feats`) at least.

    Args:
        path: The `.h5` file.
        lazy: Map the features into memory instead of reading them: for picking rows out of large
            files. The file may be replaced meanwhile; the map keeps the former content.

    Raises:
        CorruptFileError: Damaged, or no feature file.
        StoreError: Not there or not readable.
    """
    path = Path(path)
    with open_h5(path) as h5:
        dataset = _features_dataset(path, h5)
        try:
            values = (_mapped(path, dataset) if lazy else None) if dataset.size else None
            features = dataset[()] if values is None else values
            if features.ndim == 3 and len(features) == 1:  # (1, N, D), as MIL-Lab keeps bags
                features = features[0]
            if features.ndim != 2 or features.dtype.kind != "f":
                raise CorruptFileError(
                    path, f"its features are {features.dtype} {features.shape}, not (N, D) floats."
                )
            attrs = plain_attributes(h5.attrs)
            coords, coords_attrs = _read_coords(path, h5, attrs, len(features))
            return Features(
                features=features,
                tissue_fraction=h5["tissue_fraction"][()] if "tissue_fraction" in h5 else None,
                tile_status=h5["tile_status"][()] if "tile_status" in h5 else None,
                attrs=attrs,
                coords_attrs=coords_attrs,
                quality={k: v[()] for k, v in h5.get("quality", {}).items()},
                path=path,
                level0_coords=coords,
            )
        except OSError as error:
            raise CorruptFileError(
                path, f"cannot be read ({error}).", "Remove it and run extract again."
            ) from error


def _read_coords(
    path: Path, h5: h5py.File, attrs: dict[str, Any], rows: int
) -> tuple[Coords | None, dict[str, Any]]:
    """Level-0 coordinates and their attributes; None where the unit is not level-0 pixels."""
    dataset = h5.get("coords")
    if not isinstance(dataset, h5py.Dataset):
        return None, {}
    coords_attrs = plain_attributes(dataset.attrs)
    # STAMP keeps µm as floats and says so; TRIDENT, CLAM and this package keep level-0 integers.
    if dataset.dtype.kind not in "iu" or attrs.get("unit", "px") != "px":
        return None, coords_attrs
    if dataset.ndim != 2 or dataset.shape[1] < 2:
        raise CorruptFileError(path, f"its coords have shape {dataset.shape}, not (N, 2).")
    if len(dataset) != rows:
        raise CorruptFileError(path, f"{rows} rows of features but {len(dataset)} of coords.")
    return dataset[:, :2].astype(np.int64), coords_attrs
