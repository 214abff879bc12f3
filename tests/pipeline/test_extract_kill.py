"""Killed anywhere and run again, the result equals an unbroken run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsipipe as wp
from tests.pipeline import killing
from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.pipeline import run_extract
from wsipipe.pipeline.reporter import Reporter
from wsipipe.store import remove_stale_temporaries

Make = Callable[..., Any]
SLOW = "import time; time.sleep(0.02)"


def assert_equal_runs(one: Path, other: Path) -> None:
    files = sorted((one / "features").rglob("*.h5"))
    assert files
    for path in files:
        a, b = wp.read_features(path), wp.read_features(other / path.relative_to(one))
        assert a.coords.tobytes() == b.coords.tobytes()
        assert np.asarray(a.features).tobytes() == np.asarray(b.features).tobytes()
        assert np.array_equal(a.tissue_fraction, b.tissue_fraction)
        assert a.attrs["identity"] == b.attrs["identity"]


def assert_clean(out: Path) -> None:
    """No temporary, partial or lease is left, and nothing under a final name is partial."""
    assert not list(out.rglob(".*.tmp"))
    assert not (out / ".partial").exists()
    assert not (out / ".leases").exists()


def kill_and_compare(
    kills: int, slides: Path, tmp_path: Path, encoder: str, seed: int, **settings: Any
) -> None:
    given = {"encoder": encoder, "deterministic": True, "dtype": "float32", **settings}
    killing.run(slides, out=tmp_path / "warm", **given)  # the fork server loads torch
    seconds = killing.timed_run(slides, out=tmp_path / "whole", **given)
    rng = random.Random(seed)
    out, killed = tmp_path / "killed", 0
    while killed < kills:
        after = rng.uniform(0.02, max(0.3, seconds))
        if killing.run_and_kill(slides, after, out=out, **given):
            killed += 1
        else:
            for path in list((out / "features").rglob("*.h5"))[:2]:
                path.unlink()
        for path in (out / "features").rglob("*.h5") if out.exists() else ():
            if not path.name.startswith("."):
                assert wp.read_features(path).attrs["identity"]
    assert killing.run(slides, out=out, **given) == 0
    assert_equal_runs(tmp_path / "whole", out)
    remove_stale_temporaries(out)
    assert_clean(out)


def test_killed_at_random_moments_a_run_resumes_to_the_same_bytes(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    kill_and_compare(10, slides, tmp_path, make_encoder(act=SLOW), seed=1)


@pytest.mark.full
@pytest.mark.parametrize("join", [False, True])
def test_killed_at_fifty_random_moments(
    slides: Path, tmp_path: Path, make_encoder: Make, join: bool
) -> None:
    kill_and_compare(25, slides, tmp_path, make_encoder(act=SLOW), seed=2, join=join)


class StopAfter(Reporter):
    """Asks to stop once so many tiles are embedded."""

    def __init__(self, drain: Drain, tiles: int) -> None:
        self.drain, self.tiles, self.seen = drain, tiles, 0

    def tick(self, snapshot: Any) -> None:
        self.seen = snapshot.tiles
        if snapshot.tiles >= self.tiles:
            self.drain.request("SIGTERM")


def test_a_stopped_slide_goes_on_inside_with_the_rows_it_has(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    given = {"encoders": (make_encoder(tile_px=32, act=SLOW),), "batch_size": 4, "out": out}
    settings = ExtractSettings.of(**given, grace=0.0, deterministic=True)
    drain = Drain()
    with pytest.raises(wp.Drained):
        run_extract(settings, slides / "s0.svs", drain=drain, reporter=StopAfter(drain, 40))
    assert list((out / ".partial").iterdir())
    assert not list((out / "features").rglob("*.h5"))
    rest = StopAfter(Drain(), 10**9)
    result = run_extract(settings, slides / "s0.svs", reporter=rest)
    assert result.done == ("s0",)
    whole = settings.model_copy(update={"out": tmp_path / "whole"})
    all_tiles = run_extract(whole, slides / "s0.svs").tiles
    assert rest.seen <= all_tiles - 40
    assert_equal_runs(tmp_path / "whole", out)
    assert_clean(out)


def test_joined_processes_share_one_folder(
    tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    for number in range(8):
        make_svs(folder / f"s{number}.svs", seed=number)
    given = {"encoder": make_encoder(act=SLOW), "out": out, "join": True, "dtype": "float32"}
    processes = [killing.start(folder, **given) for _ in range(3)]
    time.sleep(1.5)
    processes[0].kill()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes[1:]] == [0, 0]
    begun = [e for f in (out / "events").glob("*.jsonl") for e in f.read_text().splitlines()]
    done = [line for line in begun if '"slide_done"' in line]
    assert len(done) <= 8 + 4  # what the killed one had in hand may be done twice, no more
    result = wp.extract(folder, **given)
    assert len(result.done) == 8
    assert result.tiles == 0
    assert_clean(out)
