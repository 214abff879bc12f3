"""Plugins by entry point, and the check their authors run."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch

from wsipipe.encoders import Encoder, EncoderCard, create_encoder, list_encoders, registry, resolve
from wsipipe.encoders.check import check_encoder
from wsipipe.errors import UnknownEncoderError

GOOD = """
import torch
from wsipipe.encoders import EncoderCard

CARD = EncoderCard(name="plug", aliases=("plug-alias",), dim=6, tile_px=64, mpp=0.5,
                   mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
ROGUE = EncoderCard(name="uni", dim=6, tile_px=64, mpp=0.5, mean=None, std=None)

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)

def build(card):
    return Net()
"""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "plug_good.py").write_text(GOOD)
    (tmp_path / "plug_bad.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.syspath_prepend(tmp_path)
    entries = EntryPoints(
        EntryPoint(name, value, registry.GROUP)
        for name, value in (
            ("plug", "plug_good:CARD"),
            ("uni", "plug_good:ROGUE"),
            ("bad", "plug_bad:CARD"),
            ("nothing", "plug_good:MISSING"),
        )
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: entries.select(group=group))
    yield
    for name in ("plug_good", "plug_bad"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("plugins")
def test_plugin_is_an_encoder_like_any_other(tiles) -> None:
    assert resolve("plug").dim == 6
    assert resolve("plug_alias").name == "plug"
    assert "plug" in [card.name for card in list_encoders()]
    assert create_encoder("plug")(tiles).shape == (3, 6)
    check_encoder("plug")


@pytest.mark.usefixtures("plugins")
def test_broken_plugin_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    names = [card.name for card in list_encoders()]
    assert "phikon" in names
    assert "plug" in names
    assert "half installed" in caplog.text
    with pytest.raises(UnknownEncoderError, match="half installed") as caught:
        resolve("bad")
    assert "uninstall" in caught.value.remedy


@pytest.mark.usefixtures("plugins")
def test_plugin_cannot_take_a_name_of_the_catalogue() -> None:
    assert resolve("uni").hub == "MahmoodLab/UNI"
    assert [card.name for card in list_encoders()].count("uni") == 1


CARD = EncoderCard(
    name="under-test", dim=12, tile_px=64, mpp=0.5, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


class Fine(torch.nn.Module):
    """Means of the four quarters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_check_passes_what_is_right() -> None:
    assert len(check_encoder(Encoder(CARD, Fine()))) == 8
    check_encoder("timm:vit_tiny_patch16_224?pretrained=false")


class Random(Fine):
    def forward(self, x):
        return super().forward(x) + torch.rand(1)


class BatchStatistic(Fine):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0) if len(y) > 1 else y


class OneQuarter(Fine):
    def forward(self, x):
        return x[:, :, :32, :32].mean((2, 3)).repeat(1, 4)


class Grey(Fine):
    def forward(self, x):
        return super().forward(x.mean(1, keepdim=True).expand_as(x))


class DividesByZero(Fine):
    def forward(self, x):
        return super().forward(x) / x.std((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (Random(), "same features twice"),
        (BatchStatistic(), "other tiles of its batch"),
        (OneQuarter(), "does not see: upper right, lower left, lower right"),
        (Grey(), "RGB-BGR swap"),
        (DividesByZero(), "NaN or infinite"),
    ],
)
def test_check_finds_what_is_wrong(network: torch.nn.Module, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_encoder(Encoder(CARD, network))


def test_check_finds_a_wrong_transform() -> None:
    encoder = Encoder(CARD, Fine())
    encoder.transform.shift += 0.1
    with pytest.raises(AssertionError, match="as the card says"):
        check_encoder(encoder)


def test_wrong_dim_is_told_with_both_shapes() -> None:
    from dataclasses import replace

    from wsipipe.errors import ModelError

    with pytest.raises(ModelError, match=r"returned shape \(4, 12\).*\(4, 7\)"):
        check_encoder(Encoder(replace(CARD, dim=7), Fine()))


def test_what_is_no_tensor_is_told_with_its_type() -> None:
    from wsipipe.errors import ModelError

    class Pair(Fine):
        def forward(self, x):
            return super().forward(x), None

    with pytest.raises(ModelError, match="returned a tuple, not a tensor"):
        check_encoder(Encoder(CARD, Pair()))
