from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hubserver import hub  # noqa: F401  (a fixture)
from numpy.typing import NDArray


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiles() -> NDArray[np.uint8]:
    """Three tiles of 224 px that differ: smooth colour with noise, like stained tissue."""
    rng = np.random.default_rng(7)
    base = rng.uniform(90, 240, (3, 1, 1, 3))
    ramp = np.linspace(-40, 40, 224)[None, :, None, None]
    return np.clip(base + ramp + rng.normal(0, 25, (3, 224, 224, 3)), 0, 255).astype(np.uint8)
