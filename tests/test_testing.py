"""What users' own tests build on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import wsipipe as wp
from wsipipe import testing


def test_every_public_name_is_there() -> None:
    for name in testing.__all__:
        assert getattr(testing, name) is not None


def test_importing_it_does_not_load_torch() -> None:
    code = "import wsipipe.testing, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fake_encoder_numbers_can_be_checked_by_hand() -> None:
    fake = testing.FakeEncoder(dim=12)
    tiles = torch.zeros(1, 3, 4, 4)
    tiles[0, :, :2, :2] = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    tiles[0, :, 2:, 2:] = 1.0
    expected = [0.1, 0.2, 0.3, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert torch.allclose(fake(tiles)[0], torch.tensor(expected))


def test_encoder_file_is_an_encoder(tmp_path: Path) -> None:
    path = testing.write_encoder_file(tmp_path / "fake.py", dim=5, tile_px=64)
    encoder = wp.create_encoder(str(path))
    assert encoder.card.tile_px == 64
    tiles = np.full((3, 64, 64, 3), 51, np.uint8)
    assert torch.allclose(encoder(tiles), torch.full((3, 5), 0.2))


def test_slides_for_tests_are_real_slides(tmp_path: Path) -> None:
    truth = testing.make_slide(tmp_path / "a.svs", width=300, mpp=2.0)
    with wp.open_slide(truth.path) as slide:
        assert slide.dimensions == (300, 300)
        assert slide.mpp == 2.0
