"""A run with `--device openvino`: the same files, the backend recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsipipe as wp

pytest.importorskip("openvino")


def test_the_backend_is_recorded_and_is_no_part_of_the_identity(
    slides: Path, tmp_path: Path, make_encoder: Callable[..., Any]
) -> None:
    encoder = make_encoder()
    bags = []
    for device in ("cpu", "openvino"):
        out = tmp_path / device
        wp.extract(slides, encoder=encoder, out=out, device=device, dtype="float32")
        bags.append(wp.read_features(out / "features" / "mean" / "s1.h5"))
    torch_bag, bag = bags
    assert torch_bag.attrs["backend"].startswith("torch ")
    assert bag.attrs["backend"].startswith("openvino ")
    assert bag.attrs["backend_cosine"] >= 0.999
    assert bag.attrs["identity"] == torch_bag.attrs["identity"]
    assert np.allclose(bag.features, torch_bag.features, atol=1e-5)
    # The files of either are the other's too: nothing is left to do.
    again = wp.extract(slides, encoder=encoder, out=tmp_path / "cpu", device="openvino",
                       dtype="float32")  # fmt: skip
    assert again.tiles == 0
