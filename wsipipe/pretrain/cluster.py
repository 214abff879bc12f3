"""Kinds of tissue without labels: k-means (after UMAP, if wanted) of tile features.

Used for sampling that gives rare kinds their share (RudolfV 2401.04079): anchors are places of
known kind, and a batch draws kinds evenly, then places of that kind, then a spot nearby.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from wsipipe.pretrain.drawing import Anchors
    from wsipipe.pretrain.stream import SlideSource

__all__ = ["cluster_features", "find_anchors", "read_anchors", "reduce_features", "write_anchors"]

_ENCODER = "texture"
_CLUSTERS = 9
_PER_SLIDE = 64


def reduce_features(
    features: NDArray[np.floating], dims: int = 2, *, neighbours: int = 15, seed: int = 0
) -> NDArray[np.float32]:
    """UMAP of features: (N, D) -> (N, dims) float32, for maps and for clustering.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError:
        raise MissingExtraError("pretrain", "UMAP", ["umap-learn"]) from None
    # One thread: with a fixed seed UMAP is repeatable, and says so by a warning otherwise.
    model = UMAP(n_components=dims, n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(np.asarray(features, np.float32)), np.float32)


def cluster_features(
    features: NDArray[np.floating], k: int, *, umap_dims: int = 0, seed: int = 0
) -> NDArray[np.int64]:
    """Kinds of tiles: (N, D) features -> (N,) cluster numbers 0 to k − 1.

    Args:
        features: One row a tile.
        k: Number of clusters.
        umap_dims: Reduce by UMAP to this many dimensions first; 0 = cluster standardised features.
        seed: Of k-means and UMAP.

    Raises:
        ConfigError: Fewer tiles than clusters.
    """
    from sklearn.cluster import KMeans

    if len(features) < k:
        raise ConfigError(f"{len(features)} tiles cannot make {k} clusters.", "Ask for fewer.")
    x = np.asarray(features, np.float32)
    if umap_dims:
        x = reduce_features(x, umap_dims, seed=seed)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    found = KMeans(k, n_init=4, random_state=seed).fit_predict(x)
    return np.asarray(found, np.int64)


def find_anchors(
    source: SlideSource, given: str | Path | None, out: Path, *, seed: int = 0
) -> Anchors:
    """Anchors of a source: from a file, from features, or found here by the texture encoder.

    Args:
        source: Slides.
        given: A .csv of `write_anchors`, a folder of feature files, or None.
        out: Folder of the run; what is found here is kept in `clusters.csv`.
        seed: Of everything random.
    """
    kept = out / "clusters.csv"
    if given is None and kept.is_file():
        return read_anchors(kept, source)
    if given is not None and Path(given).suffix == ".csv":
        return read_anchors(Path(given), source)
    if given is not None:
        anchors = _from_features(Path(given), source, seed)
    else:
        anchors = _by_texture(source, seed)
    write_anchors(kept, source, anchors)
    return anchors


def write_anchors(path: Path, source: SlideSource, anchors: Anchors) -> None:
    """A table slide_id,x,y,cluster; x and y are tile centres in level-0 pixels."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "x", "y", "cluster"])
        for slide, (x, y), kind in zip(anchors.slide, anchors.xy, anchors.cluster, strict=True):
            writer.writerow([source.names[slide], f"{x:.1f}", f"{y:.1f}", kind])
    temporary.rename(path)


def read_anchors(path: Path, source: SlideSource) -> Anchors:
    """Read `write_anchors`' table; rows of slides that are not in the source are passed over.

    Raises:
        ConfigError: The table lacks a column, or has no row of any slide.
    """
    from wsipipe.pretrain.drawing import Anchors

    lookup = {name: i for i, name in enumerate(source.names)}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [r for r in csv.DictReader(file) if r["slide_id"] in lookup]
        slide = np.array([lookup[r["slide_id"]] for r in rows], np.int64)
        xy = np.array([(float(r["x"]), float(r["y"])) for r in rows]).reshape(-1, 2)
        cluster = np.array([int(r["cluster"]) for r in rows], np.int64)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a table of clusters ({error}).", "Columns: slide_id, x, y, cluster."
        ) from None
    if not len(slide):
        raise ConfigError(f"{path} names none of the slides.")
    return Anchors(slide, xy, cluster)


def _from_features(folder: Path, source: SlideSource, seed: int) -> Anchors:
    """Cluster the features of an extraction; tiles of all slides together."""
    from wsipipe.pretrain.drawing import Anchors
    from wsipipe.store import read_features

    slides, centres, features = [], [], []
    for index, name in enumerate(source.names):
        path = folder / f"{name}.h5"
        if not path.is_file():
            continue
        stored = read_features(path)
        edge = float(stored.coords_attrs["patch_size_level0"])
        slides.append(np.full(len(stored.coords), index))
        centres.append(np.asarray(stored.coords, np.float64) + edge / 2)
        features.append(np.asarray(stored.features, np.float32))
    if not slides:
        raise ConfigError(f"{folder} holds no feature file of any of the slides.")
    x = np.concatenate(features)
    good = np.isfinite(x).all(axis=1)
    kinds = cluster_features(x[good], _CLUSTERS, seed=seed)
    return Anchors(np.concatenate(slides)[good], np.concatenate(centres)[good], kinds)


def _by_texture(source: SlideSource, seed: int) -> Anchors:
    """A few random tiles of each slide, described by the encoder that needs no weights."""
    from wsipipe.encoders import create_encoder
    from wsipipe.pretrain.drawing import Anchors

    encoder = create_encoder(_ENCODER)
    slides, centres, features = [], [], []
    for index in range(len(source.units)):
        tiles, middle = source.sample_slide(index, _PER_SLIDE, seed)
        slides.append(np.full(len(tiles), index))
        centres.append(middle)
        features.append(encoder(tiles).cpu().numpy())
    kinds = cluster_features(np.concatenate(features), _CLUSTERS, seed=seed)
    return Anchors(np.concatenate(slides), np.concatenate(centres), kinds)
