"""Polygons from other tools' files: parsed with their classes, made valid, cut to the slide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsipipe.errors import TissueError

if TYPE_CHECKING:
    from shapely.geometry import Polygon

    from wsipipe.slide import Slide

__all__ = ["Shape", "clean", "clip", "parse"]


@dataclass(frozen=True)
class Shape:
    """One polygon and the class that the file gives it ("" where none)."""

    polygon: Polygon
    name: str

    @property
    def ignored(self) -> bool:
        """QuPath's convention: classes that end with * are to be ignored."""
        return self.name.endswith("*")


def parse(document: Any, path: Path, slide: Slide) -> list[Shape]:
    """All polygons of a document of any dialect; points and lines are passed over.

    Raises:
        TissueError: This is no GeoJSON.
    """
    try:
        return list(_shapes(document, ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TissueError(
            slide.path, f"{path} is not GeoJSON of polygons ({type(error).__name__}: {error})."
        ) from error


def _shapes(node: Any, name: str) -> Iterator[Shape]:
    if isinstance(node, list):
        for item in node:
            yield from _shapes(item, name)
        return
    if not isinstance(node, dict):
        raise TypeError(f"expected an object, found {type(node).__name__}")
    kind = node.get("type")
    if kind == "FeatureCollection":
        yield from _shapes(node["features"], name)
    elif kind == "Feature":
        if node.get("geometry") is not None:
            yield from _shapes(node["geometry"], _class_name(node.get("properties") or {}))
    elif kind == "GeometryCollection":
        yield from _shapes(node["geometries"], name)
    elif kind == "Polygon":
        yield from _polygon(node["coordinates"], name)
    elif kind == "MultiPolygon":
        for rings in node["coordinates"]:
            yield from _polygon(rings, name)
    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return
    elif "tissue" in node or "foreground" in node:
        yield from _contours(node, name)
    else:
        raise ValueError(f"unknown GeoJSON type {kind!r}")


def _contours(node: dict[str, Any], name: str) -> Iterator[Shape]:
    """CLAM's structure: contours, and for each contour its list of holes."""
    contours = node["tissue"] if "tissue" in node else node["foreground"]
    holes = node.get("holes") or [[] for _ in contours]
    for contour, inner in zip(contours, holes, strict=True):
        yield from _polygon([_points(contour), *(_points(h) for h in inner)], name)


def _points(contour: Any) -> Any:
    """OpenCV's contours are (N, 1, 2)."""
    return np.asarray(contour, dtype=np.float64).reshape(-1, 2)


def _class_name(properties: dict[str, Any]) -> str:
    for key in ("classification", "class", "label", "name"):
        value = properties.get(key)
        if isinstance(value, dict):
            value = value.get("name")
        if isinstance(value, str) and value:
            return value
    return ""


def _polygon(rings: Any, name: str) -> Iterator[Shape]:
    """Polygons of one list of rings: open rings are closed, crossings resolved."""
    import shapely
    from shapely.geometry import Polygon

    usable = []
    for index, ring in enumerate(rings):
        points = np.asarray(ring, dtype=np.float64)
        if points.size == 0:
            if index == 0:
                return
            continue
        if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
            raise ValueError("a ring must be a list of finite [x, y]")
        distinct = len(np.unique(points[:, :2], axis=0))
        if distinct < 3:
            if index == 0:
                return
            continue
        usable.append(points[:, :2])
    if not usable:
        return
    polygon = Polygon(usable[0], usable[1:])
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon)
    for part in _flat(polygon):
        yield Shape(part, name)


def _flat(geometry: Any) -> Iterator[Polygon]:
    """The polygons with an area within any geometry."""
    if geometry.geom_type == "Polygon":
        if geometry.area > 0:
            yield geometry
    elif hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _flat(part)


def clean(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Polygons without overlaps, largest first; those that do not overlap are left as they are."""
    import shapely

    if len(polygons) > 1:
        array = np.asarray(polygons, dtype=object)
        tree = shapely.STRtree(array)
        a, b = tree.query(array, predicate="intersects")
        pair = a < b
        overlap = shapely.area(shapely.intersection(array[a[pair]], array[b[pair]]))
        if (overlap > 0).any():
            polygons = list(_flat(shapely.union_all(array)))
    return sorted(polygons, key=lambda p: (-p.area, *p.bounds))


def clip(
    polygons: Sequence[Polygon], slide: Slide, path: Path, max_outside: float
) -> list[Polygon]:
    """Cut polygons at the slide's edge.

    Raises:
        TissueError: More than `max_outside` of their area lies outside: another slide's mask.
    """
    import shapely

    width, height = slide.dimensions
    array = np.asarray(polygons, dtype=object)
    if len(array) == 0:
        return []
    x0, y0, x1, y1 = shapely.bounds(array).T
    if (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all():
        return list(polygons)
    frame = shapely.box(0, 0, width, height)
    inside = [part for g in shapely.intersection(array, frame) for part in _flat(g)]
    total = float(shapely.area(array).sum())
    outside = 1 - sum(p.area for p in inside) / total
    if outside > max_outside:
        raise TissueError(
            slide.path,
            f"{outside:.0%} of the area of {path} lies outside the slide "
            f"({width} x {height} px): it belongs to another slide or another level.",
        )
    return sorted(inside, key=lambda p: (-p.area, *p.bounds))
