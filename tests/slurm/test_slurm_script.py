"""The script that `wsipipe submit slurm` writes, without a Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsipipe.errors import ConfigError
from wsipipe.store.slurm import SlurmJob, seconds_of, slurm_script


def job(tmp_path: Path, **changes: object) -> SlurmJob:
    facts: dict[str, object] = {
        "arguments": ("slides of mine", "--out", "/o", "--join"),
        "log_folder": tmp_path / "log", "tasks": 8, "gpu": True, "time_s": 8 * 3600, "warn_s": 300,
        "cpus": 8, "memory": "32G", "partition": None, "account": "lab", "restarts": 2,
        "stage": True, "program": "wsipipe", "work_folder": tmp_path, "further": ("--qos=long",),
    }  # fmt: skip
    return SlurmJob(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28_800),
        ("90m", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("45s", 45),
        ("1-12:00:00", 129_600),
        ("08:30:15", 30_615),
        ("08:30", 30_600),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "8 hours", "h", "8h!", "1:2:3"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        seconds_of(text)


def test_the_header_asks_for_what_was_asked(tmp_path: Path) -> None:
    script = slurm_script(job(tmp_path))
    options = [line.split(maxsplit=1)[1] for line in script.splitlines() if "#SBATCH" in line]
    assert {
        "--array=0-7",
        "--time=0-08:00:00",
        "--gres=gpu:1",
        "--account=lab",
        "--signal=B:USR1@300",
        "--requeue",
        "--qos=long",
    } <= set(options)
    assert not any(option.startswith("--partition") for option in options)
    assert "extract 'slides of mine' --out /o --join --stage" in script
    # A task of a minute must not start to drain five minutes before its end.
    assert "--signal=B:USR1@30" in slurm_script(job(tmp_path, time_s=60))


WORKER = """
import os, signal, sys, time, pathlib
here = pathlib.Path(sys.argv[1])
runs = len(list(here.glob("run*")))
(here / f"run{runs}").write_text(" ".join(sys.argv[2:]))
def stop(number, frame):
    (here / "signal").write_text(signal.Signals(number).name)
    time.sleep(0.3)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop); signal.signal(signal.SIGTERM, stop)
if runs < int(os.environ.get("DIE", "0")):
    os.kill(os.getpid(), signal.SIGKILL)
(here / "ready").touch()
if os.environ.get("LONG"):
    time.sleep(60)
sys.exit(int(os.environ.get("CODE", "0")))
"""


class Bed:
    """The script under bash, with a worker of our own and an `scontrol` that notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "scontrol").write_text(
            "#!/bin/sh\n"
            'if [ "$1" = show ]; then echo "JobId=$3 JobState=${STATE:-RUNNING}"; exit; fi\n'
            f'echo "$@" >> {folder}/scontrol\n'
        )
        (folder / "bin" / "scontrol").chmod(0o755)
        (folder / "worker.py").write_text(WORKER)
        program = f"{sys.executable} {folder}/worker.py {folder}"
        (folder / "job.sh").write_text(slurm_script(job(folder, program=program)))

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        variables = {
            **os.environ, **environment, "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2",
            "TMPDIR": str(self.folder),
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", self.folder / "job.sh"], env=variables, stdout=subprocess.DEVNULL
        )

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.02)

    def requeued(self) -> str:
        path = self.folder / "scontrol"
        return path.read_text().strip() if path.exists() else ""


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_the_code_of_the_run_is_the_tasks(bed: Bed, code: int) -> None:
    process = bed.start(CODE=str(code))
    assert process.wait(30) == code
    assert bed.requeued() == ""
    assert (bed.folder / "run0").read_text().endswith(f"--stage {bed.folder}/wsipipe-7")
    assert not (bed.folder / "wsipipe-7").exists()


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_passed_on_and_a_drained_task_is_put_back(
    bed: Bed, sent: signal.Signals
) -> None:
    process = bed.start(LONG="1")
    bed.wait_for("ready")
    process.send_signal(sent)
    assert process.wait(30) == 75
    assert (bed.folder / "signal").read_text() == sent.name
    assert bed.requeued() == "requeue 5_2"
    assert not (bed.folder / "wsipipe-7").exists()


def test_a_cancelled_task_is_not_put_back(bed: Bed) -> None:
    process = bed.start(LONG="1", STATE="COMPLETING")  # as Slurm calls one that scancel ends
    bed.wait_for("ready")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert bed.requeued() == ""


def test_it_is_put_back_only_so_many_times(bed: Bed) -> None:
    process = bed.start(CODE="75", SLURM_RESTART_COUNT="2")
    assert process.wait(30) == 75
    assert bed.requeued() == ""


def test_a_killed_worker_is_replaced_on_the_spot(bed: Bed) -> None:
    process = bed.start(DIE="2")
    assert process.wait(30) == 0
    assert len(list(bed.folder.glob("run*"))) == 3


def test_a_worker_that_always_dies_ends_the_task(bed: Bed) -> None:
    process = bed.start(DIE="99")
    assert process.wait(30) == 137
    assert len(list(bed.folder.glob("run*"))) == 5
    assert bed.requeued() == ""


def test_the_command_line_refuses_wrong_options_of_extract_before_it_submits(
    tmp_path: Path,
) -> None:
    def submit(*args: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "wsipipe", "submit", "slurm", *args, "--dry-run"]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)

    good = submit("slides", "--gpus", "3", "--time", "90m", "--encoder", "texture", "--out", "run")
    assert good.returncode == 0, good.stderr
    assert "--array=0-2" in good.stdout
    assert f"extract slides --encoder texture --out {tmp_path}/run --join" in good.stdout
    bad = submit("slides", "--encodr", "texture")
    assert bad.returncode == 2
    assert "--encoder" in bad.stderr
    assert submit("slides", "--time", "soon").returncode == 2
    assert list(tmp_path.iterdir()) == []
