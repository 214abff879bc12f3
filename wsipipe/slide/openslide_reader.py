"""OpenSlide: for every format that the direct reader does not prove itself on."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsipipe.errors import ReadError, SlideOpenError
from wsipipe.slide.mpp import claim, objective_claim
from wsipipe.slide.reader import WHITE, MppClaim, Reader, ReaderInfo, check_sizes
from wsipipe.types import Bounds, Rgb, TileArray

__all__ = ["OpenSlideReader", "composite"]

# What may leave the file: nothing here names a person, a date or a place.
_ALLOWED: Final = ("vendor", "mpp-x", "mpp-y", "objective-power", "level-count", "quickhash-1")
_BLOCK_PX: Final = 256
_CACHE_BYTES: Final = 32 * 1024 * 1024


class OpenSlideReader(Reader):
    """Reads through one OpenSlide handle, which threads share.

    An error latches: after one bad tile every later read on the handle fails. So the handle is
    replaced after each error, under a lock, by a fresh one.
    """

    name = "openslide"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._handle: Any = _open(self._path)
        try:
            self.info = _describe(self._path, self._handle)
            check_sizes(self._path, self.info.level_sizes, self.info.block_sizes)
        except BaseException:
            self._handle.close()
            raise
        self._downsamples = tuple(self._handle.level_downsamples)

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """See `Reader.read_block`."""
        import openslide

        block_w, block_h = self.info.block_sizes[level]
        width, height = self.info.level_sizes[level]
        x, y = col * block_w, row * block_h
        size = (min(block_w, width - x), min(block_h, height - y))
        # OpenSlide is asked in level-0 pixels and divides by its own ratio; where that is not
        # whole (rounded level sizes) the nearest location is at most half a level-0 pixel off.
        downsample = self._downsamples[level]
        location = (round(x * downsample), round(y * downsample))
        handle = self._handle
        try:
            image = handle.read_region(location, level, size)
        except openslide.OpenSlideError as error:
            self._replace(handle)
            raise ReadError(
                self._path, f"level {level} at ({x}, {y}): {_first_line(error)}"
            ) from error
        return composite(np.asarray(image), self.info.background)

    def refresh(self) -> None:
        """Replace the handle."""
        self._replace(self._handle)

    def _replace(self, handle: Any) -> None:
        with self._lock:
            if self._handle is handle:
                # Other threads may still be reading from the old handle; it is closed when the
                # last of them lets go of it.
                with contextlib.suppress(SlideOpenError):
                    self._handle = _open(self._path)

    def close(self) -> None:
        """Close the handle."""
        self._handle.close()


def composite(rgba: TileArray, background: Rgb) -> TileArray | None:
    """Lay straight-alpha pixels on the background: what was not scanned is never black.

    Args:
        rgba: (h, w, 4) uint8.

    Returns:
        (h, w, 3) uint8, or None where everything is transparent.
    """
    alpha = rgba[..., 3]
    lowest = alpha.min()
    if lowest == 255:
        return np.ascontiguousarray(rgba[..., :3])
    if not alpha.any():
        return None
    weight = alpha[..., None].astype(np.uint16)
    mixed = rgba[..., :3] * weight + np.asarray(background, np.uint16) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def _open(path: Path) -> Any:
    import openslide

    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
            raise SlideOpenError(
                path,
                f"its folder {path.stem}/ is missing; a MIRAX slide is the file and the folder",
                "Copy the folder beside the file.",
            ) from error
        if path.suffix != ".mrxs" == path.suffix.lower():
            raise SlideOpenError(
                path, "OpenSlide knows MIRAX by the suffix .mrxs in small letters", "Rename it."
            ) from error
        raise SlideOpenError(path, f"OpenSlide cannot open it: {_first_line(error)}") from error
    # One cache a handle keeps memory bounded however many slides are open.
    handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
    return handle


def _describe(path: Path, handle: Any) -> ReaderInfo:
    sizes = tuple((int(w), int(h)) for w, h in handle.level_dimensions)
    properties = _properties(handle, len(sizes))
    get = properties.get
    blocks = []
    for index, (width, height) in enumerate(sizes):
        tile = tuple(
            int(get(f"openslide.level[{index}].tile-{side}", 0)) for side in ("width", "height")
        )
        # OpenSlide would take memory for a whole tile, however absurd, and abort the process.
        check_sizes(path, ((width, height),), ((max(tile[0], 1), max(tile[1], 1)),))
        blocks.append((_block_side(tile[0], width), _block_side(tile[1], height)))
    allowed = {
        f"openslide.{key}": properties[f"openslide.{key}"]
        for key in _ALLOWED
        if f"openslide.{key}" in properties
    }
    allowed |= {k: v for k, v in properties.items() if k.startswith("openslide.level[")}
    profile = handle.color_profile
    return ReaderInfo(
        vendor=get("openslide.vendor"),
        level_sizes=sizes,
        block_sizes=tuple(blocks),
        background=_background(get("openslide.background-color")),
        bounds=_bounds(properties, sizes[0]),
        claims=tuple(_claims(properties)),
        properties=allowed,
        icc_profile=profile.tobytes() if profile is not None else None,
    )


def _properties(handle: Any, levels: int) -> dict[str, str]:
    """The properties that are needed, one by one: a damaged one does not take the others along."""
    sides = ("width", "height", "tile-width", "tile-height")
    wanted = [f"openslide.{key}" for key in (*_ALLOWED, "background-color")]
    wanted += [f"openslide.bounds-{side}" for side in ("x", "y", "width", "height")]
    wanted += [f"openslide.level[{index}].{side}" for index in range(levels) for side in sides]
    wanted += ["aperio.MPP", "tiff.ResolutionUnit", "tiff.XResolution", "tiff.YResolution"]
    found = {}
    for name in wanted:
        with contextlib.suppress(KeyError, UnicodeDecodeError):
            found[name] = str(handle.properties[name])
    return found


def _block_side(tile: int, size: int) -> int:
    """Whole tiles, about 256 px: no tile is cut, and a bad one takes few others along."""
    tile = tile if 0 < tile <= 8192 else _BLOCK_PX
    return min(max(1, _BLOCK_PX // tile) * tile, size)


def _background(text: str | None) -> Rgb:
    if text is None or len(text) != 6:
        return WHITE
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _bounds(properties: dict[str, str], size: tuple[int, int]) -> Bounds | None:
    try:
        x, y, width, height = (
            int(properties[f"openslide.bounds-{side}"]) for side in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return None
    right, bottom = min(x + width, size[0]), min(y + height, size[1])
    x, y = max(x, 0), max(y, 0)
    if right <= x or bottom <= y:
        return None
    return Bounds(x, y, right - x, bottom - y)


def _claims(properties: dict[str, str]) -> list[MppClaim]:
    get = properties.get
    claims = []
    if "openslide.mpp-x" in properties:
        claims.append(claim("openslide.mpp-x", get("openslide.mpp-x"), get("openslide.mpp-y")))
    if "aperio.MPP" in properties:
        claims.append(claim("aperio.MPP", get("aperio.MPP")))
    unit = {"inch": 25400, "centimeter": 10000}.get(get("tiff.ResolutionUnit", ""))
    if unit and "tiff.XResolution" in properties:
        claims.append(
            claim(
                "tiff.XResolution",
                _per(unit, get("tiff.XResolution")),
                _per(unit, get("tiff.YResolution", get("tiff.XResolution"))),
            )
        )
    guess = objective_claim("objective power", get("openslide.objective-power"))
    if guess is not None:
        claims.append(guess)
    return claims


def _per(unit_um: int, text: str | None) -> float | None:
    try:
        value = float(str(text).replace(",", "."))
    except ValueError:
        return None
    return unit_um / value if value > 0 else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
