"""A bag of a million tiles: streamed where the model allows it, refused where it does not fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from wsipipe.errors import ConfigError
from wsipipe.mil import bank
from wsipipe.mil.registry import create_aggregator

CHILD = """
import sys, threading, time
import numpy as np, torch
torch.set_num_threads(1)
from wsipipe.mil.bags import inspect_bag, open_rows
from wsipipe.mil.bank import all_finite
from wsipipe.mil.ensemble import FoldModel
from wsipipe.mil.registry import create_aggregator

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("RssAnon")) / 1024

peak, going = [0.0], [True]
def watch():
    while going[0]:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)

rows = open_rows(inspect_bag(sys.argv[1]))
norm = (torch.zeros(1024), torch.ones(1024))
model = FoldModel({}, [create_aggregator(sys.argv[2], in_dim=1024, n_classes=2).eval()], [norm])
thread = threading.Thread(target=watch)
thread.start()
with torch.no_grad():
    assert all_finite(rows)
    logits, attention = model.forward_bag(rows)
going[0] = False
thread.join()
assert np.isfinite(logits).all()
assert attention is None or len(attention) == len(rows) and abs(attention.sum() - 1) < 1e-3
print(peak[0])
"""


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["abmil", "dsmil", "mean"])
def test_a_million_tiles_are_predicted_in_less_than_a_gigabyte(tmp_path, name):
    # A file of zeros takes no room on disk; what it costs to read and multiply is the same.
    shape = (1_000_000, 1024)
    np.lib.format.open_memmap(tmp_path / "m.npy", "w+", np.float16, shape).flush()
    said = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "m.npy"), name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    megabytes = float(said.stdout.split()[-1])
    print(f"{megabytes:.0f} MB beyond the mapped file")
    assert 10 < megabytes < 1000


@pytest.mark.parametrize("name", ["transformer", "wikg", "rrt"])
def test_a_model_that_needs_all_tiles_says_so_instead_of_filling_memory(monkeypatch, name):
    monkeypatch.setattr(bank, "available_bytes", lambda: 10_000)
    model = create_aggregator(name, in_dim=8)
    with pytest.raises(ConfigError, match="needs about"):
        model.forward_chunks(np.zeros((1000, 8), np.float32))


def test_a_model_that_streams_does_not_care(monkeypatch):
    monkeypatch.setattr(bank, "available_bytes", lambda: 10_000)
    model = create_aggregator("abmil", in_dim=8).eval()
    assert len(model.forward_chunks(np.zeros((1000, 8), np.float32)).attention) == 1000
