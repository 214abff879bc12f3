"""`extract --encoder phikon` over the hub's own protocol: download, cache, load, extract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hubserver import Hub, hub, safetensors_bytes  # noqa: F401  (hub is a fixture)

import wsipipe as wp
from tests.encoders.published import published_state, shrink
from tests.pipeline.conftest import write_svs
from wsipipe.encoders import create
from wsipipe.encoders.registry import find


def publish(hub: Hub, depth: int | None) -> None:  # noqa: F811
    card = find("phikon").card
    small = card if depth is None else shrink(card, depth)
    content = {"model.safetensors": safetensors_bytes(published_state(small)), "config.json": "{}"}
    hub.add("owkin/phikon", content, commit=card.revision)


def assert_phikon(file: Path) -> None:
    bag = wp.read_features(file)
    assert bag.features.shape == (len(bag), 768)
    assert len(bag) > 1
    assert np.isfinite(bag.features).all()
    assert bag.attrs["encoder"] == "phikon"
    assert bag.attrs["encoder_revision"] == find("phikon").card.revision
    assert (bag.attrs["mpp"], bag.attrs["tile_px"]) == (0.5, 224)


def test_extract_downloads_once_and_works_offline_afterwards(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two of the twelve blocks, to be quick; the whole model is the next test."""
    recipe = find("phikon")
    small = replace(recipe, card=shrink(recipe.card, 2))
    monkeypatch.setattr(create, "find", lambda _name: small)
    publish(hub, 2)
    slide = write_svs(tmp_path / "slides" / "a.svs", size=(512, 512))
    result = wp.extract(slide, encoder="phikon", out=tmp_path / "out")
    assert result.done == ("a",)
    assert_phikon(tmp_path / "out" / "features" / "phikon" / "a.h5")
    [about] = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["encoders"]
    assert about["licence"] == recipe.card.licence
    asked = hub.downloads()
    assert asked > 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_svs(tmp_path / "slides" / "b.svs", size=(512, 512), seed=1)
    again = wp.extract(tmp_path / "slides", encoder="phikon", out=tmp_path / "out")
    assert again.done == ("a", "b")
    assert hub.downloads() == asked


@pytest.mark.full
def test_the_command_line_runs_the_whole_model(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    publish(hub, None)
    write_svs(tmp_path / "slides" / "a.svs", size=(512, 512))
    command = [
        sys.executable, "-m", "wsipipe", "extract", str(tmp_path / "slides"),
        "--encoder", "phikon", "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["done"] == ["a"]
    assert "licence" in ran.stderr
    assert_phikon(tmp_path / "out" / "features" / "phikon" / "a.h5")
