"""`wsipipe extract` as a user runs it: exit codes, messages, streams, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest

from tests.pipeline.conftest import NULL_ENCODER, write_svs

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Command = Callable[..., Any]
SLOW = "import time; time.sleep(0.05)"


def wsipipe(*arguments: Any, **keywords: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsipipe", *map(str, arguments)]
    environment = {**ENVIRONMENT, **keywords.pop("env", {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wsipipe", *map(str, arguments)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@dataclass
class Ran:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The same command line without the seconds that a new process needs to load torch."""

    def run(*arguments: Any) -> Ran:
        from wsipipe.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return run


def encoder_file(folder: Path, act: str = "pass") -> Path:
    path = folder / "mean.py"
    path.write_text(NULL_ENCODER.format(name="mean", tile_px=64, mpp=0.5, scale=1.0, act=act))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(3):
        write_svs(folder / "slides" / f"s{number}.svs", seed=number, size=(512, 512))
    encoder_file(folder)
    return folder


def test_json_is_one_document_and_all_else_is_on_stderr(
    cohort: Path, tmp_path: Path, in_process: Command
) -> None:
    given = (cohort / "slides", "--encoder", cohort / "mean.py", "--out", tmp_path / "o", "--json")
    ran = wsipipe("extract", *given)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["done"] == ["s0", "s1", "s2"]
    assert "licence" in ran.stderr
    write_svs(cohort / "bad" / "nompp.svs", mpp=None, size=(512, 512))
    ran = in_process("extract", cohort / "bad", *given)
    assert ran.returncode == 1
    document = json.loads(ran.stdout)
    assert document["failed"] == ["nompp"]
    assert len(document["done"]) == 3
    assert "nompp" in ran.stderr
    assert "--slide-mpp" in ran.stderr
    assert not [line for line in ran.stderr.splitlines() if "Traceback" in line]


def test_dry_run_writes_nothing(cohort: Path, tmp_path: Path, in_process: Command) -> None:
    ran = in_process(
        "extract", cohort / "slides", "--encoder", cohort / "mean.py", "--out", tmp_path / "o",
        "--dry-run", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert [slide["todo"] for slide in document["slides"]] == [["mean"]] * 3
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--encoder", "phikno"], 2, "Did you mean phikon"),
        (["--encoder", "phikon"], 3, "wsipipe pull phikon"),
        (["--mpp", "1.0"], 2, "--allow-off-card"),
        (["--mpp", "99"], 2, "0.05 to 20"),
        (["--slide-mpp", "0"], 2, "0.05 to 20"),
        (["--shard", "9/3"], 2, "1 <= I <= N"),
        (["--batch-size", "none"], 2, "whole number"),
        (["--overlap", "1"], 2, "less than 1"),
        (["--tissue", "magic"], 2, "magic"),
        (["--precision", "fp8"], 2, "precision"),
        (["--no-such-flag"], 2, "no-such-flag"),
    ],
)
def test_a_wrong_command_starts_nothing(
    cohort: Path,
    tmp_path: Path,
    in_process: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    out = tmp_path / "o"
    ran = in_process("extract", cohort / "slides", "--out", out, *arguments)
    assert ran.returncode == code, ran.stderr
    assert says in ran.stderr
    assert not out.exists()


def test_folders_and_ids_that_make_no_sense(
    cohort: Path, tmp_path: Path, in_process: Command
) -> None:
    (tmp_path / "empty").mkdir()
    ran = in_process("extract", tmp_path / "empty", "--out", tmp_path / "o")
    assert ran.returncode == 2
    assert "no slides" in ran.stderr
    write_svs(tmp_path / "a" / "same.svs", size=(256, 256))
    write_svs(tmp_path / "b" / "SAME.svs", size=(256, 256))
    ran = in_process("extract", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "o")
    assert ran.returncode == 2
    assert str(tmp_path / "a" / "same.svs") in ran.stderr
    assert str(tmp_path / "b" / "SAME.svs") in ran.stderr
    (tmp_path / "file").touch()
    ran = in_process("extract", cohort / "slides", "--out", tmp_path / "file" / "o")
    assert ran.returncode in (2, 4)


def test_other_settings_end_with_2_and_name_the_field(
    cohort: Path, tmp_path: Path, in_process: Command
) -> None:
    given = (cohort / "slides" / "s0.svs", "--encoder", cohort / "mean.py", "--out", tmp_path)
    assert in_process("extract", *given).returncode == 0
    ran = in_process("extract", *given, "--overlap", "0.5")
    assert ran.returncode == 2
    assert "overlap" in ran.stderr
    assert "--recompute" in ran.stderr


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGUSR1", marks=pytest.mark.full),
        pytest.param("SIGINT", marks=pytest.mark.full),
    ],
)
def test_a_signal_drains_and_the_same_command_goes_on(tmp_path: Path, name: str) -> None:
    for number in range(6):
        write_svs(tmp_path / "slides" / f"s{number}.svs", seed=number, size=(768, 768))
    given = (
        tmp_path / "slides", "--encoder", encoder_file(tmp_path, SLOW), "--out", tmp_path / "o",
        "--batch-size", "2", "--grace", "3",
    )  # fmt: skip
    running = start("extract", *given)
    features = tmp_path / "o" / "features"
    deadline = time.monotonic() + 60
    while not list(features.rglob("s*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(getattr(signal, name))
    _, said = running.communicate(timeout=60)
    assert running.returncode == 75, said
    assert name in said
    assert "Run the same command again" in said
    done = {path.stem for path in features.rglob("*.h5")}
    assert 1 <= len(done) < 6
    assert not list((tmp_path / "o").rglob(".*.tmp"))
    before = {p.stem: p.stat().st_mtime_ns for p in features.rglob("*.h5")}
    assert wsipipe("extract", *given).returncode == 0
    after = {p.stem: p.stat().st_mtime_ns for p in features.rglob("*.h5")}
    assert len(after) == 6
    assert {k: after[k] for k in before} == before


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    write_svs(tmp_path / "slides" / "s.svs", size=(1024, 1024))
    at_work = tmp_path / "at work"
    act = f"import time; open({str(at_work)!r}, 'w').close(); time.sleep(10)"
    slow = encoder_file(tmp_path, act)
    running = start("extract", tmp_path / "slides", "--encoder", slow, "--out", tmp_path / "o")
    deadline = time.monotonic() + 60
    # Before the first batch nothing would keep the run from ending at the first request.
    while not at_work.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)
    assert running.returncode == 130


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A tmpfs of a given size; skipped where one may not be mounted."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_with_4_and_leaves_only_whole_files(
    tmp_path: Path, small_disk: Callable[[str], Path], in_process: Command
) -> None:
    import wsipipe as wp

    for number in range(8):
        write_svs(tmp_path / "slides" / f"s{number}.svs", seed=number, size=(512, 512))
    disk = small_disk("400k")
    given = ("extract", tmp_path / "slides", "--encoder", encoder_file(tmp_path))
    ran = in_process(*given, "--out", disk / "o")
    assert ran.returncode == 4, ran.stderr
    assert "no space left" in ran.stderr
    whole = [p for p in (disk / "o").rglob("*.h5") if not p.name.startswith(".")]
    for path in whole:
        assert len(wp.read_features(path)) > 0
    assert len(whole) < 8
    assert not list((disk / "o").rglob(".*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written_ends_with_4(cohort: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    ran = wsipipe("extract", cohort / "slides", "--out", locked / "o")
    assert ran.returncode == 4


def test_a_file_system_that_is_read_only_ends_with_4(cohort: Path, in_process: Command) -> None:
    ran = in_process("extract", cohort / "slides", "--out", "/proc/wsipipe-out")
    assert ran.returncode == 4, ran.stderr
    assert "cannot be written" in ran.stderr


def test_what_verify_advises_mends_what_it_found(
    cohort: Path, tmp_path: Path, in_process: Command
) -> None:
    out = tmp_path / "o"
    slide = cohort / "slides" / "s0.svs"
    extract = ("extract", slide, "--encoder", cohort / "mean.py", "--out", out)
    assert in_process(*extract).returncode == 0
    features, outline = out / "features/mean/s0.h5", out / "tissue/s0.geojson"
    with h5py.File(features) as h5:
        offset = h5["features"].id.get_offset()
    data = bytearray(features.read_bytes())
    data[offset] ^= 1
    features.write_bytes(data)
    outline.write_bytes(b"")
    said = in_process("verify", out).stdout
    assert "Remove the file and run the same extract again" in said
    assert "`wsipipe tissue`" in said
    features.unlink()
    outline.unlink()
    assert in_process(*extract).returncode == 0
    assert in_process("tissue", slide, "--out", out).returncode == 0
    assert in_process("verify", out).returncode == 0
    assert outline.exists()
