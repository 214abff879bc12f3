"""A fake world for the engine: tiles whose pixels say which row they are, a model to read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from wsipipe.embed.engine import Engine, EngineOptions, Listener, Outcome
from wsipipe.embed.resources import Threads
from wsipipe.embed.tuning import BatchTuner
from wsipipe.embed.work import View


@dataclass
class FakeGrid:
    tile_px: int
    count: int


@dataclass
class FakeJob:
    rows: np.ndarray
    index: int = 0


@dataclass
class FakeHandle:
    rows: np.ndarray

    def result(self) -> np.ndarray:
        return self.rows


@dataclass
class FakeEncoder:
    """Features (row, slide): what the fake tiles carry in their first pixels."""

    fits: int = 10_000
    seen: list[int] = field(default_factory=list)
    pause: float = 0.0

    def start(self, tiles: np.ndarray) -> FakeHandle:
        import torch

        self.seen.append(len(tiles))
        if len(tiles) > self.fits:
            raise torch.OutOfMemoryError("fake")
        time.sleep(self.pause)
        low, high, slide = tiles[:, 0, 0, 0], tiles[:, 0, 0, 1], tiles[:, 0, 0, 2]
        row = low.astype(np.float32) + 256.0 * high
        return FakeHandle(np.stack([row, slide.astype(np.float32)], axis=1))


class FakeSink:
    def __init__(self, count: int) -> None:
        self.features = np.full((count, 2), -1, np.float32)
        self.puts = np.zeros(count, int)
        self.lock = threading.Lock()

    def put(self, rows: Any, features: Any, status: Any) -> None:
        with self.lock:
            self.features[rows] = features
            self.puts[rows] += 1


class FakeTask:
    def __init__(
        self,
        number: int,
        count: int,
        *,
        job: int = 7,
        tile_px: int = 16,
        encoders: Sequence[int] = (0,),
        on_prepare: Callable[[], None] | None = None,
        on_read: Callable[[Any], None] | None = None,
        on_accompany: Callable[[], None] | None = None,
    ) -> None:
        self.slide_id = self.path = f"s{number}"
        self.number, self.count, self.job = number, count, job
        self.stage, self.step_since = "open", 0.0
        self.tile_px, self.on_prepare, self.on_read = tile_px, on_prepare, on_read
        self.on_accompany = on_accompany
        self.sinks = {index: FakeSink(count) for index in encoders}
        self.finished = self.closed = 0
        self.kept: bool | None = None

    def prepare(self) -> list[View]:
        if self.on_prepare:
            self.on_prepare()
        rows = np.arange(self.count)
        jobs = [FakeJob(rows[i : i + self.job]) for i in range(0, self.count, self.job)]
        return [View(self, FakeGrid(self.tile_px, self.count), jobs, self.sinks)]

    def accompany(self) -> None:
        if self.on_accompany:
            self.on_accompany()

    def saw(self, view: View, rows: Any, tiles: Any, status: Any) -> Any:
        pass

    def finish(self) -> None:
        self.finished += 1

    def abandon(self, *, keep: bool) -> None:
        self.kept = keep

    def close(self) -> None:
        self.closed += 1


def fake_read(slide: FakeTask, grid: FakeGrid, job: FakeJob, out: Any) -> tuple[Any, Any]:
    if slide.on_read:
        slide.on_read(job)
    out[:, 0, 0, 0] = job.rows % 256
    out[:, 0, 0, 1] = job.rows // 256
    out[:, 0, 0, 2] = slide.number
    return out, np.zeros(len(job.rows), np.uint8)


class Recorder(Listener):
    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.last: Any = None
        self.on_tick: Callable[[Any], None] | None = None

    def over(self, outcome: Outcome) -> None:
        assert outcome.task.slide_id not in self.outcomes
        self.outcomes[outcome.task.slide_id] = outcome

    def tick(self, snapshot: Any) -> None:
        self.last = snapshot
        if self.on_tick:
            self.on_tick(snapshot)


@pytest.fixture
def run_engine() -> Callable[..., Recorder]:
    def run(tasks: Sequence[FakeTask], **keywords: Any) -> Recorder:
        recorder = keywords.pop("recorder", None) or Recorder()
        encoders = keywords.pop("encoders", None) or [FakeEncoder()]
        tuner = keywords.pop("tuner", None) or BatchTuner(4)
        drain = keywords.pop("drain", None)
        options = EngineOptions(Threads(2, keywords.pop("streams", 2), 1), **keywords)
        Engine(encoders, fake_read, tuner, options, drain).run(iter(tasks), recorder)
        return recorder

    return run
