"""OME-Zarr: an image of three 8-bit channels with its pyramid (OME-NGFF 0.4 and 0.5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsipipe.errors import MissingExtraError, ReadError, SlideOpenError
from wsipipe.slide.mpp import claim
from wsipipe.slide.reader import WHITE, MppClaim, Reader, ReaderInfo, check_sizes
from wsipipe.types import TileArray

__all__ = ["ZarrReader"]

_ERRORS: Final = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError,
                  AttributeError, MemoryError)  # fmt: skip
_UNIT_UM: Final = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}
_BLOCK_PX: Final = 512


class ZarrReader(Reader):
    """Reads a folder `x.zarr` (or `x.ome.zarr`)."""

    name = "zarr"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            import zarr
        except ImportError as error:
            raise MissingExtraError("zarr", f"Opening {path}", ["zarr"]) from error
        try:
            group = zarr.open_group(str(path), mode="r")
            attributes = dict(group.attrs)
            image = _multiscale(self._path, attributes)
            axes = [str(_named(axis)) for axis in image.get("axes", "tczyx")]
            datasets = list(image["datasets"])
            arrays = [group[str(item["path"])] for item in datasets]
            shapes = [tuple(int(n) for n in array.shape) for array in arrays]
            kinds = {np.dtype(array.dtype) for array in arrays}
            chunks = [tuple(int(n) for n in array.chunks) for array in arrays]
            self._fills = [int(array.fill_value or 0) for array in arrays]
        except _ERRORS as error:
            raise SlideOpenError(path, f"not an OME-Zarr image ({error})") from error
        _check(self._path, axes, shapes, kinds)
        self._arrays, self._axes = arrays, axes
        y, x = axes.index("y"), axes.index("x")
        sizes = tuple((shape[x], shape[y]) for shape in shapes)
        self._chunks = [(chunk[x], chunk[y]) for chunk in chunks]
        blocks = tuple(
            (_side(chunk[x], size[0]), _side(chunk[y], size[1]))
            for chunk, size in zip(chunks, sizes, strict=True)
        )
        for chunk in chunks:
            check_sizes(path, ((1, 1),), ((chunk[x], chunk[y]),))
        check_sizes(path, sizes, blocks)
        self.info = ReaderInfo(
            vendor="ome-zarr",
            level_sizes=sizes,
            block_sizes=blocks,
            claims=tuple(_claims(image, datasets[0], axes)),
            properties={"openslide.vendor": "ome-zarr", "openslide.level-count": str(len(sizes))},
        )

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        block_w, block_h = self.info.block_sizes[level]
        width, height = self.info.level_sizes[level]
        x, y = col * block_w, row * block_h
        place: dict[str, Any] = {
            "x": slice(x, min(x + block_w, width)),
            "y": slice(y, min(y + block_h, height)),
            "c": slice(0, 3),
        }
        try:
            found = np.asarray(
                self._arrays[level][tuple(place.get(axis, 0) for axis in self._axes)]
            )
        except _ERRORS as error:
            raise ReadError(self._path, f"level {level} at ({x}, {y}): {error}") from error
        left = [axis for axis in self._axes if axis in "xyc"]
        pixels = found.transpose([left.index(axis) for axis in "yxc"])
        return _blank(np.ascontiguousarray(pixels), self._chunks[level], self._fills[level])


def _blank(pixels: TileArray, chunk: tuple[int, int], fill: int) -> TileArray | None:
    """White for chunks of the fill value alone; None where all are.

    Zarr's writers leave such chunks out, and its readers make no difference: nothing was scanned.
    """
    seen = False
    for top in range(0, pixels.shape[0], chunk[1]):
        for left in range(0, pixels.shape[1], chunk[0]):
            piece = pixels[top : top + chunk[1], left : left + chunk[0]]
            if (piece[0, 0] == fill).all() and (piece == fill).all():
                piece[:] = WHITE
            else:
                seen = True
    return pixels if seen else None


def _multiscale(path: Path, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    scales = attributes.get("multiscales") or attributes.get("ome", {}).get("multiscales")
    if not scales:
        raise SlideOpenError(path, "a Zarr folder without OME-Zarr 'multiscales'")
    first: Mapping[str, Any] = scales[0]
    return first


def _named(axis: Any) -> Any:
    return axis["name"] if isinstance(axis, Mapping) else axis


def _check(
    path: Path, axes: list[str], shapes: list[tuple[int, ...]], kinds: set[np.dtype[Any]]
) -> None:
    remedy = "Export one brightfield image as 8-bit RGB."
    if not shapes or {"x", "y", "c"} - set(axes) or any(len(s) != len(axes) for s in shapes):
        raise SlideOpenError(path, f"an image with axes {''.join(axes)}, not RGB", remedy)
    if kinds != {np.dtype(np.uint8)}:
        raise SlideOpenError(
            path, f"{', '.join(map(str, kinds))} pixels: reducing them to 8 bits would be a guess",
            remedy,
        )  # fmt: skip
    channels = {shape[axes.index("c")] for shape in shapes}
    if channels != {3}:
        raise SlideOpenError(
            path, f"{max(channels)} channels: multichannel fluorescence is not brightfield", remedy
        )
    for axis, word in (("z", "focal planes"), ("t", "time points")):
        if axis in axes and max(shape[axes.index(axis)] for shape in shapes) > 1:
            raise SlideOpenError(path, f"a stack of several {word}", remedy)


def _side(chunk: int, size: int) -> int:
    """Whole chunks, about 512 px."""
    return min(max(1, _BLOCK_PX // chunk) * chunk, size)


def _claims(
    image: Mapping[str, Any], dataset: Mapping[str, Any], axes: list[str]
) -> list[MppClaim]:
    factors = {}
    for axis in image.get("axes", ()):
        if isinstance(axis, Mapping):
            factors[axis["name"]] = _UNIT_UM.get(str(axis.get("unit")))
    for change in dataset.get("coordinateTransformations", ()):
        if isinstance(change, Mapping) and change.get("type") == "scale":
            scale = dict(zip(axes, change.get("scale", ()), strict=False))
            unit_x, unit_y = factors.get("x"), factors.get("y")
            if unit_x and unit_y and "x" in scale and "y" in scale:
                x, y = float(scale["x"]) * unit_x, float(scale["y"]) * unit_y
                return [claim("ome-zarr scale", x, y)]
    return []
