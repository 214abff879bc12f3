"""`--compile`: kept only where it is the same and faster, undone where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsipipe.encoders import compiled as module
from wsipipe.encoders import create_encoder
from wsipipe.encoders.compiled import compile_encoder, least_cosine, noise_tiles

CONV = """
import torch
import wsipipe

CARD = wsipipe.EncoderCard(name="conv", dim=8, tile_px=64, mpp=0.5, mean=None, std=None)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 7, stride=4)

    def forward(self, x):
        return torch.relu(self.conv(x)).mean((2, 3))


def build(card):
    return Net()
"""


@pytest.fixture
def encoder(tmp_path):
    (tmp_path / "conv.py").write_text(CONV)
    return create_encoder(str(tmp_path / "conv.py"))


class Other(torch.nn.Module):
    """Stands for what a compiler returns."""

    def __init__(self, network, *, add=0.0, fail=False):
        super().__init__()
        self.network, self.add, self.fail = network, add, fail

    def forward(self, x):
        if self.fail:
            raise RuntimeError("no C compiler")
        return self.network(x) + self.add


def clocks(monkeypatch, seconds):
    """Measured seconds, one for each network that is timed."""
    usual, rest = module._timed, iter(seconds)
    monkeypatch.setattr(module, "_timed", lambda e, t: (usual(e, t)[0], next(rest)))


def test_the_same_and_faster_is_kept(encoder, monkeypatch):
    clocks(monkeypatch, [1.0, 2.0, 1.0, 0.5])
    monkeypatch.setattr(module, "_compiled", Other)
    assert compile_encoder(encoder, 4) == "compiled"
    assert isinstance(encoder.network, Other)
    assert encoder.facts()["compiled"] == "compiled"


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        (Other, [1.0, 1.0, 1.0, 0.99]),  # not faster
        (lambda n: Other(n, add=torch.arange(8.0)), [1.0, 1.0, 1.0, 0.1]),  # not the same
        (lambda n: Other(n, fail=True), [1.0, 1.0, 1.0, 0.1]),  # does not work
    ],
)
def test_anything_else_is_undone(encoder, monkeypatch, change, seconds):
    tiles = noise_tiles(encoder.card, 4)
    before, network = encoder(tiles).numpy(), encoder.network
    clocks(monkeypatch, seconds)
    monkeypatch.setattr(module, "_compiled", change)
    assert compile_encoder(encoder, 4) == "nothing"
    assert encoder.network is network
    assert np.array_equal(encoder(tiles).numpy(), before)


@pytest.mark.full
def test_what_torch_compiles_gives_the_same_features(encoder, monkeypatch):
    """For real; the clock alone is a fake, so that it is kept on any machine."""
    tiles = noise_tiles(encoder.card, 6)
    before = encoder(tiles).numpy()
    clocks(monkeypatch, [1.0, 0.5, 1.0, 0.5])
    assert compile_encoder(encoder, 4) == "channels-last, compiled"
    for count in (1, 3, 6):
        assert least_cosine(encoder(tiles[:count]).numpy(), before[:count]) >= 0.9999
