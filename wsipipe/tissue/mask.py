"""Where the tissue is: a mask on an exact grid over the whole slide, or polygons, or both.

A `TissueMask` is what detectors make, what GeoJSON holds and what the tile grid asks. Its pixels
tile the slide's level-0 area from (0, 0): pixel (i, j) covers the level-0 rectangle from
(i·dx, j·dy) to ((i+1)·dx, (j+1)·dy), where (dx, dy) = `downsample` is exact. The last column and
row may reach beyond the slide; what lies there is not tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.tissue.coverage import PolygonCoverage, SummedArea
from wsipipe.types import BoolArray

if TYPE_CHECKING:
    from shapely.geometry import Polygon

__all__ = ["TissueMask"]


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Attributes:
        mask: (h, w) bool, True where there is tissue.
        downsample: Level-0 pixels per mask pixel, (x, y), exact.
        method: The detector's name, or "geojson" for a mask that was read.
        settings: What decides the mask besides the slide's pixels, as it goes into the identity.
        mpp_xy: µm per level-0 pixel, (x, y), exact.
        pen: (h, w) bool, what was recognised as pen and left out; None where nothing looked.
        outlines: Polygons in level-0 pixels of a mask that came as polygons, without overlaps.
            They, not the pixels, then decide areas and coverage. None: the pixels decide.
        dimensions: (width, height) of the slide in level-0 pixels; None: the pixels' whole area.
    """

    mask: BoolArray
    downsample: tuple[Fraction, Fraction]
    method: str
    settings: dict[str, Any]
    mpp_xy: tuple[Fraction, Fraction]
    pen: BoolArray | None = None
    outlines: tuple[Polygon, ...] | None = field(default=None, repr=False)
    dimensions: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(f"mask must be (h, w) bool, not {self.mask.shape} {self.mask.dtype}")
        if self.pen is not None and self.pen.shape != self.mask.shape:
            raise ValueError(f"pen {self.pen.shape} and mask {self.mask.shape} differ in shape")

    @property
    def is_empty(self) -> bool:
        """True where there is no tissue at all."""
        return not self.outlines if self.outlines is not None else not self.mask.any()

    @cached_property
    def area_mm2(self) -> float:
        """Area of the tissue in mm²."""
        pixel_um2 = float(self.mpp_xy[0] * self.mpp_xy[1])
        if self.outlines is not None:
            return float(sum(p.area for p in self.outlines)) * pixel_um2 / 1e6
        return self._pixels.area0 * pixel_um2 / 1e6

    @cached_property
    def pen_mm2(self) -> float:
        """Area of what was left out as pen, in mm²."""
        if self.pen is None:
            return 0.0
        dx, dy = self.downsample
        area_um2 = float(dx * dy * self.mpp_xy[0] * self.mpp_xy[1])
        return int(np.count_nonzero(self.pen)) * area_um2 / 1e6

    def polygons(self) -> list[Polygon]:
        """Outlines of the tissue with their holes, in level-0 pixels, largest first.

        They follow the mask's pixel edges, so their area is the mask's area and rasterising them
        gives the mask back.
        """
        return list(self._polygons if self.outlines is None else self.outlines)

    def coverage(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """Fraction of each box that is tissue, by exact area.

        Args:
            boxes: (N, 4) float64, x0, y0, x1, y1 in level-0 pixels. What lies beyond the slide
                counts as not tissue.

        Returns:
            (N,) float32 in [0, 1].
        """
        boxes = np.asarray(boxes, dtype=np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), not {boxes.shape}")
        if len(boxes) == 0:
            return np.zeros(0, dtype=np.float32)
        return self._coverage.fractions(boxes)

    @cached_property
    def _polygons(self) -> list[Polygon]:
        from wsipipe.tissue.outlines import mask_outlines

        return mask_outlines(self.mask, self.downsample, self.dimensions)

    @cached_property
    def _coverage(self) -> SummedArea | PolygonCoverage:
        if self.outlines is not None:
            return PolygonCoverage(self.outlines)
        return self._pixels

    @cached_property
    def _pixels(self) -> SummedArea:
        return SummedArea(self.mask, self.downsample, self.dimensions)
