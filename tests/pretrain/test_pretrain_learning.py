"""Does it learn? Minutes of training; `make test-full` runs these.

Synthetic tiles: the class is morphology, the stain of one of 40 slides is the nuisance. Chance is
1/6; each method must beat its own random start on the metric that it is judged by.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_kit import stain_nuisance_tiles, tile_source, tiny_recipe

from wsipipe.pretrain.errors import CollapseError
from wsipipe.pretrain.monitors import knn_accuracy, linear_accuracy
from wsipipe.pretrain.trainer import Trainer

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def train_tiles():
    return tile_source(2000, seed=1)


@pytest.fixture(scope="module")
def test_tiles() -> tuple[np.ndarray, torch.Tensor]:
    tiles, labels = stain_nuisance_tiles(600, seed=2)
    return tiles, torch.from_numpy(labels)


def _probe(trainer: Trainer, test: tuple[np.ndarray, torch.Tensor]) -> tuple[float, float]:
    """k-NN and linear accuracy."""
    train_y = torch.from_numpy(trainer.source.labels["label"])
    a, b = trainer.features(trainer.source.tiles), trainer.features(test[0])
    return knn_accuracy(a, train_y, b, test[1]), linear_accuracy(a, train_y, b, test[1])


def test_simclr_learns(train_tiles, test_tiles, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe("simclr"), train_tiles, tmp_path)
    before, _ = _probe(trainer, test_tiles)
    trainer.train()
    after, _ = _probe(trainer, test_tiles)
    assert trainer.recipe.optim.steps == 200
    assert after >= 0.85
    assert after > before + 0.1


def test_mae_learns_by_linear_probe(train_tiles, test_tiles, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe("mae"), train_tiles, tmp_path)
    _, before = _probe(trainer, test_tiles)
    trainer.train()
    _, after = _probe(trainer, test_tiles)
    assert after >= 0.78
    assert after > before


def test_dinov2_learns_and_does_not_trip_the_alarm(train_tiles, test_tiles, tmp_path: Path) -> None:
    trainer = Trainer(tiny_recipe("dinov2"), train_tiles, tmp_path)
    before, _ = _probe(trainer, test_tiles)
    trainer.train()
    after, _ = _probe(trainer, test_tiles)
    assert after >= 0.70
    assert after > before


def test_a_teacher_without_centring_collapses_and_is_stopped(train_tiles, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "dino", loss__centering="none", loss__temp=(1.0, 1.0), monitor__every=10, optim__steps=120
    )
    with pytest.raises(CollapseError):
        Trainer(recipe, train_tiles, tmp_path).train()
