"""A real Slurm on this host: `make slurm-test`. Needs root and Debian; about ten minutes.

One controller and three nodes with made-up GPUs are started and ended by the test (one_host.sh).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsipipe.store.publish import find_temporaries
from wsipipe.store.verify import verify_run

SCRIPT = Path(__file__).with_name("one_host.sh")

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        os.environ.get("WSIPIPE_SLURM_TEST") != "1", reason="run it by `make slurm-test`"
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a Slurm of one's own needs root on Debian")
    kept = os.environ.get("WSIPIPE_SLURM_FOLDER")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("slurm")
    if not (folder / "slurm.conf").exists():
        # The daemons inherit what the script has open: a file, not a pipe.
        with (folder / "up.log").open("w") as log:
            done = subprocess.run([SCRIPT, "up", folder], stdout=log, stderr=log, check=False)
        if done.returncode:
            subprocess.run([SCRIPT, "down", folder], check=False)
            pytest.skip(f"no Slurm here: {(folder / 'up.log').read_text()[-500:]}")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        if not kept:
            subprocess.run([SCRIPT, "down", folder], check=False)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    line = [sys.executable, "-m", "wsipipe", "synth", str(folder), "-n", "6", "--size", "2048"]
    subprocess.run(line, check=True, capture_output=True)
    return folder


# Gives mean colours and takes its time, so that a run can be met in its middle without work for
# the machine.
ENCODER = """
import time
import torch
import wsipipe

CARD = wsipipe.EncoderCard(name="slow", dim=3, tile_px=224, mpp=0.5, mean=None, std=None)

class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(SECONDS * len(x))
        return x.mean(dim=(2, 3))

def build(card):
    return Slow()
"""


def submit(slides: Path, out: Path, *options: str, tile_s: float = 0.25) -> str:
    """Submit an array of two tasks; its number. There are about 270 tiles."""
    encoder = out.with_name("slow.py")
    encoder.write_text(ENCODER.replace("SECONDS", str(tile_s)))
    line = [
        sys.executable, "-m", "wsipipe", "submit", "slurm", str(slides), "--out", str(out),
        "--gpus", "2", "--cpus", "1", "--memory", "2G", "--json", "--encoder", str(encoder),
        "--grace", "5", *options,
    ]  # fmt: skip
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["job"])


def wait_until(true: Callable[[], object], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s} s"
        time.sleep(0.5)


def in_queue(job: str) -> bool:
    done = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip())


def files(out: Path) -> list[Path]:
    return sorted((out / "features").rglob("[!.]*.h5"))


def worker_pids(out: Path) -> set[int]:
    pids = set()
    for path in (out / "attempts").glob("*.json"):
        last = json.loads(path.read_text())["attempts"][-1]
        if last["state"] == "running":
            pids.add(int(last["pid"]))
    return pids


def logs(out: Path) -> str:
    return "\n".join(path.read_text() for path in (out / "slurm").glob("*.log"))


def assert_whole(out: Path) -> None:
    assert len(files(out)) == 6, logs(out)[-3000:]
    result = verify_run(out)
    assert not result.damaged, result.findings
    assert not list(find_temporaries(out))
    assert not list(out.rglob("*.lease"))


def test_two_tasks_share_the_slides_and_a_killed_worker_is_replaced(
    cluster: Path, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = submit(slides, out)
    wait_until(lambda: len(worker_pids(out)) == 2, 120, "both tasks at work")
    victim = min(worker_pids(out))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not in_queue(job), 600, "the array is through")
    assert_whole(out)
    assert "worker 2" in logs(out)


def test_a_task_near_its_time_limit_drains_and_is_put_back(
    cluster: Path, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # Slurm tells up to a minute earlier than it is asked to, and a worker needs time to start.
    job = submit(slides, out, "--time", "3m", "--warn", "60", tile_s=1.3)
    wait_until(lambda: "code 75" in logs(out), 240, "a task has drained")
    wait_until(lambda: not in_queue(job), 900, "the array is through")
    assert_whole(out)
    assert "restart 1" in logs(out)


def test_a_preempted_task_goes_on_later(cluster: Path, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = submit(slides, out, "--partition", "low")
    wait_until(lambda: len(worker_pids(out)) == 2, 120, "both tasks at work")
    urgent = [
        "sbatch", "--parsable", "--partition=high", "--nodes=3", "--exclusive", "--time=2",
        "--output=/dev/null", "--wrap=sleep 5",
    ]  # fmt: skip
    subprocess.run(urgent, check=True, capture_output=True)
    wait_until(lambda: "code 75" in logs(out), 120, "a task has drained")
    wait_until(lambda: not in_queue(job), 900, "the array is through")
    assert_whole(out)


def test_a_cancelled_run_holds_whole_files_only_and_goes_on(
    cluster: Path, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = submit(slides, out)
    wait_until(lambda: len(worker_pids(out)) == 2, 120, "both tasks at work")
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: not in_queue(job), 120, "the array is cancelled")
    time.sleep(10)
    assert not in_queue(job)  # it does not put itself back
    assert not verify_run(out).damaged
    again = submit(slides, out)
    wait_until(lambda: not in_queue(again), 600, "the second array is through")
    assert_whole(out)
