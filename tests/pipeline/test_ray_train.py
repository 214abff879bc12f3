"""`train` over a Ray cluster of two nodes: the figures of a local run, whatever is killed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from wsipipe.mil.crossval import train
from wsipipe.mil.settings import TrainSettings
from wsipipe.pipeline.ray_training import RayFolds

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(600),
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 bags of which the second half has a few bright tiles."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "features").mkdir()
    rng, lines = np.random.default_rng(0), ["slide_id,label"]
    import h5py

    for i in range(24):
        bag = rng.normal(size=(300, 64)).astype(np.float32)
        bag[:20] += 1.5 * (i >= 12)
        with h5py.File(folder / "features" / f"s{i}.h5", "w") as file:
            file["features"] = bag
            file["coords"] = np.stack([np.arange(300) * 224, np.zeros(300)], 1).astype(np.int64)
        lines.append(f"s{i},{'ab'[i >= 12]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def trained(cohort: Path, out: Path, elsewhere: RayFolds | None = None) -> list[str]:
    said: list[str] = []
    result = train(
        cohort / "features",
        cohort / "labels.csv",
        target="label",
        folds=4,
        device="cpu",
        out=out,
        settings=TrainSettings(epochs=15, patience=15, inner=1),
        elsewhere=elsewhere,
        say=said.append,
    )
    assert not result.failed
    return said


@pytest.fixture(scope="module")
def local(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    trained(cohort, out)
    return out


def assert_same(out: Path, other: Path) -> None:
    assert (out / "splits.csv").read_bytes() == (other / "splits.csv").read_bytes()
    for k in range(4):
        found, wanted = (load_file(o / f"models/fold-{k}/model.safetensors") for o in (out, other))
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=f"{k} {name}")
    figures = [json.loads((o / "metrics.json").read_text())["metrics"] for o in (out, other)]
    for name, wanted in figures[1].items():
        assert figures[0][name]["pooled"] == pytest.approx(wanted["pooled"], abs=1e-6)


def test_folds_on_two_nodes_give_what_a_local_run_gives(
    cluster: object, cohort: Path, local: Path, tmp_path: Path
) -> None:
    said = trained(cohort, tmp_path / "out", RayFolds("ray"))
    assert sum("trained;" in text for text in said) == 4
    assert_same(tmp_path / "out", local)


def test_a_killed_process_costs_only_its_fold(
    cluster: object, cohort: Path, local: Path, tmp_path: Path
) -> None:
    out, killed = tmp_path / "out", []

    def strike() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until and not killed:
            time.sleep(0.1)
            if not list(out.glob("models/fold-*/model.json")):
                continue
            for process in psutil.process_iter(["cmdline"]):
                if any("ray::_fold" in word for word in process.info["cmdline"] or ()):
                    process.kill()
                    killed.append(set(out.glob("models/fold-*/model.json")))
                    return

    attacker = threading.Thread(target=strike)
    attacker.start()
    trained(cohort, out, RayFolds("ray"))
    attacker.join()
    assert killed, "no process was caught at work"
    assert len(killed[0]) < 4
    assert_same(out, local)
