"""Leases place work on one process at a time, and never get stuck on a dead one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsipipe.store import Leases, publish_text
from wsipipe.store.publish import find_temporaries, remove_stale_temporaries


def age(path: Path, seconds: float) -> None:
    moved = path.stat().st_mtime - seconds
    os.utime(path, (moved, moved))


def lease_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def as_of_another_host(path: Path) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "host": "elsewhere"}))


def test_one_key_goes_to_one_process_until_it_is_given_back(tmp_path: Path) -> None:
    one, two = Leases(tmp_path / "l"), Leases(tmp_path / "l")
    lease = one.acquire("case/a", {"job": "17"})
    assert lease is not None
    assert two.acquire("case/a") is None
    assert two.acquire("case_a") is not None  # another key, though its safe name is alike
    holder = two.holder("case/a")
    assert holder is not None
    assert (holder["key"], holder["pid"], holder["job"]) == ("case/a", os.getpid(), "17")
    lease.release()
    again = two.acquire("case/a")
    assert again is not None
    two.close()
    one.close()
    assert not (tmp_path / "l").exists()


def test_a_lease_that_is_not_refreshed_is_taken_over_and_its_loser_knows(tmp_path: Path) -> None:
    one, two = Leases(tmp_path, ttl_s=100), Leases(tmp_path, ttl_s=100)
    lease = one.acquire("a")
    assert lease is not None
    (path,) = tmp_path.iterdir()
    age(path, 99)
    assert two.acquire("a") is None
    age(path, 2)
    stolen = two.acquire("a")
    assert stolen is not None
    assert lease.held
    assert not lease.beat()
    assert not lease.held
    lease.release()
    assert stolen.check()
    assert len(lease_files(tmp_path)) == 1


def test_a_beat_keeps_it(tmp_path: Path) -> None:
    one, two = Leases(tmp_path, ttl_s=100), Leases(tmp_path, ttl_s=100)
    lease = one.acquire("a")
    assert lease is not None
    (path,) = tmp_path.iterdir()
    age(path, 200)
    assert lease.beat()
    assert two.acquire("a") is None


def test_the_thread_keeps_it_alive(tmp_path: Path) -> None:
    one, two = Leases(tmp_path, ttl_s=0.6, beat_s=0.1), Leases(tmp_path, ttl_s=0.6)
    assert one.acquire("a") is not None
    time.sleep(1.5)
    as_of_another_host(next(tmp_path.iterdir()))
    assert two.acquire("a") is None
    one.close()


def test_a_dead_process_of_this_host_loses_its_lease_at_once(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal
        from wsipipe.store import Leases
        leases = Leases({str(tmp_path)!r})
        leases.acquire("a")
        os.kill(os.getpid(), signal.SIGKILL)"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(lease_files(tmp_path)) == 1
    assert Leases(tmp_path).acquire("a") is not None


def test_another_hosts_lease_is_respected_until_its_time_is_over(tmp_path: Path) -> None:
    leases = Leases(tmp_path, ttl_s=100)
    lease = leases.acquire("a")
    assert lease is not None
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "host": "elsewhere", "pid": 1, "token": "other"}))
    assert leases.acquire("a") is None
    age(path, 101)
    assert leases.acquire("a") is not None


def test_a_clock_that_was_wrong_does_not_hold_a_slide_for_ever(tmp_path: Path) -> None:
    leases = Leases(tmp_path, ttl_s=100)
    assert leases.acquire("a") is not None
    (path,) = tmp_path.iterdir()
    as_of_another_host(path)
    age(path, -86_400)  # written by a day that has not come yet
    assert Leases(tmp_path, ttl_s=100).acquire("a") is not None


def test_remains_of_killed_processes_are_swept(tmp_path: Path) -> None:
    leases = Leases(tmp_path, ttl_s=100)
    assert leases.acquire("kept") is not None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (kept,) = tmp_path.iterdir()
    content = {**json.loads(kept.read_text()), "pid": dead.pid}
    (tmp_path / ".b.lease.0123").write_text(json.dumps(content))
    (tmp_path / "b.lease").write_text(json.dumps(content))
    (tmp_path / ".c.lease.0123").write_text("")
    age(tmp_path / ".c.lease.0123", 101)
    leases.remove_remains()
    assert list(tmp_path.iterdir()) == [kept]


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_killed_guard_blocks_its_key_for_a_while_only(tmp_path: Path) -> None:
    leases = Leases(tmp_path, ttl_s=100)
    lease = leases.acquire("a")
    assert lease is not None
    assert Leases(tmp_path, ttl_s=100).acquire("a") is None
    (path,) = tmp_path.iterdir()
    lease.release()
    guard = tmp_path / f".{path.name}.guard"
    guard.mkdir()
    assert leases.acquire("a") is None
    assert guard.exists()
    age(guard, 101)
    lease = leases.acquire("a")
    assert lease is not None
    lease.release()
    guard.mkdir()
    age(guard, 101)
    leases.remove_remains()
    assert not list(tmp_path.iterdir())
    assert leases.acquire("a") is not None
    leases.close()
    assert not tmp_path.exists()


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_lease_refreshed_in_the_last_moment_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Leases(tmp_path, ttl_s=100), Leases(tmp_path, ttl_s=100)
    lease = one.acquire("a")
    assert lease is not None
    ages = {False: 101.0, True: 0.0}
    monkeypatch.setattr(two, "_age", lambda path, fresh: ages[fresh])
    assert two.acquire("a") is None
    assert lease.check()


def _work(out: str, seed: int, slides: int) -> None:
    """Takes slides by lease, kills itself at random, publishes what each slide's content is."""
    folder = Path(out)
    draw = random.Random(seed)
    leases = Leases(folder / "leases", ttl_s=1.0, beat_s=0.1)
    order = list(range(slides))
    draw.shuffle(order)
    while True:
        left = [k for k in order if not (folder / f"{k}.out").exists()]
        if not left:
            return leases.close()
        for k in left:
            lease = leases.acquire(str(k))
            if lease is None:
                continue
            if not (folder / f"{k}.out").exists():
                for _ in range(3):
                    time.sleep(0.005)
                    if draw.random() < 0.07:
                        os.kill(os.getpid(), signal.SIGKILL)
                if lease.check():
                    (folder / "commits" / f"{k}.{os.getpid()}.{time.time_ns()}").touch()
                    publish_text(folder / f"{k}.out", f"slide {k}\n")
            lease.release()
        time.sleep(0.02)


def _chaos(out: Path, slides: int, workers: int, seed: int, limit_s: float) -> int:
    """Runs workers, replaces the killed ones; returns how many were killed."""
    (out / "commits").mkdir(parents=True)
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
    start = time.monotonic()
    kills = 0

    def begin() -> multiprocessing.process.BaseProcess:
        nonlocal seed
        seed += 1
        process = context.Process(target=_work, args=(str(out), seed, slides))
        process.start()
        return process

    running = [begin() for _ in range(workers)]
    while running and time.monotonic() - start < limit_s:
        for process in list(running):
            if not process.is_alive():
                process.join()
                running.remove(process)
                if process.exitcode == -signal.SIGKILL:
                    kills += 1
                    running.append(begin())
        time.sleep(0.02)
    for process in running:
        process.kill()
        process.join()
    assert not running, "the workers did not come to an end"
    return kills


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(
    ("slides", "workers"), [(60, 4), pytest.param(400, 6, marks=pytest.mark.full)]
)
def test_chaos_every_slide_is_done_and_nothing_is_left(
    tmp_path: Path, slides: int, workers: int
) -> None:
    kills = _chaos(tmp_path, slides, workers, seed=1, limit_s=200)
    assert kills >= 2
    for k in range(slides):
        assert (tmp_path / f"{k}.out").read_text() == f"slide {k}\n"
    Leases(tmp_path / "leases", ttl_s=1.0).close()
    assert not (tmp_path / "leases").exists()
    remove_stale_temporaries(tmp_path)
    assert not list(find_temporaries(tmp_path))
    # A worker may be killed between its commit and the file: twice, then, but never more.
    commits = [p.name.split(".")[0] for p in (tmp_path / "commits").iterdir()]
    assert len(commits) - slides <= kills
