"""What a user can give that cannot work: each ends with a sentence, not a traceback."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretrain_kit import TINY, tile_source, tiny_recipe

from wsipipe.errors import ConfigError, Drained, OutputError
from wsipipe.pretrain import pretrain
from wsipipe.pretrain.metrics import MetricsLog
from wsipipe.pretrain.source import open_tiles
from wsipipe.pretrain.trainer import Trainer

FEW = {**TINY, "arch.args.depth": 1, "optim.steps": 2, "optim.batch": 4, "monitor.stop": False}


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    folder = tmp_path / "tiles"
    folder.mkdir()
    for i, tile in enumerate(tile_source(4).tiles):
        Image.fromarray(tile).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["simclr", "moco-v3", "byol", "fixmatch"])
def test_too_small_a_batch_for_the_loss_is_refused(name: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(name, optim__batch=1, loss__hidden=8) if name != "fixmatch" else None
    recipe = recipe or tiny_recipe(name, optim__batch=1)
    with pytest.raises(ConfigError, match=r"needs 2 tiles a process.*not 1"):
        Trainer(recipe, tile_source(8), tmp_path)


def test_crops_that_are_not_whole_patches_are_refused_with_the_next_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"views\.global\.px = 60 .*views\.global\.px=64"):
        Trainer(tiny_recipe("mae", views__global__px=60), tile_source(8), tmp_path)


def test_tables_and_files_that_are_none(tmp_path: Path, tiles: Path) -> None:
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(b"no HDF5")
    with pytest.raises(ConfigError, match=r"wrong\.h5: not an HDF5 file"):
        open_tiles(wrong, 64)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("path\nma\xdfe.png\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.csv: not a CSV in UTF-8"):
        open_tiles(latin, 64)
    twins = tmp_path / "twins.csv"
    twins.write_text("path,twin\ntiles/0.png,tiles/nowhere.png\n")
    with pytest.raises(ConfigError, match=r"1 tiles are missing, the first is .*nowhere\.png"):
        open_tiles(twins, 64)
    (tiles / "5.png").write_bytes(b"no PNG")
    with pytest.raises(ConfigError, match=r"5\.png: not an image"):
        open_tiles(tiles, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no PNG, JPEG or TIFF"):
        open_tiles(tmp_path / "empty", 64)
    with pytest.raises(ConfigError, match=r"not a folder, \.csv or \.h5"):
        open_tiles(tmp_path / "nowhere", 64)


def test_unknown_device_and_a_file_as_output_folder(tmp_path: Path, tiles: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device 'warp'"):
        pretrain("dino", tiles=tiles, out=tmp_path / "run", device="warp", changes=FEW)
    with pytest.raises(ConfigError, match=r"torch sees [0-9]+ GPUs"):
        pretrain("dino", tiles=tiles, out=tmp_path / "run", device="cuda:99", changes=FEW)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="is a file"):
        pretrain("dino", tiles=tiles, out=file, changes=FEW)


def test_stopped_run_goes_on_by_the_same_call_and_a_missing_one_is_said(
    tmp_path: Path, tiles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {**FEW, "optim.steps": 12}
    with pytest.raises(Drained, match="Run the same command again"):
        pretrain(
            "mae", tiles=tiles, out=tmp_path / "a", changes=changes, stop_signal=lambda: "SIGTERM"
        )
    assert pretrain("mae", tiles=tiles, out=tmp_path / "a", changes=changes).steps == 12
    rows = (tmp_path / "a" / "metrics.jsonl").read_text().count('"loss"')
    assert rows == 12
    with caplog.at_level(logging.WARNING):
        pretrain("mae", tiles=tiles, out=tmp_path / "b", changes=FEW, resume=True)
    assert "training starts anew" in caplog.text


def test_full_disk_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path, 0)
    metrics.write(0, {"loss": 1.0})
    metrics.file.close()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    metrics.file = Full()
    with pytest.raises(OutputError, match=r"metrics\.jsonl.*No space left.*run again"):
        metrics.write(1, {"loss": float(np.pi)})
    metrics.close()
