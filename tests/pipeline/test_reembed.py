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


def test_a_slide_that_was_moved_is_found_where_it_is_said_to_lie(run: Path) -> None:
    moved = (run.parent / "slides").rename(run.parent / "moved")
    assert verify_run(run, sample=4, embed=embedder_of_run(run)).sampled == 0
    result = verify_run(run, sample=4, embed=embedder_of_run(run, [str(moved)]))
    assert (result.sampled, result.findings) == (4, [])


def test_features_of_another_dimension_are_damage(run: Path) -> None:
    def of_two(bag: wp.Features, rows: np.ndarray) -> np.ndarray:
        return np.ones((len(rows), 2), np.float32)

    result = verify_run(run, sample=4, embed=of_two)
    assert result.damaged
    assert "shape (2, 2)" in result.findings[0].problem


def test_pseudonyms_need_the_key_and_the_slides(tmp_path: Path, make_svs: Callable) -> None:
    slides, out, key = tmp_path / "slides", tmp_path / "out", tmp_path / "study.key"
    make_svs(slides / "ward" / "jane.svs")
    wp.extract(slides, out=out, pseudonymize=key, new_key=True)
    result = verify_run(out, sample=4, embed=embedder_of_run(out, [str(slides)], key))
    assert (result.sampled, result.findings) == (4, [])
    for given in ((), ([str(slides)],), ((), key)):
        with pytest.raises(ConfigError, match="--slides PATH --pseudonymize"):
            embedder_of_run(out, *given)
    other = tmp_path / "other.key"
    other.write_text("0" * 40)
    with pytest.raises(ConfigError, match="another key"):
        embedder_of_run(out, [str(slides)], other)
