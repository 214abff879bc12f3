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
