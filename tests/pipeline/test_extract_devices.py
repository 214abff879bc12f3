"""Several devices: one process each, one folder, one result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

import wsipipe as wp
from wsipipe.config import ExtractSettings
from wsipipe.pipeline import run_extract
from wsipipe.pipeline.reporter import Reporter

Make = Callable[..., Any]
SLOW = "import time; time.sleep(0.03)"


@pytest.fixture
def many(tmp_path: Path, make_svs: Make) -> Path:
    for number in range(6):
        make_svs(tmp_path / "many" / f"s{number}.svs", seed=number)
    (tmp_path / "many" / "text.svs").write_text("no slide")
    return tmp_path / "many"


class Watch(Reporter):
    def __init__(self) -> None:
        self.over: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.tiles = 0

    def say(self, message: str) -> None:
        self.said.append(message)

    def slide_over(self, slide_id: str, status: str, detail: str) -> None:
        self.over.append((slide_id, status))

    def tick(self, snapshot: Any) -> None:
        self.tiles = snapshot.tiles


def worker_pids() -> list[int]:
    """The processes that really work, not the resource tracker."""
    return [
        child.pid
        for child in psutil.Process().children()
        if "spawn_main" in " ".join(child.cmdline()) and "resource" not in " ".join(child.cmdline())
    ]


def test_two_devices_equal_one_and_a_killed_worker_is_replaced(
    many: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder(act=SLOW)
    given = {"encoders": (encoder,), "dtype": "float32"}
    watch = Watch()

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not watch.over and time.monotonic() < deadline:
            time.sleep(0.05)
        pids = worker_pids()
        if pids:
            os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    settings = ExtractSettings.of(**given, device="cpu,cpu", out=tmp_path / "two")
    result = run_extract(settings, many, reporter=watch)
    killer.join()
    assert result.done == tuple(f"s{n}" for n in range(6))
    assert result.failed == ("text",)
    told = [slide_id for slide_id, _ in watch.over]
    assert sorted(told) == sorted(set(told)), "a slide is counted once, also by a new worker"
    assert any("started again" in line for line in watch.said)
    run_extract(ExtractSettings.of(**given, out=tmp_path / "one"), many)
    for number in range(6):
        one, two = (
            wp.read_features(tmp_path / run / "features" / "mean" / f"s{number}.h5")
            for run in ("one", "two")
        )
        assert np.array_equal(one.coords, two.coords)
        assert np.allclose(one.features, two.features, atol=1e-6)
    assert not (tmp_path / "two" / ".leases").exists()


@pytest.mark.full
def test_a_worker_that_cannot_go_on_ends_the_run(
    many: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder(act="raise ValueError('bad layer')")
    with pytest.raises(wp.EncoderError, match="bad layer"):
        wp.extract(many, encoder=encoder, out=tmp_path / "out", device="cpu,cpu")


@pytest.mark.full
def test_a_slide_that_kills_its_workers_is_left_out_and_the_others_are_done(
    many: Path, tmp_path: Path, make_encoder: Make
) -> None:
    """As if the system killed for memory: SIGKILL, twice, whatever the slides beside it."""
    with tifffile.TiffFile(many / "s3.svs") as tif:
        about = tif.pages[0].description
    green = np.zeros((768, 1024, 3), np.uint8)
    green[...] = (40, 200, 40)
    with tifffile.TiffWriter(many / "s3.svs") as tif:
        tif.write(green, tile=(256, 256), photometric="rgb", description=about, metadata=None)
    act = (
        "import os, time; time.sleep(0.02); "
        "os.kill(os.getpid(), 9) if (x[:, 1] - x[:, 0]).mean((1, 2)).max() > 0.5 else None"
    )
    watch = Watch()
    settings = ExtractSettings.of(
        encoders=(make_encoder(act=act),), tissue="none", device="cpu,cpu", out=tmp_path / "out"
    )
    result = run_extract(settings, many, reporter=watch)
    assert set(result.done) == {"s0", "s1", "s2", "s4", "s5"}
    assert set(result.failed) == {"s3", "text"}
    assert "crashed its process 2 times" in result.reasons["s3"]
    assert sum("started again" in line for line in watch.said) == 2
