"""Attention or contribution of every tile of a slide, placed in level-0 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.mil.bags import BagFile, good_rows, open_rows, positive_number, read_coords
from wsipipe.mil.bank import all_finite
from wsipipe.mil.contributions import contributions
from wsipipe.mil.ensemble import Ensemble

if TYPE_CHECKING:
    from wsipipe.slide import Slide

__all__ = ["EmptyBagError", "Placement", "SlideMap", "explain", "place_tiles"]


class EmptyBagError(ConfigError):
    """A slide without a readable tile: nothing to explain, and no failure."""


@dataclass(frozen=True)
class Placement:
    """Where the tiles of a bag lie.

    Attributes:
        coords: (N, 2) float64 level-0 pixels.
        tile_px0: Edge of a tile in level-0 pixels.
        size: (width, height) of level 0.
        mpp: µm per level-0 pixel, or None.
    """

    coords: NDArray[np.float64]
    tile_px0: float
    size: tuple[int, int]
    mpp: float | None


@dataclass(frozen=True)
class SlideMap:
    """What the models say about one slide.

    Attributes:
        values: (N,) one number a tile.
        what: "attention" or "contribution".
        output: (C,) as in the predictions.
        folds: Folds that spoke: those that held the slide out, where it took part in training.
        held_out: Is this an out-of-fold map?
    """

    values: NDArray[np.float64]
    what: str
    output: NDArray[np.float64]
    folds: tuple[int, ...]
    held_out: bool


def explain(ensemble: Ensemble, file: BagFile, *, what: str = "auto", target: int = 0) -> SlideMap:
    """Attention (or contribution) of the tiles of one slide, mean over folds.

    Args:
        what: "attention", "contribution", or "auto": attention where the model has it.

    Raises:
        ConfigError: The model has no attention, or the bag is empty.
    """
    if what not in ("auto", "attention", "contribution"):
        raise ConfigError(f"--kind is attention or contribution, not '{what}'.")
    rows: Any = open_rows(file)
    good = good_rows(file)
    if good is not None:
        rows = rows[good]
    if len(rows) == 0:
        raise EmptyBagError(f"{file.slide_id}: no readable tile, no heatmap.")
    if not all_finite(rows):
        raise ConfigError(f"{file.path}: NaN in the features of readable tiles.")
    chosen, held_out = ensemble.folds_for(file.slide_id)
    part = Ensemble(chosen)
    output, _, attention = part.predict(rows, target)
    if what == "attention" and attention is None:
        raise ConfigError(
            f"'{ensemble.info['aggregator']}' has no attention.", "Use --kind contribution."
        )
    if what == "contribution" or attention is None:
        values = np.mean([contributions(f, rows, target) for f in chosen], axis=0)
        what = "contribution"
    else:
        values, what = attention, "attention"
    numbers = tuple(int(f.info["fold"]) for f in chosen)
    return SlideMap(values, what, output, numbers, held_out)


def place_tiles(
    file: BagFile,
    slide: Slide | None = None,
    *,
    unit: str | None = None,
    tile_size: float | None = None,
) -> Placement:
    """Put a bag's tiles into level-0 pixels; units come from the file or the user, never a guess.

    Args:
        slide: For its size and mpp, where the file does not say them.
        unit: "px0" or "um", for files that do not say.
        tile_size: Edge of a tile in that unit, for files that do not say.

    Raises:
        ConfigError: Coordinates, their unit or the tile size are not known.
    """
    coords = read_coords(file)
    if coords is None:
        raise ConfigError(f"{file.path}: no coordinates, no heatmap.")
    good = good_rows(file)
    coords = coords.astype(np.float64) if good is None else coords[good].astype(np.float64)
    if not np.isfinite(coords).all():
        raise ConfigError(f"{file.path}: coordinates that are no numbers, no heatmap.")
    unit = file.unit or unit
    if unit not in ("px0", "um"):
        raise ConfigError(
            f"{file.path}: the file does not say the unit of its coordinates.",
            "Say it with --coords-unit px0 (level-0 pixels) or um.",
        )
    edge = _tile_edge(file) or tile_size
    if not edge:
        raise ConfigError(
            f"{file.path}: the file does not say how large its tiles are.",
            "Say it with --tile-size, in the unit of the coordinates.",
        )
    mpp = positive_number(file.attrs.get("level0_mpp"))
    if mpp is None and slide is not None:
        mpp = slide.mpp
    if unit == "um":
        if mpp is None:
            raise ConfigError(
                f"{file.path}: coordinates are in µm; the slide is needed to place them.",
                "Give --slides.",
            )
        coords, edge = coords / mpp, edge / mpp
    return Placement(coords, float(edge), _size(file, slide, coords, edge), mpp)


def _tile_edge(file: BagFile) -> float | None:
    a = file.attrs
    if file.layout == "wsipipe" and a.get("mpp_effective") and a.get("level0_mpp"):
        # Exact where the attribute for other tools is rounded to a whole pixel.
        return float(a["tile_px"]) * float(a["mpp_effective"]) / float(a["level0_mpp"])
    return file.tile_size


def _size(
    file: BagFile, slide: Slide | None, coords: NDArray[np.float64], edge: float
) -> tuple[int, int]:
    if slide is not None:
        return slide.dimensions
    from wsipipe.store.features import open_h5, plain_attributes

    if file.layout not in ("pt", "npy"):
        with open_h5(file.path) as h5:
            said = plain_attributes(h5["coords"].attrs)
        if said.get("level0_width") and said.get("level0_height"):
            return int(said["level0_width"]), int(said["level0_height"])
    far = coords.max(axis=0) + edge
    return int(np.ceil(far[0])), int(np.ceil(far[1]))
