"""The engine's parts by themselves: thread counts, buffers, batch sizes, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wsipipe.embed.buffers import BufferPool
from wsipipe.embed.drain import Drain
from wsipipe.embed.resources import available_cpus, share_threads
from wsipipe.embed.tuning import BatchTuner


@pytest.fixture
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SLURM_CPUS_PER_TASK", "LSB_DJOB_NUMPROC", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("wsipipe.embed.resources._affinity", lambda: 64)
    return monkeypatch


def test_processors_are_those_of_the_affinity(
    no_scheduler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert available_cpus(tmp_path) == 64


def test_a_cgroup_v2_quota_limits_processors(
    no_scheduler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert available_cpus(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == 64
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cpus(tmp_path) == 1


def test_a_cgroup_v1_quota_limits_processors(
    no_scheduler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == 4
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cpus(tmp_path) == 64


def test_a_schedulers_allotment_limits_processors(
    no_scheduler: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_scheduler.setenv("SLURM_CPUS_PER_TASK", "6")
    assert available_cpus(tmp_path) == 6


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 16, 40, 128])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_threads_never_outnumber_processors_by_kind(cpus: int, on_cpu: bool) -> None:
    threads = share_threads(cpus, on_cpu=on_cpu)
    assert 1 <= threads.streams * threads.intra <= cpus
    assert 1 <= threads.decode <= cpus
    assert share_threads(cpus, on_cpu=on_cpu, workers=3).decode == 3


def test_buffers_are_lent_within_the_budget_and_lent_again() -> None:
    pool = BufferPool(10 << 20)
    first, second = pool.take(4 << 20), pool.take(4 << 20)
    assert first is not None
    assert second is not None
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(pool.take(4 << 20)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    pool.give(first)
    waiting.join(5)
    assert got == [first]


def test_a_request_above_the_budget_is_granted_when_alone() -> None:
    pool = BufferPool(1 << 20)
    huge = pool.take(9 << 20)
    assert huge is not None
    assert huge.memory.size >= 9 << 20


def test_a_closed_pool_wakes_who_waits() -> None:
    pool = BufferPool(1)
    pool.take(1)
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(pool.take(1)))
    waiting.start()
    pool.close()
    waiting.join(5)
    assert got == [None]


def climb(tuner: BatchTuner, rate: dict[int, float]) -> int:
    for _ in range(200):
        tuner.timed(tuner.size, tuner.size / rate[tuner.size])
    return tuner.size


def test_the_ramp_stops_where_larger_batches_no_longer_pay() -> None:
    assert climb(BatchTuner(8, 128), {8: 100, 16: 130, 32: 131, 64: 300, 128: 300}) == 16
    assert climb(BatchTuner(8, 32), {8: 100, 16: 150, 32: 200}) == 32
    assert climb(BatchTuner(8, 128), {8: 54, 16: 50}) == 8


def test_batches_that_are_not_full_do_not_count() -> None:
    tuner = BatchTuner(8, 64)
    for _ in range(50):
        tuner.timed(3, 1.0)
    assert tuner.size == 8


def test_memory_trouble_halves_and_ends_the_ramp() -> None:
    tuner = BatchTuner(64, 1024)
    assert tuner.too_large(64)
    assert (tuner.size, tuner.backed_off) == (32, [32])
    assert climb(tuner, {32: 1.0}) == 32
    assert not tuner.too_large(1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_the_first_signal_is_remembered_and_handlers_are_put_back(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with Drain() as drain:
        assert not drain.requested
        os.kill(os.getpid(), getattr(signal, name))
        deadline = time.monotonic() + 5
        while not drain.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert drain.signal_name == name
        drain.request("SIGTERM")
        assert drain.signal_name == name
    assert signal.getsignal(getattr(signal, name)) == before


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_a_ctrl_c_after_any_request_to_stop_ends_at_once(first: str) -> None:
    code = (
        "import os, signal, time\n"
        "from wsipipe.embed.drain import Drain\n"
        "with Drain() as drain:\n"
        f"    os.kill(os.getpid(), signal.{first})\n"
        "    while not drain.requested: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 130
