"""`verify --sample`: tiles are embedded anew from the slide and compared with what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import wsipipe as wp
from wsipipe.errors import ConfigError
from wsipipe.pipeline.reembed import embedder_of_run
from wsipipe.store.verify import verify_run


@pytest.fixture
def run(tmp_path: Path, make_svs: Callable, make_encoder: Callable) -> Path:
    for k in range(2):
        make_svs(tmp_path / "slides" / f"s{k}.svs", seed=k)
    wp.extract(tmp_path / "slides", encoder=make_encoder(), out=tmp_path / "out", overlap=0.3)
    return tmp_path / "out"


def test_sound_features_come_out_again(run: Path) -> None:
    result = verify_run(run, sample=20, embed=embedder_of_run(run))
    assert not result.findings
    assert result.sampled == 20
    assert result.worst_cosine > 0.9999


def test_features_of_other_tiles_are_found_though_every_number_is_sound(run: Path) -> None:
    path = run / "features" / "mean" / "s0.h5"
    with h5py.File(path, "r+") as h5:
        rows = len(h5["features"])
        # Directions that the tiles' mean colours do not have.
        h5["features"][:] = np.tile(np.array([[1, -1, 0]], np.float16), (rows, 1))
        del h5.attrs["content_sha256"]
    assert not verify_run(run).damaged
    result = verify_run(run, sample=20, embed=embedder_of_run(run))
    assert [f.path for f in result.findings] == ["features/mean/s0.h5"]
    assert "cosine" in result.findings[0].problem


def test_a_slide_that_is_gone_cannot_be_sampled_and_that_is_said(run: Path) -> None:
    (run.parent / "slides" / "s1.svs").unlink()
    result = verify_run(run, sample=20, embed=embedder_of_run(run))
    assert not result.damaged
    assert [f.path for f in result.findings] == ["features/mean/s1.h5"]
    assert result.sampled == 10


def test_without_run_yaml_it_is_not_guessed(run: Path) -> None:
    (run / "run.yaml").unlink()
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        embedder_of_run(run)
