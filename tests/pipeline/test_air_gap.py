"""Weights across the gap: pulled where a network is, used where not even a route is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hubserver import Hub, hub, safetensors_bytes  # noqa: F401  (hub is a fixture)

import wsipipe as wp
from tests.pipeline.conftest import write_svs

COMMIT = "c" * 40
NAME = f"hf-hub:makers/small@{COMMIT}"
CONFIG = {
    "architecture": "test_vit",
    "num_classes": 0,
    "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3},
}


def without_network() -> list[str]:
    """A prefix that runs a command in a network space without routes: not even loopback is up."""
    unshare = shutil.which("unshare")
    prefix = [str(unshare), "--net"]
    if unshare is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("a network space of one's own needs root (unshare --net)")
    return prefix


def test_a_bundle_carries_all_that_extract_needs(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
) -> None:
    prefix = without_network()
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    files = {
        "config.json": json.dumps(CONFIG),
        "model.safetensors": safetensors_bytes(state),
        "LICENSE": "as you like",
    }
    hub.add("makers/small", files, commit=COMMIT)
    write_svs(tmp_path / "slides" / "a.svs", size=(512, 512))
    bundle = tmp_path / "weights.tar"

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        here = [] if not environment else prefix
        return subprocess.run(
            [*here, sys.executable, "-m", "wsipipe", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    pulled = run("pull", NAME, "--bundle", bundle)
    assert pulled.returncode == 0, pulled.stderr
    asked = len(hub.requests)
    assert asked > 0

    there = {
        "HF_HOME": str(tmp_path / "there" / "hf"),
        "WSIPIPE_CACHE": str(tmp_path / "there" / "wsipipe"),
        # What an administrator would leave: nobody tells the tools that there is no network.
        "HF_HUB_OFFLINE": "0",
    }
    out = tmp_path / "out"
    line = (
        "extract", tmp_path / "slides", "--encoder", NAME, "--out", out, "--mpp", 0.5,
        "--precision", "fp32",
    )  # fmt: skip
    read = run("pull", "--from", bundle, **there)
    assert read.returncode == 0, read.stderr
    assert "as you like" in [f.read_text() for f in (tmp_path / "there").rglob("LICENSE")]
    done = run(*line, **there)
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == asked
    bag = wp.read_features(next(out.rglob("*.h5")))
    assert bag.attrs["encoder_revision"] == COMMIT
    with torch.inference_mode():
        encoder = wp.create_encoder(NAME, precision="fp32")
        with wp.open_slide(tmp_path / "slides" / "a.svs") as slide:
            x, y = (int(v) for v in bag.coords[0])
            tile = slide.read(x, y, 160, 160, mpp=0.5)
        expected = encoder(tile[None])[0].numpy()
    assert abs(bag.features[0].astype("f4") - expected).max() < 5e-3 * abs(expected).max()
