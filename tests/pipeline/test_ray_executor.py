"""`--executor ray`: a real Ray cluster of two nodes; what is killed costs its slides in flight."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

import wsipipe as wp
from wsipipe.errors import ConfigError
from wsipipe.synth import make_cohort

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(900),
    # Ray leaves sockets and files of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "slides"
    make_cohort(folder, n=8, width=2048)
    return folder


def rows(out: Path) -> dict[str, np.ndarray]:
    files = sorted((out / "features" / "texture").glob("*.h5"))
    return {path.stem: h5py.File(path)["features"][:] for path in files}


def assert_same(out: Path, other: Path) -> None:
    found, wanted = rows(out), rows(other)
    assert found.keys() == wanted.keys()
    for name, features in wanted.items():
        np.testing.assert_array_equal(found[name], features)
    assert not list((out / ".leases").glob("*.lease"))


@pytest.fixture(scope="module")
def unbroken(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    wp.extract(slides, out=out, deterministic=True)
    return out


def test_two_nodes_share_a_folder(
    cluster: object, slides: Path, unbroken: Path, tmp_path: Path
) -> None:
    (slides / "broken.svs").write_bytes(b"not a slide")
    try:
        result = wp.extract(slides, out=tmp_path, executor="ray", deterministic=True)
    finally:
        (slides / "broken.svs").unlink()
    assert len(result.done) == 8
    assert result.failed == ("broken",)
    assert result.exit_code == 1
    assert_same(tmp_path, unbroken)


@pytest.mark.parametrize("blow", ["kill the actor's process", "remove the node"])
def test_what_dies_costs_only_its_slides_in_flight(
    cluster: object, slides: Path, unbroken: Path, tmp_path: Path, blow: str
) -> None:
    def strike() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until and not list(tmp_path.glob("features/texture/*.h5")):
            time.sleep(0.2)
        if blow == "remove the node":
            cluster.remove_node(cluster.second, allow_graceful=False)  # type: ignore[attr-defined]
            return
        for process in psutil.process_iter(["cmdline"]):
            if any("ray::_Worker" in word for word in process.info["cmdline"] or ()):
                process.kill()
                return

    attacker = threading.Thread(target=strike)
    attacker.start()
    result = wp.extract(slides, out=tmp_path, executor="ray", deterministic=True)
    attacker.join()
    assert len(result.done) == 8
    assert not result.failed
    assert_same(tmp_path, unbroken)


def test_a_shard_is_refused(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        wp.extract(slides, out=tmp_path, executor="ray", shard="1/2")
