"""`make demo` in small: it runs the command line, shows its results, and does nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wsipipe.synth import make_slide

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments], capture_output=True, text=True, check=False
    )


def test_demo_on_slides_of_ones_own(tmp_path: Path) -> None:
    make_slide(tmp_path / "slides" / "a.svs", width=1200, mpp=0.5)
    arguments = ("--out", str(tmp_path / "demo"), "--slides", str(tmp_path / "slides"))
    first = demo(*arguments)
    assert first.returncode == 0, first.stderr
    assert "$ wsipipe extract" in first.stdout
    features = tmp_path / "demo" / "results" / "features" / "texture" / "a.h5"
    assert str(features.parent) in first.stdout
    written = features.stat().st_mtime_ns
    again = demo(*arguments)
    assert again.returncode == 0
    assert features.stat().st_mtime_ns == written


def test_demo_without_the_folder_says_so(tmp_path: Path) -> None:
    done = demo("--out", str(tmp_path / "demo"), "--slides", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert not (tmp_path / "demo").exists()
