"""`--device openvino`: the torch encoder's features, identity and manners, by another backend."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import wsipipe as wp
from wsipipe.encoders import create_encoder
from wsipipe.encoders.openvino import openvino_place

pytest.importorskip("openvino")

VIT = "timm:test_vit?pretrained=false"
CONV = """
import torch
import wsipipe

CARD = wsipipe.EncoderCard(
    name="conv", dim=8, tile_px=64, mpp=0.5, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 7, stride=4)

    def forward(self, x):
        return {forward}


def build(card):
    return Net()
"""
MEAN = "torch.relu(self.conv(x)).mean((2, 3))"


def make_conv(folder: Path, forward: str = MEAN) -> str:
    path = folder / "conv.py"
    path.write_text(CONV.replace("{forward}", forward))
    return str(path)


@pytest.fixture
def tiles64():
    return np.random.default_rng(3).integers(0, 256, (5, 64, 64, 3), np.uint8)


def test_names_of_devices() -> None:
    assert openvino_place("openvino") == "CPU"
    assert openvino_place("openvino:gpu.1") == "GPU.1"
    assert openvino_place("cpu") is None


def test_features_and_identity_are_those_of_torch() -> None:
    tiles = np.random.default_rng(3).integers(0, 256, (3, 160, 160, 3), np.uint8)
    one, other = create_encoder(VIT), create_encoder(VIT, device="openvino")
    assert other.identity() == one.identity()
    assert other.backend.startswith("openvino 20")
    assert other.precision == one.precision
    a, b = one(tiles).numpy(), other(tiles).numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.999
    assert 0.999 <= other.facts()["backend_cosine"] <= 1.0001


def test_the_precision_that_is_recorded_is_the_one_computed_in(tmp_path: Path) -> None:
    import openvino

    encoder = create_encoder(make_conv(tmp_path), device="openvino", precision="bf16")
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert encoder.precision == ("bf16" if can else "fp32")


def test_any_batch_size_from_several_threads(tmp_path: Path, tiles64) -> None:
    encoder = create_encoder(make_conv(tmp_path), device="openvino", precision="fp32")
    torch_rows = create_encoder(make_conv(tmp_path), precision="fp32")(tiles64).numpy()
    encoder.run_side_by_side(3)
    sizes = [1, 2, 5, 3, 4] * 6
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: encoder.start(tiles64[:n]).result(), sizes))
    for size, rows in zip(sizes, found, strict=True):
        assert np.allclose(rows, torch_rows[:size], atol=1e-4)


def test_features_that_differ_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "wsipipe.encoders.openvino.OpenVinoEncoder.forward",
        lambda self, tiles: -create_encoder(make_conv(tmp_path))(tiles),
    )
    with pytest.raises(wp.EncoderError, match=r"cosine -1\.0"):
        create_encoder(make_conv(tmp_path), device="openvino")


def test_what_cannot_be_converted_says_what_to_do(tmp_path: Path) -> None:
    path = make_conv(tmp_path, "torch.linalg.eigvals(self.conv(x)[..., :8, :8]).real.mean(1)")
    with pytest.raises(wp.ConfigError, match="cannot be converted") as caught:
        create_encoder(path, device="openvino")
    assert "--device cpu" in caught.value.remedy


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wp.ConfigError, match="no device NPU"):
        create_encoder(make_conv(tmp_path), device="openvino:NPU")


def test_without_the_package_the_message_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(wp.MissingExtraError, match=r"\[openvino\]"):
        create_encoder(make_conv(tmp_path), device="openvino")


@pytest.mark.full
def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): print('CALLED HOME'); raise OSError\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import wsipipe as wp\n"
        "wp.create_encoder(sys.argv[1], device='openvino')\n"
        "print('telemetry' if sys.modules.get('openvino_telemetry') else 'silent')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, make_conv(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["silent"]
