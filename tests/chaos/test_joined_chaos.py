"""Many processes on one folder while everything goes wrong: `make chaos`. Minutes.

120 slides, six joined processes on two hosts (two of them in name, pid and mount spaces of their
own), 25 of them killed at random, a clock a day behind, and a disk that fills and is enlarged.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsipipe.store import read_features
from wsipipe.store.partial import find_partials
from wsipipe.store.publish import find_temporaries
from wsipipe.store.tables import feature_files
from wsipipe.store.verify import verify_run

SLIDES, KINDS, KILLS, PROCESSES = 120, 6, 25, 6
# A host that is gone (its pids cannot be looked at) is waited for so long.
TTL_S = 20

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(os.environ.get("WSIPIPE_CHAOS") != "1", reason="run it by `make chaos`"),
]


def wsipipe(*args: object) -> list[str]:
    return [sys.executable, "-m", "wsipipe", *map(str, args)]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many slides of a few kinds; slide i is a copy of kind i modulo KINDS."""
    made = tmp_path_factory.mktemp("made")
    line = wsipipe("synth", made, "-n", KINDS, "--size", 1536)
    subprocess.run(line, check=True, capture_output=True)
    kinds = sorted(made.glob("*.svs"))
    folder = tmp_path_factory.mktemp("slides")
    for i in range(SLIDES):
        shutil.copy(kinds[i % KINDS], folder / f"s{i:03d}.svs")
    return folder


def extract(slides: Path, out: Path, *options: str) -> list[str]:
    return wsipipe(
        "extract", slides, "--encoder", "texture", "--out", out, "--deterministic",
        "--dtype", "float32", *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide of each kind, extracted in peace."""
    few = tmp_path_factory.mktemp("few")
    for i in range(KINDS):
        shutil.copy(slides / f"s{i:03d}.svs", few)
    out = tmp_path_factory.mktemp("unbroken") / "out"
    subprocess.run(extract(few, out), check=True, capture_output=True)
    return out


def other_host(number: int) -> list[str]:
    """A prefix that runs a command under another host name, with pids of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return []
    prefix = [unshare, "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*prefix, "sh", "-c", f'hostname other{number} && exec "$@"', "sh"]


def wrong_clock() -> list[str]:
    faketime = shutil.which("faketime")
    return [faketime, "-f", "-1d"] if faketime else []


def assert_all_whole(out: Path, unbroken: Path) -> None:
    files = feature_files(out)
    assert sorted(slide_id for _, slide_id in files) == [f"s{i:03d}" for i in range(SLIDES)]
    for (_, slide_id), path in files.items():
        kind = int(slide_id[1:]) % KINDS
        expected = read_features(unbroken / "features" / "texture" / f"s{kind:03d}.h5")
        found = read_features(path)
        assert found.coords.tobytes() == expected.coords.tobytes()
        assert found.features.tobytes() == expected.features.tobytes()
    result = verify_run(out)
    assert not result.damaged, result.findings
    assert not list(find_temporaries(out))
    assert not list(find_partials(out / ".partial"))
    assert not list(out.rglob("*.lease"))


def test_joined_processes_finish_whatever_is_killed(
    slides: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    draw = random.Random(1)
    environment = {**os.environ, "WSIPIPE_LEASE_TTL_S": str(TTL_S), "OMP_NUM_THREADS": "1"}
    line = extract(slides, out, "--join", "--workers", "1")
    prefixes = [[], [], [], wrong_clock(), other_host(1), other_host(2)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    since: dict[int, float] = {}
    log = (tmp_path / "log").open("wb")

    def begin(k: int) -> None:
        since[k] = time.monotonic()
        running[k] = subprocess.Popen(
            [*prefixes[k], *line], env=environment, stdout=log, stderr=log, start_new_session=True
        )

    for k in range(PROCESSES):
        begin(k)
    kills, begun = 0, time.monotonic()
    while running:
        assert time.monotonic() - begun < 1800, (tmp_path / "log").read_text()[-3000:]
        time.sleep(draw.uniform(0.5, 3))
        for k, process in list(running.items()):
            if process.poll() is not None:
                assert process.returncode in (0, -signal.SIGKILL), (k, process.returncode)
                del running[k]
        # Most of a start is imports: only a process that may be at work is worth a kill.
        grown = [k for k in sorted(running) if time.monotonic() - since[k] > 6]
        if grown and kills < KILLS:
            k = draw.choice(grown)
            os.killpg(running[k].pid, signal.SIGKILL)
            running[k].wait()
            kills += 1
            begin(k)
    log.close()
    print(f"killed {kills} of {PROCESSES} joined processes")
    assert kills >= KILLS // 2
    # What killed processes left is swept by the next run, which finds nothing else to do.
    time.sleep(TTL_S)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_all_whole(out, unbroken)


def test_a_disk_that_fills_stops_the_run_and_a_larger_one_lets_it_go_on(
    slides: Path, unbroken: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    try:
        line = extract(slides, disk / "out")
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr
        assert "space" in done.stderr
        assert 0 < len(feature_files(disk / "out")) < SLIDES
        assert not verify_run(disk / "out").damaged
        remount = ["mount", "-o", "remount,size=64m", str(disk)]
        subprocess.run(remount, check=True)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert_all_whole(disk / "out", unbroken)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
