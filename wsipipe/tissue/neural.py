"""Tissue by a network: the slide is walked in squares at the network's own resolution.

Squares overlap by a margin that is thrown away, since a network is unsure at its input's edge.
Only the squares of one batch and the mask are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.tissue import morphology
from wsipipe.tissue.cards import TissueCard
from wsipipe.tissue.mask import TissueMask
from wsipipe.tissue.settings import VERSIONS
from wsipipe.types import exact

if TYPE_CHECKING:
    from wsipipe.slide import Slide

__all__ = ["NeuralSettings", "detect_by_network", "network_settings"]

_MARGIN_PX = 64
_MASK_UM = 8.0


@dataclass(frozen=True)
class NeuralSettings:
    """Parameters of a network's mask.

    Attributes:
        weights: A checkpoint of one's own; None: the published one.
        threshold: Probability from which on a mask pixel is tissue.
        min_tissue_mm2: Smaller specks are left out.
        min_hole_mm2: Smaller holes are filled.
        device: Where the network runs; not part of the identity.
        batch: Squares in one forward; not part of the identity.
    """

    weights: str | None = None
    threshold: float = 0.5
    min_tissue_mm2: float = 0.01
    min_hole_mm2: float = 0.05
    device: str = "auto"
    batch: int = 4


def parse_settings(card: TissueCard, given: dict[str, Any]) -> NeuralSettings:
    """Settings from keywords; unknown ones are refused.

    Raises:
        ConfigError: A name is unknown or a value out of range.
    """
    known = NeuralSettings.__dataclass_fields__
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(
            f"Tissue network {card.name} has no setting {', '.join(unknown)}.",
            f"It has: {', '.join(known)}.",
        )
    settings = NeuralSettings(**given)
    if not 0 < settings.threshold < 1 or settings.batch < 1:
        raise ConfigError(
            f"Tissue network {card.name}: threshold must lie between 0 and 1, batch be 1 or more.",
            "Correct the setting.",
        )
    return settings


def network_settings(card: TissueCard, given: dict[str, Any]) -> dict[str, Any]:
    """What decides a network's mask, for the identity.

    Raises:
        WeightsError, GatedEncoderError: The weights cannot be had.
    """
    from wsipipe.tissue.networks import locate_weights

    settings = parse_settings(card, given)
    return {
        "method": card.name,
        "version": VERSIONS["neural"],
        "architecture": card.architecture,
        "weights_sha256": locate_weights(card, settings.weights).sha256,
        "mpp": card.mpp,
        "threshold": settings.threshold,
        "min_tissue_mm2": settings.min_tissue_mm2,
        "min_hole_mm2": settings.min_hole_mm2,
    }


def detect_by_network(
    slide: Slide, card: TissueCard, recorded: dict[str, Any], given: dict[str, Any]
) -> TissueMask:
    """Find tissue with a network.

    Args:
        slide: An open slide of known mpp.
        card: Which network.
        recorded: `network_settings` of the same call.
        given: Settings that differ from `NeuralSettings`.

    Returns:
        Mask at about 8 µm per pixel, or at the network's resolution where that is coarser.
    """
    from wsipipe.tissue.networks import load_network, locate_weights

    settings = parse_settings(card, given)
    device = _device(settings.device)
    network = load_network(card, locate_weights(card, settings.weights), device)
    squares = _Squares.over(slide, card)
    tissue = np.zeros(squares.mask_shape, dtype=np.float32)
    pen = np.zeros(squares.mask_shape, dtype=np.float32)
    for places, pictures in squares.batches(slide, settings.batch):
        _fill(card, network, device, squares, places, pictures, tissue, pen)
    scale = morphology.Scale(
        *(float(d * m) for d, m in zip(squares.downsample, slide.mpp_xy, strict=True))
    )
    found = tissue >= settings.threshold
    found = morphology.fill_holes(found, scale, settings.min_hole_mm2)
    is_pen = pen >= settings.threshold
    found = morphology.drop_specks(found & ~is_pen, scale, settings.min_tissue_mm2)
    return TissueMask(
        mask=found,
        downsample=squares.downsample,
        method=card.name,
        settings=recorded,
        mpp_xy=slide.mpp_xy,
        pen=is_pen if card.pen_classes else None,
        dimensions=slide.dimensions,
    )


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class _Squares:
    """Where the squares lie.

    Attributes:
        scale: Level-0 pixels per network pixel, (x, y).
        per_mask: Network pixels per mask pixel, along an edge.
        mask_shape: (h, w) of the mask.
        mpp: Of the network's pixels.
    """

    scale: tuple[Fraction, Fraction]
    per_mask: int
    mask_shape: tuple[int, int]
    mpp: float

    @classmethod
    def over(cls, slide: Slide, card: TissueCard) -> _Squares:
        scale = tuple(exact(card.mpp) / own for own in slide.mpp_xy)
        # A power of two divides the stride, so that squares end on mask pixels.
        per_mask = 1
        while per_mask * 2 * card.mpp <= _MASK_UM:
            per_mask *= 2
        width, height = (
            -(-size // (s * per_mask)) for size, s in zip(slide.dimensions, scale, strict=True)
        )
        return cls((scale[0], scale[1]), per_mask, (int(height), int(width)), card.mpp)

    @property
    def downsample(self) -> tuple[Fraction, Fraction]:
        return self.scale[0] * self.per_mask, self.scale[1] * self.per_mask

    @property
    def stride_mask(self) -> int:
        from wsipipe.tissue.networks import INPUT_PX

        return (INPUT_PX - 2 * _MARGIN_PX) // self.per_mask

    def batches(
        self, slide: Slide, batch: int
    ) -> Iterator[tuple[list[tuple[int, int]], list[NDArray[np.uint8]]]]:
        """Places (row, column in mask pixels) and pictures."""
        from wsipipe.tissue.networks import INPUT_PX

        places: list[tuple[int, int]] = []
        pictures: list[NDArray[np.uint8]] = []
        for row in range(0, self.mask_shape[0], self.stride_mask):
            for column in range(0, self.mask_shape[1], self.stride_mask):
                x, y = (
                    int((at * self.per_mask - _MARGIN_PX) * s // 1)
                    for at, s in zip((column, row), self.scale, strict=True)
                )
                places.append((row, column))
                # Exactly this mpp: a level that is nearly so would shift the squares' ends.
                pictures.append(slide.read(x, y, INPUT_PX, INPUT_PX, mpp=self.mpp, mpp_tolerance=0))
                if len(places) == batch:
                    yield places, pictures
                    places, pictures = [], []
        if places:
            yield places, pictures


def _fill(
    card: TissueCard,
    network: Any,
    device: str,
    squares: _Squares,
    places: list[tuple[int, int]],
    pictures: list[NDArray[np.uint8]],
    tissue: NDArray[np.float32],
    pen: NDArray[np.float32],
) -> None:
    from wsipipe.tissue.networks import probabilities

    inner = slice(_MARGIN_PX, -_MARGIN_PX)
    size, k = squares.stride_mask, squares.per_mask
    for (row, column), classes in zip(
        places, probabilities(card, network, pictures, device), strict=True
    ):
        means = classes[:, inner, inner].reshape(len(classes), size, k, size, k).mean((2, 4))
        for target, chosen in ((tissue, card.tissue_classes), (pen, card.pen_classes)):
            part = target[row : row + size, column : column + size]
            part[...] = means[list(chosen), : part.shape[0], : part.shape[1]].sum(axis=0)
