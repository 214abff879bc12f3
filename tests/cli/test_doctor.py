"""`wsipipe doctor` says what is wrong with a machine, and what to do."""

from __future__ import annotations

import http.server
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsipipe import doctor
from wsipipe.doctor import hub, software, storage


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsipipe", "doctor", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_this_machine_is_fit_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = run("--json", "--out", str(tmp_path / "new" / "out"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["fit"] is True
    found = {check["name"]: check for check in report["checks"]}
    assert found["reading a slide"]["status"] == "good"
    assert found["HDF5 locking"]["status"] == "good"
    assert "texture" in found["encoders here"]["detail"]
    assert "HF_HUB_OFFLINE" in found["hub"]["detail"]
    assert list(tmp_path.iterdir()) == []


def test_quick_loads_no_torch_and_asks_no_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from wsipipe.doctor import examine;"
        "names = {f.name for f in examine(sys.argv[1], quick=True)};"
        "sys.exit('torch' in sys.modules or 'hub' in names)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0


def test_out_that_is_a_file_is_broken_exit_1(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    done = run("--quick", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "is a file" in done.stdout
    assert "Choose another --out" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_is_broken(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        (finding,) = storage.output(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert finding.status == "broken"
    assert "may write" in finding.remedy


def test_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = storage.shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)
    (finding,) = storage.output(tmp_path)
    assert (finding.status, finding.group) == ("broken", "storage")
    assert "5 MB free" in finding.detail


def test_small_shared_memory_is_a_warning_with_dockers_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = storage.shutil.disk_usage(tmp_path)._replace(total=64_000_000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(storage.sys, "platform", "linux")
    (finding,) = storage.shared_memory(tmp_path)
    assert finding.status == "warning"
    assert "--shm-size" in finding.remedy


def test_missing_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "h5py":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = list(software.packages())
    assert not doctor.is_fit(findings)
    text = findings[-1].detail
    assert "h5py is missing" in text
    assert "torch 0.1 is not >=" in text


def test_old_openslide_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide

    monkeypatch.setattr(openslide, "__library_version__", "4.0.0")
    (finding,) = software.readers(quick=True)
    assert finding.status == "broken"
    assert "openslide-bin" in finding.remedy


def test_missing_extras_are_notes_with_their_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lifelines":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.name: finding for finding in software.extras()}
    assert found["extra [mil]"].status == "note"
    assert "lifelines is missing" in found["extra [mil]"].detail
    assert ".[mil]" in found["extra [mil]"].remedy


class _Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _SilentHub(_Hub):
    def do_HEAD(self) -> None:
        time.sleep(20)


@pytest.fixture(params=[_Hub, _SilentHub], ids=["answers", "silent"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[type, str]]:
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield request.param, f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.socket.close()


def test_hub_is_asked_once_and_never_waited_for(
    monkeypatch: pytest.MonkeyPatch, server: tuple[type, str]
) -> None:
    kind, address = server
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    (finding,) = hub.access(quick=False)
    assert time.monotonic() - started < 6
    assert finding.status == ("good" if kind is _Hub else "note")
    if kind is _SilentHub:
        assert "wsipipe pull" in finding.remedy


def test_hub_that_is_no_address_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    (finding,) = hub.access(quick=False)
    assert finding.status == "note"
