"""`detect_tissue`: from a slide and the name of a method to a `TissueMask`."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsipipe.errors import ConfigError, TissueError
from wsipipe.tissue.density import extremes
from wsipipe.tissue.mask import TissueMask
from wsipipe.tissue.settings import CLASSICAL, VERSIONS, classical_settings, parse_method

if TYPE_CHECKING:
    from wsipipe.slide import Slide

__all__ = ["detect_tissue", "tissue_settings"]

# A picture with at least this share of black and hardly any glass is a dark-field one.
_DARK_SHARE = 0.5
_GLASS_SHARE = 0.02


def detect_tissue(
    slide: Slide, method: str = "auto", *, slide_id: str | None = None, **settings: Any
) -> TissueMask:
    """Find the tissue of a slide.

    Args:
        slide: An open slide. Only its own pixels are read, never the label or macro image.
        method: "auto" (the classical detector), "otsu", "hsv", "entropy", "none" (all of the
            slide), a network ("hest", "grandqc", "grandqc-artefacts", a checkpoint folder), a
            plugin's name, or a folder of GeoJSON masks named `<slide_id>.geojson`. Settings may
            follow the name: "auto?min_tissue_mm2=0.1&pen=false".
        slide_id: Which mask of the folder; the slide's base name where None.
        settings: Parameters of the method, as `ClassicalSettings` or `NeuralSettings` name them.

    Returns:
        Mask over the whole level-0 area.

    Raises:
        ConfigError: Unknown method or setting.
        MissingMppError: The slide does not say how large a pixel is.
        TissueError: The slide has a dark background (fluorescence), or its mask does not fit.
        WeightsError, MissingExtraError: A network cannot be run.
    """
    slide_id = slide_id or _base_name(slide)
    recorded = tissue_settings(method, slide_id=slide_id, **settings)
    name, settings = _with_query(method, settings)
    if name == "none":
        return _whole_slide(slide, recorded)
    if name in CLASSICAL:
        return _classical(slide, name, recorded, settings)
    from wsipipe.tissue import registry

    card = registry.find_card(name)
    if card is not None:
        from wsipipe.tissue.neural import detect_by_network

        return detect_by_network(slide, card, recorded, settings)
    if Path(name).is_dir():
        from wsipipe.tissue.geojson import mask_file, read_tissue_geojson

        return read_tissue_geojson(mask_file(Path(name), slide_id), slide)
    return _plugin(slide, name, recorded)


def tissue_settings(
    method: str = "auto", *, slide_id: str | None = None, **settings: Any
) -> dict[str, Any]:
    """What decides a mask besides the pixels: method, version, parameters; JSON-able.

    For a folder of masks and a `slide_id` this holds the sha256 of that slide's file; without a
    `slide_id` only that masks are given.

    Raises:
        ConfigError: Unknown method or setting; a folder without any mask.
        TissueError: The folder has no mask for the slide.
        WeightsError: A network's weights cannot be had.
    """
    name, settings = _with_query(method, settings)
    if name in CLASSICAL:
        return {
            "method": name,
            "version": VERSIONS[name],
            **asdict(classical_settings(name, settings)),
        }
    from wsipipe.tissue import registry

    card = registry.find_card(name)
    if card is not None:
        from wsipipe.tissue.neural import network_settings

        return network_settings(card, settings)
    if settings:
        raise ConfigError(
            f"Tissue method {name!r} has no settings, and {', '.join(settings)} is given.",
            "Leave it out.",
        )
    if name == "none":
        return {"method": name, "version": VERSIONS[name]}
    if Path(name).is_dir():
        return _folder_settings(Path(name), slide_id)
    plugin = registry.find_plugin(name)
    if plugin is None:
        raise ConfigError(
            f"No tissue method is called {name!r} and no folder lies there.",
            f"Methods: {', '.join(registry.method_names())}, or a folder of <slide_id>.geojson.",
        )
    return {"method": name, **plugin.settings()}


def _with_query(method: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if Path(method).is_dir():
        return method, settings
    name, query = parse_method(method)
    return name, {**query, **settings}


def _folder_settings(folder: Path, slide_id: str | None) -> dict[str, Any]:
    from wsipipe.tissue.geojson import MASK_SUFFIXES, file_sha256, mask_file

    recorded: dict[str, Any] = {"method": "geojson", "version": VERSIONS["geojson"]}
    if slide_id is not None:
        recorded["sha256"] = file_sha256(mask_file(folder, slide_id))
    elif not any(path.suffix in MASK_SUFFIXES for path in folder.rglob("*")):
        raise ConfigError(
            f"No mask lies in the folder {folder}.",
            "A folder of masks holds <slide_id>.geojson; `wsipipe tissue` makes masks to start "
            "from.",
        )
    return recorded


def _base_name(slide: Slide) -> str:
    """The slide's id where nobody gives one: its file's name without one known suffix."""
    from wsipipe.slide.discover import SLIDE_SUFFIXES

    name = Path(slide.path).name
    for suffix in (*SLIDE_SUFFIXES, ".png", ".jpg", ".jpeg"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _whole_slide(slide: Slide, recorded: dict[str, Any]) -> TissueMask:
    """One mask pixel as large as the slide: exact, and free."""
    width, height = slide.dimensions
    return TissueMask(
        mask=np.ones((1, 1), dtype=bool),
        downsample=(Fraction(width), Fraction(height)),
        method="none",
        settings=recorded,
        mpp_xy=slide.mpp_xy,
        dimensions=(width, height),
    )


def _classical(
    slide: Slide, method: str, recorded: dict[str, Any], given: dict[str, Any]
) -> TissueMask:
    from wsipipe.tissue.classical import detect_tissue_rgb

    settings = classical_settings(method, given)
    mpp_x, mpp_y = slide.mpp_xy
    thumbnail = slide.thumbnail(settings.mpp)
    _refuse_dark_field(slide, thumbnail.pixels)
    scale = (float(mpp_x * thumbnail.downsample[0]), float(mpp_y * thumbnail.downsample[1]))
    found = detect_tissue_rgb(thumbnail.pixels, scale, settings, method=method)
    return TissueMask(
        mask=found.tissue,
        downsample=thumbnail.downsample,
        method=method,
        settings=recorded,
        mpp_xy=slide.mpp_xy,
        pen=found.pen if settings.pen else None,
        dimensions=slide.dimensions,
    )


def _plugin(slide: Slide, name: str, recorded: dict[str, Any]) -> TissueMask:
    from wsipipe.tissue import registry

    detector = registry.find_plugin(name)
    assert detector is not None  # `tissue_settings` has found it
    thumbnail = slide.thumbnail(detector.mpp)
    down, own = thumbnail.downsample, slide.mpp_xy
    mask = detector(thumbnail.pixels, (float(down[0] * own[0]), float(down[1] * own[1])))
    if mask.shape != thumbnail.pixels.shape[:2]:
        raise TissueError(
            slide.path,
            f"plugin {name} gave a mask of {mask.shape} for a picture of "
            f"{thumbnail.pixels.shape[:2]}.",
            "Report it to the plugin's makers.",
        )
    return TissueMask(
        mask=np.asarray(mask, dtype=bool),
        downsample=down,
        method=name,
        settings=recorded,
        mpp_xy=own,
        dimensions=slide.dimensions,
    )


def _refuse_dark_field(slide: Slide, rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    low, high = extremes(rgb)
    dark = np.count_nonzero(high < 40) / high.size
    glass = np.count_nonzero(low >= 150) / high.size
    if dark >= _DARK_SHARE and glass < _GLASS_SHARE and high.max() > 8:
        raise TissueError(
            slide.path,
            f"the background is dark ({dark:.0%} black): fluorescence, not a brightfield slide.",
        )
