"""What all tests share: where real data lies, and a quiet, small number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two test processes on two cores must not spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real slides and tiles; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("WSIPIPE_TEST_DATA", _DEFAULT_DATA))
    if not (folder / "slides").is_dir():
        pytest.skip(f"real data is not here ({folder}); set WSIPIPE_TEST_DATA to its folder")
    return folder
