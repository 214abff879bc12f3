"""Fixtures: small slides that are real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slidekit import reduced, tissue, write_dicom, write_pyramid


@pytest.fixture
def image() -> np.ndarray:
    return tissue(1000, 700)


@pytest.fixture
def slide_path(tmp_path: Path, image: np.ndarray) -> Path:
    """A lossless Aperio-like slide of 1000 x 700 at 0.25 µm with levels 1, 4."""
    return write_pyramid(
        tmp_path / "slide.svs",
        [image, reduced(image, 4)],
        compression="deflate",
        facts={"AppMag": 40, "MPP": 0.25},
    )


@pytest.fixture
def dicom_series(tmp_path: Path) -> Path:
    """A folder with one series: two levels and a label."""
    folder = tmp_path / "case"
    folder.mkdir()
    image = tissue(555, 371, 3)
    write_dicom(folder / "a.dcm", reduced(image, 2, up=True), spacing_mm="0.001\\0.001")
    write_dicom(folder / "b.dcm", image)
    write_dicom(folder / "c.dcm", image[:100, :100], kind=b"ORIGINAL\\PRIMARY\\LABEL\\NONE")
    return folder
