"""A feature file of any size from a seed, and a disk that is nearly full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsipipe.store import FeatureFile, FeatureMeta

META = FeatureMeta(
    slide_id="case/a",
    slide_fingerprint="ab" * 32,
    encoder="texture",
    encoder_revision="1",
    pooling="mean",
    mpp=0.5,
    mpp_effective=0.4942,
    level0_mpp=0.2471,
    mpp_source="reader",
    tile_px=224,
    tile_px0=448.0,
    stride_px=168,
    overlap=0.25,
    level0_width=46000,
    level0_height=32914,
    precision="fp32",
    identity={"encoder": "texture", "mpp": 0.5, "tissue": {"method": "auto", "version": 1}},
)


@pytest.fixture
def make_file() -> Callable[..., FeatureFile]:
    """`make_file(rows, dim=8, dtype="float16", seed=0, **meta)`."""

    def make(
        rows: int, dim: int = 8, dtype: str = "float16", seed: int = 0, **meta: Any
    ) -> FeatureFile:
        rng = np.random.default_rng(seed)
        return FeatureFile(
            features=rng.standard_normal((rows, dim), dtype=np.float32).astype(dtype),
            coords=rng.integers(0, 32000, (rows, 2)),
            tissue_fraction=rng.random(rows, dtype=np.float32),
            tile_status=np.zeros(rows, np.uint8),
            meta=replace(META, **meta),
        )

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
