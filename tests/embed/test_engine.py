"""The engine, with fake slides and models: every row once, to its own slide, come what may."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.embed.conftest import FakeEncoder, FakeTask, Recorder
from wsipipe.embed.drain import Drain
from wsipipe.embed.tuning import BatchTuner
from wsipipe.errors import EncoderError, ModelError, OutputError, ReadError

Run = Callable[..., Recorder]


def assert_whole(task: FakeTask) -> None:
    assert task.finished == task.closed == 1
    for sink in task.sinks.values():
        assert (sink.puts == 1).all()
        assert np.array_equal(sink.features[:, 0], np.arange(task.count))
        assert (sink.features[:, 1] == task.number).all()


def test_every_row_comes_back_once_to_its_own_slide(run_engine: Run) -> None:
    tasks = [FakeTask(n, count) for n, count in enumerate([1, 700, 3, 0, 5, 29, 2])]
    seen = run_engine(tasks)
    assert {o.status for o in seen.outcomes.values()} == {"done"}
    for task in tasks:
        assert_whole(task)
    assert seen.last.tiles == 740


def test_batches_are_filled_across_slides(run_engine: Run) -> None:
    encoder = FakeEncoder(pause=0.002)
    run_engine([FakeTask(n, 3) for n in range(100)], encoders=[encoder], tuner=BatchTuner(16))
    assert max(encoder.seen) == 16
    assert len(encoder.seen) < 60  # one forward a slide would be 100


def test_two_encoders_share_one_read(run_engine: Run) -> None:
    reads: list[Any] = []
    tasks = [FakeTask(n, 50, encoders=(0, 1), on_read=reads.append) for n in range(3)]
    run_engine(tasks, encoders=[FakeEncoder(), FakeEncoder()])
    for task in tasks:
        assert_whole(task)
    assert sum(len(job.rows) for job in reads) == 150


def test_a_small_buffer_budget_slows_but_never_stops(run_engine: Run) -> None:
    tasks = [FakeTask(n, 40, tile_px=64) for n in range(4)]
    run_engine(tasks, buffer_bytes=1, tuner=BatchTuner(64))
    for task in tasks:
        assert_whole(task)


def test_out_of_memory_halves_the_batch_and_changes_no_row(run_engine: Run) -> None:
    encoder, tuner = FakeEncoder(fits=3), BatchTuner(16)
    tasks = [FakeTask(0, 100), FakeTask(1, 33)]
    run_engine(tasks, encoders=[encoder], tuner=tuner)
    for task in tasks:
        assert_whole(task)
    assert tuner.size == 2
    assert tuner.backed_off[0] == 8


def test_not_even_one_tile_fits_ends_the_run(run_engine: Run) -> None:
    with pytest.raises(EncoderError, match="not even one tile"):
        run_engine([FakeTask(0, 5)], encoders=[FakeEncoder(fits=0)])


def test_a_reader_that_throws_fails_its_slide_alone(run_engine: Run) -> None:
    def broken(job: Any) -> None:
        if job.rows[0] >= 14:
            raise RuntimeError("segment 7")

    bad, good = FakeTask(0, 50, on_read=broken), FakeTask(1, 50)
    seen = run_engine([bad, good])
    assert seen.outcomes["s0"].status == "failed"
    assert seen.outcomes["s0"].stage == "read"
    assert "segment 7" in str(seen.outcomes["s0"].error)
    assert bad.closed == 1
    assert bad.finished == 0
    assert bad.kept is False
    assert_whole(good)


def test_a_slide_that_cannot_be_prepared_names_its_stage(run_engine: Run) -> None:
    bad = FakeTask(0, 5)

    def broken() -> None:
        bad.stage = "tissue"
        raise ReadError("a.svs", "no")

    bad.on_prepare = broken
    good = FakeTask(1, 5)
    seen = run_engine([bad, good])
    assert (seen.outcomes["s0"].status, seen.outcomes["s0"].stage) == ("failed", "tissue")
    assert_whole(good)


@pytest.mark.parametrize("where", ["on_read", "on_prepare", "on_accompany"])
def test_a_hanging_slide_is_left_behind(run_engine: Run, where: str) -> None:
    release = threading.Event()
    hanging = FakeTask(0, 30, **{where: lambda *_: release.wait(30)})
    others = [FakeTask(n, 30) for n in range(1, 6)]
    begun = time.monotonic()
    seen = run_engine([hanging, *others], read_timeout_s=0.5)
    assert time.monotonic() - begun < 20
    release.set()
    assert seen.outcomes["s0"].status == "failed"
    assert "--slide-timeout" in str(seen.outcomes["s0"].error)
    for task in others:
        assert_whole(task)


def test_reading_does_not_wait_for_pictures_but_publishing_does(run_engine: Run) -> None:
    read = threading.Event()
    task = FakeTask(1, 20, on_read=lambda job: read.set())
    seen = []

    def draw() -> None:
        seen.append(read.wait(5))
        time.sleep(0.1)
        seen.append(task.finished == 0)

    task.on_accompany = draw
    empty = FakeTask(2, 0, on_accompany=lambda: seen.append(empty.finished == 0))
    run_engine([task, empty])
    assert seen.count(True) == 3
    assert_whole(task)
    assert_whole(empty)


class FullDisk(FakeTask):
    """Cannot be published; says when its reading began and when it fell."""

    def __init__(self, number: int, count: int) -> None:
        self.begun, self.fell = threading.Event(), threading.Event()
        super().__init__(number, count, on_read=lambda job: self.begun.set())

    def finish(self) -> None:
        self.fell.set()
        raise OutputError("out/x.h5", "no space left")


def test_a_full_disk_ends_the_run(run_engine: Run) -> None:
    full = FullDisk(0, 5)
    later = FakeTask(
        1,
        5000,
        on_prepare=lambda: full.begun.wait(30),
        on_read=lambda job: job.rows[0] < 3000 or full.fell.wait(30),
    )
    with pytest.raises(OutputError):
        run_engine([full, later], encoders=[FakeEncoder(pause=0.01)])
    assert later.finished == 0
    assert later.kept is True
    assert (full.closed, later.closed) == (1, 1)


def test_a_slide_begun_while_the_disk_fills_keeps_its_rows(run_engine: Run) -> None:
    full, begun, recorder = FullDisk(0, 5), threading.Event(), Recorder()
    late = FakeTask(1, 20, on_prepare=begun.set)

    def tasks() -> Iterator[FakeTask]:
        yield full
        full.fell.wait(30)
        time.sleep(0.1)  # until the error is in the mailbox
        yield late

    recorder.on_tick = lambda snapshot: begun.wait(30)
    with pytest.raises(OutputError):
        run_engine(tasks(), recorder=recorder)
    assert late.kept is True
    assert late.closed == 1


def test_a_model_that_fails_ends_the_run_and_says_so(run_engine: Run) -> None:
    class Broken(FakeEncoder):
        def start(self, tiles: Any) -> Any:
            raise ValueError("shapes do not match")

    with pytest.raises(ModelError, match="shapes do not match") as caught:
        run_engine([FakeTask(0, 5)], encoders=[Broken()])
    assert caught.value.exit_code == 70, "1 would say that the others are complete"


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt()])
def test_what_is_no_exception_ends_the_run_and_not_just_its_thread(
    run_engine: Run, raised: BaseException
) -> None:
    class Leaving(FakeEncoder):
        def start(self, tiles: Any) -> Any:
            raise raised

    with pytest.raises(ModelError, match=type(raised).__name__):
        run_engine([FakeTask(0, 5)], encoders=[Leaving()])

    def panic(job: Any) -> None:
        raise raised

    bad, good = FakeTask(0, 50, on_read=panic), FakeTask(1, 50)
    seen = run_engine([bad, good])
    assert type(raised).__name__ in str(seen.outcomes["s0"].error)
    assert_whole(good)


def test_drain_finishes_what_fits_and_leaves_the_rest(run_engine: Run) -> None:
    drain, recorder = Drain(), Recorder()
    tasks = [FakeTask(n, 60) for n in range(200)]

    def stop(snapshot: Any) -> None:
        if snapshot.tiles > 100:
            drain.request("SIGTERM")

    recorder.on_tick = stop
    run_engine(
        tasks, encoders=[FakeEncoder(pause=0.01)], drain=drain, recorder=recorder, grace_s=20
    )
    done = [t for t in tasks if t.finished]
    assert 0 < len(done) < 100
    for task in done:
        assert_whole(task)
    for name, outcome in recorder.outcomes.items():
        assert outcome.status == ("done" if tasks[int(name[1:])].finished else "abandoned")


def test_drain_gives_up_on_a_slide_that_would_take_too_long(run_engine: Run) -> None:
    drain, recorder = Drain(), Recorder()
    recorder.on_tick = lambda snapshot: drain.request("SIGTERM") if snapshot.tiles > 20 else None
    huge = FakeTask(0, 5000)
    begun = time.monotonic()
    run_engine(
        [huge], encoders=[FakeEncoder(pause=0.02)], drain=drain, recorder=recorder, grace_s=2
    )
    assert time.monotonic() - begun < 10
    assert recorder.outcomes["s0"].status == "abandoned"
    assert huge.kept is True


def test_random_faults_never_lock_up_or_mix_rows(run_engine: Run) -> None:
    rng = random.Random(5)

    def maybe(share: float) -> Callable[..., None]:
        def act(*_: Any) -> None:
            if rng.random() < share:
                raise OSError("flaky")
            time.sleep(rng.random() * 0.001)

        return act

    tasks = [
        FakeTask(n, rng.randrange(0, 120), job=rng.randrange(1, 20), on_read=maybe(0.02),
                 on_prepare=maybe(0.1), on_accompany=maybe(0.05), tile_px=rng.choice([16, 24]))
        for n in range(150)
    ]  # fmt: skip
    seen = run_engine(
        tasks, encoders=[FakeEncoder(fits=9)], buffer_bytes=3 << 20, tuner=BatchTuner(8, 32)
    )
    assert len(seen.outcomes) == len(tasks)
    statuses = {t.slide_id: t for t in tasks}
    for name, outcome in seen.outcomes.items():
        assert statuses[name].closed == 1
        if outcome.status == "done":
            assert_whole(statuses[name])
    assert {o.status for o in seen.outcomes.values()} == {"done", "failed"}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_goes_wrong_the_engine_comes_to_an_end(run_engine: Run, seed: int) -> None:
    """Hanging, throwing and slow reads, a device without memory, a request to stop: no deadlock."""
    rng, never = random.Random(seed), threading.Event()
    drain, recorder = Drain(), Recorder()
    stop_at = rng.choice([200, 10**9])
    recorder.on_tick = lambda s: drain.request("SIGTERM") if s.tiles >= stop_at else None

    def trouble(*_: Any) -> None:
        draw = rng.random()
        if draw < 0.01:
            never.wait(30)
        elif draw < 0.03:
            raise OSError("gone")
        time.sleep(draw * 0.002)

    tasks = [
        FakeTask(n, rng.randrange(0, 60), job=rng.randrange(1, 20), on_read=trouble,
                 on_prepare=trouble, on_accompany=trouble, tile_px=rng.choice([16, 24]))
        for n in range(60)
    ]  # fmt: skip
    options = {"buffer_bytes": 2 << 20, "read_timeout_s": 0.5, "grace_s": 1.0}
    ended = threading.Event()
    caught: list[Exception] = []

    def work() -> None:
        try:
            run_engine(tasks, encoders=[FakeEncoder(fits=5)], tuner=BatchTuner(8, 32),
                       drain=drain, recorder=recorder, **options)  # fmt: skip
        except (EncoderError, OutputError, AssertionError) as error:
            caught.append(error)
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    whole = ended.wait(60)
    never.set()
    assert whole, "the engine is stuck"
    assert not caught
    for task in tasks:
        outcome = recorder.outcomes.get(task.slide_id)
        if outcome is not None and outcome.status == "done":
            assert all((sink.puts == 1).all() for sink in task.sinks.values())
        if outcome is None:
            assert drain.requested
