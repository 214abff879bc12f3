"""Slides that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsipipe.synth import SlideTruth, make_slide


@pytest.fixture(scope="session")
def tumour_slide(tmp_path_factory: pytest.TempPathFactory) -> SlideTruth:
    """A slide of two levels at 1 µm/px, with masks in `truth/` beside it."""
    folder: Path = tmp_path_factory.mktemp("synth")
    return make_slide(
        folder / "a.svs", width=2304, height=2100, mpp=1.0, seed=11, truth=folder / "truth"
    )
