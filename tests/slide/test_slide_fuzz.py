"""Damaged and hostile files end in a SlideError or in pixels: no crash, no hang, no 2 GB."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

_WORKER = Path(__file__).parent / "fuzzkit.py"
_SECONDS_A_FILE = 10
# Seeds that once found a fault stay in every run.
_FOUND = (
    14088,  # a property whose name is no UTF-8
    16328,  # a reduced level of 17 billion samples
    38154,  # a tile 2**31 wide behind a predictor that is left to OpenSlide, which aborts
)


def run(folder, first, count):
    """Read `count` mutated files in a process of its own, watched file by file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(_WORKER), str(folder), str(first), str(count)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout])
    reader.start()
    results, last = {}, "start"
    patience = 60  # imports and base files
    try:
        while process.poll() is None or not lines.empty():
            try:
                last = lines.get(timeout=patience).strip()
            except queue.Empty:
                if process.poll() is None:
                    pytest.fail(f"no end within {patience} s after {last!r}")
                continue
            patience = _SECONDS_A_FILE
            key, _, result = last.partition(" ")
            results[key] = result
            if key == "peak":
                break
    finally:
        process.kill()
        reader.join()
        errors = process.stderr.read()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert last.startswith("peak"), f"ended after {last!r}:\n{errors[-3000:]}"
    peak = int(results.pop("peak"))
    assert peak < 2000, f"{peak} MB"
    return results


def test_mutated_slides_end_in_an_error_or_in_pixels(tmp_path):
    results = run(tmp_path, 0, 120)
    assert len(results) == 120
    # Both ends are seen, or the mutations test nothing.
    assert 10 < sum(r == "pixels" for r in results.values()) < 110


@pytest.mark.parametrize("seed", _FOUND)
def test_seeds_that_found_something(tmp_path, seed):
    assert len(run(tmp_path, seed, 1)) == 1


@pytest.mark.full
def test_two_thousand_mutated_slides(tmp_path):
    assert len(run(tmp_path, 1000, 2000)) == 2000
