"""Tissue masks as GeoJSON in level-0 pixels: written as QuPath opens it, read from many tools.

Read are: a FeatureCollection (QuPath, TRIDENT), a list of features (older QuPath), one feature or
geometry, and an object with lists of contours under "tissue" and "holes" (CLAM's structure).
Rings may be open or closed, cross themselves, overlap each other.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.errors import TissueError
from wsipipe.tissue.mask import TissueMask
from wsipipe.tissue.settings import VERSIONS
from wsipipe.types import BoolArray

if TYPE_CHECKING:
    from shapely.geometry import Polygon

    from wsipipe.slide import Slide

__all__ = [
    "MASK_SUFFIXES",
    "file_sha256",
    "fit_polygons",
    "load_document",
    "mask_file",
    "read_tissue_geojson",
    "recorded",
    "write_tissue_geojson",
]

# Of files that hold masks, in the order in which they are looked for.
MASK_SUFFIXES = (".geojson", ".json")

# Resolution of the pixel form of masks that came as polygons, µm per pixel.
_GRID_UM = 8
# Annotators draw over the edge; a mask of another slide lies outside by more than this share.
_MAX_OUTSIDE = 0.05
_COLOUR = (0, 160, 0)
_NAMESPACE = uuid.UUID("6f2f0a1c-6c5e-5d0e-9a53-0d6b8f6f5a11")


def write_tissue_geojson(
    tissue: TissueMask,
    path: str | Path | None = None,
    *,
    slide_id: str = "",
    fingerprint: str = "",
) -> bytes:
    """Serialise a mask: one annotation a connected part, holes as interior rings.

    Args:
        tissue: The mask.
        path: Where to write; None only returns the bytes.
        slide_id: Recorded, and the seed of the objects' ids.
        fingerprint: Of the slide, recorded.

    Returns:
        The file's bytes, the same for the same mask.
    """
    height, width = tissue.mask.shape
    features = []
    for index, polygon in enumerate(tissue.polygons()):
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{slide_id}/{index}")),
                "geometry": {"type": "Polygon", "coordinates": _rings(polygon)},
                "properties": {
                    "objectType": "annotation",
                    "name": f"Tissue {index}",
                    "classification": {"name": "Tissue", "color": list(_COLOUR)},
                    "isLocked": False,
                    "tissue_id": index,
                },
            }
        )
    document = {
        "type": "FeatureCollection",
        "features": features,
        "wsipipe": {
            "slide_id": slide_id,
            "slide_fingerprint": fingerprint,
            "slide_size": list(_slide_size(tissue)),
            "mask_size": [width, height],
            "downsample": [str(d) for d in tissue.downsample],
            "tissue": tissue.settings,
            "tissue_mm2": round(tissue.area_mm2, 6),
            "pen_mm2": round(tissue.pen_mm2, 6),
            # Not among the features: other tools would take it for tissue.
            "pen": _pen_rings(tissue),
            "features_sha256": _features_hash(features),
        },
    }
    data = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if path is not None:
        Path(path).write_bytes(data)
    return data


def _pen_rings(tissue: TissueMask) -> list[Any] | None:
    """Coordinates of a MultiPolygon; None where nothing looked for pen."""
    if tissue.pen is None:
        return None
    from wsipipe.tissue.outlines import mask_outlines

    polygons = mask_outlines(tissue.pen, tissue.downsample, tissue.dimensions)
    return [_rings(polygon) for polygon in polygons]


def _read_pen(
    document: Any, downsample: tuple[Fraction, Fraction], shape: tuple[int, int], slide: Slide
) -> BoolArray | None:
    """The pen that a file of our own remembers, on the mask's grid."""
    own = document.get("wsipipe") if isinstance(document, dict) else None
    rings = own.get("pen") if isinstance(own, dict) else None
    if not isinstance(rings, list):
        return None
    from shapely.geometry import Polygon

    from wsipipe.tissue.outlines import rasterise

    try:
        polygons = [Polygon(shell, holes) for shell, *holes in rings]
    except (TypeError, ValueError):
        return None
    return rasterise(polygons, shape, downsample, slide.dimensions)


def recorded(path: str | Path) -> dict[str, Any] | None:
    """What a mask file says about its making; None for a file of another tool or an edited one."""
    try:
        document = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    own = document.get("wsipipe") if isinstance(document, dict) else None
    if not isinstance(own, dict):
        return None
    unchanged = own.get("features_sha256") == _features_hash(document.get("features"))
    return own if unchanged else None


def _features_hash(features: Any) -> str:
    text = json.dumps(features, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _slide_size(tissue: TissueMask) -> tuple[int, int]:
    if tissue.dimensions is not None:
        return tissue.dimensions
    height, width = tissue.mask.shape
    return round(width * tissue.downsample[0]), round(height * tissue.downsample[1])


def mask_file(folder: Path, slide_id: str) -> Path:
    """The mask of a slide in a folder: `<slide_id>.geojson` or `.json`, else by base name.

    Raises:
        TissueError: There is none.
    """
    for name in (slide_id, slide_id.rsplit("/", 1)[-1]):
        for suffix in MASK_SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return path
    raise TissueError(
        slide_id,
        f"no mask {slide_id}.geojson lies in {folder}.",
        "Put it there, or leave the slide out; `wsipipe tissue` makes masks to start from.",
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_tissue_geojson(path: str | Path, slide: Slide) -> TissueMask:
    """Read a mask and fit it to a slide.

    Args:
        path: GeoJSON in level-0 pixels of the slide.
        slide: The slide that the mask belongs to.

    Returns:
        A mask whose polygons are the file's (cleaned of crossings and overlaps, cut at the slide's
        edge); they decide coverage exactly.

    Raises:
        TissueError: No JSON, no polygons' geometry, or a mask of another slide.
    """
    path = Path(path)
    document = load_document(path, slide)
    from wsipipe.tissue import polygons as shapes

    found = shapes.parse(document, path, slide)
    chosen = [shape.polygon for shape in found if not shape.ignored]
    return fit_polygons(chosen, document, path, slide, method="geojson", max_outside=_MAX_OUTSIDE)


def fit_polygons(
    chosen: list[Polygon],
    document: Any,
    path: Path,
    slide: Slide,
    *,
    method: str,
    max_outside: float,
) -> TissueMask:
    """Polygons of a file as a mask on the slide.

    Raises:
        TissueError: More than `max_outside` of their area lies outside the slide.
    """
    from wsipipe.tissue import polygons as shapes
    from wsipipe.tissue.outlines import rasterise

    outlines = shapes.clean(chosen)
    outlines = shapes.clip(outlines, slide, path, max_outside)
    downsample, shape = _grid(document, path, slide)
    return TissueMask(
        mask=rasterise(outlines, shape, downsample, slide.dimensions),
        downsample=downsample,
        method=method,
        settings={
            "method": method,
            "version": VERSIONS["geojson"],
            "sha256": file_sha256(path),
        },
        mpp_xy=slide.mpp_xy,
        pen=_read_pen(document, downsample, shape, slide) if method == "geojson" else None,
        outlines=tuple(outlines),
        dimensions=slide.dimensions,
    )


def _rings(polygon: Polygon) -> list[list[list[float | int]]]:
    rings = [polygon.exterior, *polygon.interiors]
    return [[[_number(x), _number(y)] for x, y in ring.coords] for ring in rings]


def _number(value: float) -> float | int:
    """Whole numbers as such: half the size, and what QuPath writes too."""
    return int(value) if value == int(value) else value


def load_document(path: Path, slide: Slide) -> Any:
    """Parse a file.

    Raises:
        TissueError: Not there, empty, or no JSON.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TissueError(slide.path, f"mask {path} cannot be read ({error}).") from error
    except UnicodeDecodeError as error:
        raise TissueError(slide.path, f"mask {path} is not a text file.") from error
    if not text.strip():
        raise TissueError(slide.path, f"mask {path} is an empty file.")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TissueError(slide.path, f"mask {path} is not valid JSON ({error}).") from error


def _grid(
    document: Any, path: Path, slide: Slide
) -> tuple[tuple[Fraction, Fraction], tuple[int, int]]:
    """The pixel grid of the mask: the file's own where it was written here, else 8 µm."""
    width, height = slide.dimensions
    own = document.get("wsipipe") if isinstance(document, dict) else None
    if isinstance(own, dict) and "slide_size" in own:
        try:
            size = tuple(int(v) for v in own["slide_size"])
            columns, rows = (int(v) for v in own["mask_size"])
            dx, dy = (Fraction(v) for v in own["downsample"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise TissueError(slide.path, f"the frame of mask {path} is damaged.") from error
        if size != (width, height):
            raise TissueError(
                slide.path,
                f"mask {path} was made for a slide of {size[0]} x {size[1]} px, "
                f"this one has {width} x {height}.",
            )
        if min(dx, dy) > 0 and (columns, rows) == (-(-width // dx), -(-height // dy)):
            return (dx, dy), (rows, columns)
    dx, dy = (max(Fraction(1), Fraction(_GRID_UM) / mpp) for mpp in slide.mpp_xy)
    return (dx, dy), (-(-height // dy), -(-width // dx))
