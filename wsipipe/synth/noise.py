"""Smooth random fields: the raw material of synthetic tissue."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]


def smooth_noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    sigma_px: float | tuple[float, float],
    *,
    wrap: bool = False,
) -> Field:
    """Gaussian random field with zero mean and unit variance.

    Args:
        rng: Source of randomness; the field is a function of its state alone.
        shape: (height, width) of the result.
        sigma_px: Correlation length in pixels, or (along y, along x).
        wrap: Make the field periodic in both directions. `shape` must then be powers of two.

    Returns:
        (height, width) float32.
    """
    sigma_y, sigma_x = sigma_px if isinstance(sigma_px, tuple) else (sigma_px, sigma_px)
    # A wide Gaussian is drawn on a coarser grid and enlarged: same look, a hundredth of the cost.
    coarse_y, coarse_x = _coarsening(sigma_y, shape[0]), _coarsening(sigma_x, shape[1])
    rows, columns = -(-shape[0] // coarse_y), -(-shape[1] // coarse_x)
    sigma_y, sigma_x = sigma_y / coarse_y, sigma_x / coarse_x
    pad_y, pad_x = int(3 * sigma_y) + 2, int(3 * sigma_x) + 2
    if wrap:
        white = rng.standard_normal((rows, columns), dtype=np.float32)
        white = np.pad(white, ((pad_y, pad_y), (pad_x, pad_x)), mode="wrap")
    else:
        white = rng.standard_normal((rows + 2 * pad_y, columns + 2 * pad_x), dtype=np.float32)
    field = cv2.GaussianBlur(white, (0, 0), sigmaX=max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01))
    # One sample of margin stays on each side, so that enlarging is exact at the border too.
    field = field[pad_y - 1 : pad_y + rows + 1, pad_x - 1 : pad_x + columns + 1]
    if coarse_y > 1 or coarse_x > 1:
        size = (field.shape[1] * coarse_x, field.shape[0] * coarse_y)
        field = cv2.resize(field, size, interpolation=cv2.INTER_CUBIC)
    field = field[coarse_y : coarse_y + shape[0], coarse_x : coarse_x + shape[1]]
    spread = float(field.std()) or 1.0
    return np.ascontiguousarray((field - field.mean()) / spread, dtype=np.float32)


def _coarsening(sigma_px: float, length: int) -> int:
    """Power of two by which a field of this correlation length may be drawn coarser."""
    factor = 1
    while sigma_px / (2 * factor) >= 2.0 and length // (2 * factor) >= 4:
        factor *= 2
    return factor


class Enlarger:
    """Reads a coarse field at pixel positions, by linear interpolation.

    Sample (i, j) of a coarse field lies at the centre of the `step` x `step` pixels of its cell.
    One cell of margin surrounds the field: cell (0, 0) of the pixel plane is sample (1, 1).
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def window(self, field: Field, y: int, x: int, height: int, width: int) -> Field:
        """The field's values at the pixels of a window; its corner and size are free."""
        patch, row0, column0 = self.patch(field, y, x, height, width)
        size = (patch.shape[1] * self.step, patch.shape[0] * self.step)
        large = cv2.resize(patch, size, interpolation=cv2.INTER_LINEAR)
        top, left = y - (row0 - 1) * self.step, x - (column0 - 1) * self.step
        return np.asarray(large[top : top + height, left : left + width], dtype=np.float32)

    def patch(
        self, field: Field, y: int, x: int, height: int, width: int
    ) -> tuple[Field, int, int]:
        """The coarse samples that a window of pixels depends on, and their first row, column."""
        row0, row1 = y // self.step, -(-(y + height) // self.step) + 2
        column0, column1 = x // self.step, -(-(x + width) // self.step) + 2
        rows = np.clip(np.arange(row0, row1), 0, field.shape[0] - 1)
        columns = np.clip(np.arange(column0, column1), 0, field.shape[1] - 1)
        return field[np.ix_(rows, columns)], row0, column0
