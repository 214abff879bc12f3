"""Shared by the MIL tests: one thread, and the golden data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mil"


@pytest.fixture(scope="session")
def mil_data() -> Path:
    """Folder of reference outputs, peers' checkpoints and classical MIL sets."""
    base = os.environ.get("WSIPIPE_TEST_DATA")
    folder = Path(base) / "mil" if base else _DEFAULT
    if not (folder / "golden").is_dir():
        pytest.skip(f"MIL reference data is not here ({folder}); set WSIPIPE_TEST_DATA")
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Feature files of 40 slides of 30 patients and their labels; class 1 holds a few odd tiles."""
    make_cohort(tmp_path)
    return tmp_path


def make_cohort(folder: Path, n: int = 40, dim: int = 8, seed: int = 0) -> None:
    """Write `features/*.h5` and `labels.csv` below `folder`."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(seed)
    (folder / "features").mkdir(exist_ok=True)
    lines = ["slide_id,patient_id,site,label,kind,value,months,died"]
    for i in range(n):
        patient = i if i < n - 10 else i - (n - 10)
        positive = patient % 2
        x = rng.normal(size=(int(rng.integers(4, 12)), dim))
        if positive:
            x[:2, :3] += 3
        with h5py.File(folder / "features" / f"s{i:02}.h5", "w") as h5:
            h5["features"] = x.astype(np.float16)
            h5["coords"] = np.stack([np.arange(len(x)) * 448, np.zeros(len(x))], 1).astype(int)
            h5["coords"].attrs["patch_size_level0"] = 448
            h5.attrs["encoding-type"] = "wsipipe-features"
            for key, value in {"encoder": "toy", "mpp": 0.5, "tile_px": 224}.items():
                h5.attrs[key] = value
            for key, value in {"mpp_effective": 0.5, "level0_mpp": 0.25}.items():
                h5.attrs[key] = value
        number = np.random.default_rng(patient)
        months = 5 + number.exponential(20) / (1 + 9 * positive)
        value = positive * 4 + number.normal()
        lines.append(
            f"s{i:02},p{patient:02},c{patient % 6},{positive},{'abc'[patient % 3]},"
            f"{value:.3f},{months:.2f},{int(number.random() < 0.7)}"
        )
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
