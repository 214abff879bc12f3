"""Where tiles come from when they are already cut: folders, tables, HDF5 files.

Every source answers "the joined batch number i, rows a to b" as a pure function of its seed and i:
nothing has to be saved to go on after a stop, and one process or eight see the same batches.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.types import TileArray

__all__ = ["ArrayTiles", "Region", "Source", "TileBatch", "open_tiles", "permuted_rows"]

_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass
class TileBatch:
    """One process's share of a joined batch.

    Attributes:
        tiles: (B, px, px, 3) uint8.
        slides: (N,) int64: for every row of the *joined* batch, which slide (or tile) it is from.
        mpp: (N,) float64 of the joined batch; nan where unknown.
        labels: Arrays of B rows by name.
        region: (B, px, px, 3) uint8 around each tile, or None.
    """

    tiles: TileArray
    slides: NDArray[np.int64]
    mpp: NDArray[np.float64]
    labels: dict[str, NDArray[Any]] = field(default_factory=dict)
    region: TileArray | None = None


class Source(Protocol):
    """What the trainer draws from.

    Attributes:
        names: Slides (or other units) by index, for the manifest.
        classes: Task -> number of classes; empty without labels.
        px: Edge of the tiles.
    """

    names: Sequence[str]
    classes: dict[str, int]
    px: int

    def batch(self, index: int, n: int, rows: slice) -> TileBatch:
        """Rows `rows` of the joined batch `index` of `n` tiles."""
        ...

    def close(self) -> None:
        """Free what is open."""
        ...


@dataclass(frozen=True)
class Region:
    """A region around each tile, cut from the stored tile itself.

    Attributes:
        factor: Edge of the region over the edge of the patch.
        px: Edge of both images.
    """

    factor: float
    px: int


def permuted_rows(index: int, n: int, total: int, seed: int) -> NDArray[np.int64]:
    """Which items make up batch `index`: each once an epoch, epochs in different order."""
    first = index * n
    wanted = np.arange(first, first + n)
    epochs, places = wanted // total, wanted % total
    rows = np.empty(n, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(total)
        here = epochs == epoch
        rows[here] = order[places[here]]
    return rows


class ArrayTiles:
    """Tiles in memory.

    Args:
        tiles: (N, px, px, 3) uint8.
        labels: Arrays of N rows by name.
        classes: Task -> number of classes.
        names: One name a tile.
        seed: Of the order.
        region: Cut patches from the tiles, and give the tiles as their regions.
    """

    def __init__(
        self,
        tiles: TileArray,
        labels: dict[str, NDArray[Any]] | None = None,
        classes: dict[str, int] | None = None,
        names: Sequence[str] = (),
        seed: int = 0,
        region: Region | None = None,
    ) -> None:
        if not len(tiles):
            raise ConfigError("there are no tiles to train on.")
        self.tiles, self.labels, self.classes = tiles, labels or {}, classes or {}
        self.names = names or [str(i) for i in range(len(tiles))]
        self.seed, self.region = seed, region
        self.px = tiles.shape[1]

    def batch(self, index: int, n: int, rows: slice) -> TileBatch:
        """See `Source`."""
        chosen = permuted_rows(index, n, len(self.tiles), self.seed)
        mine = chosen[rows]
        tiles = np.ascontiguousarray(self.tiles[mine])
        labels = {k: v[mine] for k, v in self.labels.items()}
        out = TileBatch(tiles, chosen, np.full(n, np.nan), labels)
        if self.region:
            out.region = _resized(tiles, self.region.px)
            out.tiles = self._patches(tiles, index, n, rows)
        return out

    def _patches(self, tiles: TileArray, index: int, n: int, rows: slice) -> TileArray:
        assert self.region is not None
        edge = max(8, round(self.px / self.region.factor))
        corner = np.random.default_rng([self.seed, index, 1]).integers(
            0, self.px - edge + 1, (n, 2)
        )
        cut = [t[y : y + edge, x : x + edge] for t, (x, y) in zip(tiles, corner[rows], strict=True)]
        return _resized(np.stack(cut), self.region.px)

    def close(self) -> None:
        """See `Source`."""


def open_tiles(path: Path, px: int, seed: int = 0, region: Region | None = None) -> ArrayTiles:
    """Tiles of a folder (subfolders are classes), a CSV, or an HDF5 file.

    A CSV has a column `path` (relative to the file), and any of `label`, `task`, `text` (a caption)
    and `twin` (path of the same tissue in another stain). An empty label means unlabelled. In HDF5,
    the data set `tiles`, `images` or `imgs` is (N, H, W, 3) uint8; `labels` is optional.

    Args:
        path: Folder or file.
        px: Edge to which tiles are resized.
        seed: Of the order.
        region: See `ArrayTiles`.

    Raises:
        ConfigError: Nothing there, or a file that is not what it should be.
    """
    if path.is_dir():
        return _folder(path, px, seed, region)
    if path.suffix == ".csv":
        return _table(path, px, seed, region)
    if path.suffix in {".h5", ".hdf5"}:
        return _hdf5(path, px, seed, region)
    raise ConfigError(f"{path}: not a folder, .csv or .h5 of tiles.")


def _folder(path: Path, px: int, seed: int, region: Region | None) -> ArrayTiles:
    images = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
    )
    if not images:
        raise ConfigError(f"{path}: no PNG, JPEG or TIFF tiles in this folder.")
    classes = sorted({p.relative_to(path).parts[0] for p in images if p.parent != path})
    labels, counts = {}, {}
    if len(classes) > 1:
        lookup = {name: i for i, name in enumerate(classes)}
        found = [lookup[p.relative_to(path).parts[0]] if p.parent != path else -1 for p in images]
        labels = {"label": np.asarray(found), "task": np.zeros(len(images), np.int64)}
        counts = {"label": len(classes)}
    names = [str(p.relative_to(path)) for p in images]
    return ArrayTiles(_decode(images, px), labels, counts, names, seed, region)


def _table(path: Path, px: int, seed: int, region: Region | None) -> ArrayTiles:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a CSV in UTF-8 ({error}).") from None
    if not rows or "path" not in rows[0]:
        raise ConfigError(f"{path}: needs a column 'path' and a row at least.")
    folder = path.parent
    images = [folder / r["path"] for r in rows]
    twins = [folder / r["twin"] for r in rows] if "twin" in rows[0] else []
    missing = [p for p in (*images, *twins) if not p.is_file()]
    if missing:
        raise ConfigError(f"{path}: {len(missing)} tiles are missing, the first is {missing[0]}.")
    labels: dict[str, NDArray[Any]] = {}
    classes: dict[str, int] = {}
    if "label" in rows[0]:
        labels, classes = _table_labels(rows)
    if "text" in rows[0]:
        labels["text"] = _tokenised([r["text"] for r in rows])
    if twins:
        labels["twin"] = _decode(twins, px)
    names = [r["path"] for r in rows]
    return ArrayTiles(_decode(images, px), labels, classes, names, seed, region)


def _table_labels(
    rows: list[dict[str, str]],
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Class numbers within each task; −1 = unlabelled."""
    tasks = sorted({r.get("task") or "label" for r in rows})
    task = np.asarray([tasks.index(r.get("task") or "label") for r in rows])
    label = np.full(len(rows), -1, np.int64)
    classes = {}
    for t, name in enumerate(tasks):
        of_task = [i for i in np.flatnonzero(task == t) if rows[i]["label"].strip()]
        values = sorted({rows[i]["label"] for i in of_task})
        classes[name] = len(values)
        for i in of_task:
            label[i] = values.index(rows[i]["label"])
    return {"label": label, "task": task}, classes


def _tokenised(texts: list[str]) -> NDArray[np.int64]:
    from wsipipe.errors import MissingExtraError

    try:
        import open_clip
    except ImportError:
        raise MissingExtraError("hf", "Image-text training", ["open-clip-torch"]) from None
    tokens: NDArray[np.int64] = open_clip.tokenize(texts).numpy()
    return tokens


def _hdf5(path: Path, px: int, seed: int, region: Region | None) -> ArrayTiles:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ConfigError(f"{path}: not an HDF5 file ({error}).") from None
    with file:
        name = next((k for k in ("tiles", "images", "imgs") if k in file), None)
        if name is None or file[name].ndim != 4 or file[name].dtype != np.uint8:
            raise ConfigError(f"{path}: no data set 'tiles' of (N, H, W, 3) uint8.")
        tiles = _resized(file[name][...], px)
        labels, classes = {}, {}
        if "labels" in file:
            label = file["labels"][...].astype(np.int64)
            labels = {"label": label, "task": np.zeros(len(label), np.int64)}
            classes = {"label": int(label.max()) + 1}
    return ArrayTiles(tiles, labels, classes, seed=seed, region=region)


def _decode(paths: list[Path], px: int) -> TileArray:
    out = np.empty((len(paths), px, px, 3), np.uint8)

    def one(i: int) -> None:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(paths[i]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise ConfigError(f"{paths[i]}: not an image ({error}).") from None
        out[i] = _resized(_square(pixels)[None], px)[0]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(len(paths))))
    return out


def _square(pixels: TileArray) -> TileArray:
    """The central square."""
    edge = min(pixels.shape[:2])
    y, x = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    return pixels[y : y + edge, x : x + edge]


def _resized(tiles: TileArray, px: int) -> TileArray:
    """Area-averaged where smaller, cubic where larger."""
    if tiles.shape[1:3] == (px, px):
        return tiles
    import cv2

    how = cv2.INTER_AREA if tiles.shape[1] > px else cv2.INTER_CUBIC
    return np.stack(
        [cv2.resize(np.ascontiguousarray(t), (px, px), interpolation=how) for t in tiles]
    )
