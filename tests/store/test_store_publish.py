"""A file appears under its final name only when it is whole, whatever is killed and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from wsipipe.errors import OutputError, StoreError
from wsipipe.owner import Owner, this_host, this_process
from wsipipe.store import publish_bytes, publish_file, publish_text, remove_stale_temporaries
from wsipipe.store.publish import find_temporaries, output_error, publishing

KILLED_BEFORE_RENAME = ("start", "open", "half", "written", "fsync")
KILLED_AFTER_RENAME = ("rename", "folder")

_FEATURES = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from store_kit import META
from wsipipe.store import FeatureFile, write_features
n = 3000
write_features(sys.argv[1], FeatureFile(
    features=np.full((n, 64), 2, np.float16), coords=np.zeros((n, 2), np.int64),
    tissue_fraction=np.ones(n, np.float32), tile_status=np.zeros(n, np.uint8), meta=META))
"""
_BYTES = """
import sys
from wsipipe.store import publish_bytes
publish_bytes(sys.argv[1], b"new" * 100_000)
"""


def run_killed(program: str, path: Path, at: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(Path(__file__).parent)],
        env={**os.environ, "WSIPIPE_TEST_KILL_AT": at},
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("at", KILLED_BEFORE_RENAME + KILLED_AFTER_RENAME)
@pytest.mark.parametrize("former", [None, b"old"])
def test_killed_at_any_step_leaves_the_old_or_the_new_file(
    tmp_path: Path, at: str, former: bytes | None
) -> None:
    path = tmp_path / "x.bin"
    if former is not None:
        path.write_bytes(former)
    assert run_killed(_BYTES, path, f"publish:{at}") == -signal.SIGKILL
    content = path.read_bytes() if path.exists() else None
    assert content == (former if at in KILLED_BEFORE_RENAME else b"new" * 100_000)
    left = [p for p in tmp_path.iterdir() if p != path]
    assert remove_stale_temporaries(tmp_path) == left
    assert [p for p in tmp_path.iterdir() if p != path] == []


@pytest.mark.parametrize(
    "at",
    [
        "publish:open",
        "features:dataset",
        "features:dataset#3",
        "features:metadata",
        "publish:fsync",
        "publish:rename",
    ],
)
def test_killed_while_writing_features_leaves_no_half_file(tmp_path: Path, at: str) -> None:
    path = tmp_path / "a.h5"
    assert run_killed(_FEATURES, path, at) == -signal.SIGKILL
    assert path.exists() == (at == "publish:rename")
    if path.exists():
        with h5py.File(path) as h5:
            assert (h5["features"][:] == 2).all()
    for temporary, owner in find_temporaries(tmp_path):
        assert owner.host == this_host()
        # Until its very last write it does not even look like HDF5.
        if at != "features:metadata" and not at.startswith("publish:"):
            assert not h5py.is_hdf5(temporary)
    remove_stale_temporaries(tmp_path)
    assert not list(find_temporaries(tmp_path))


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = publish_text(tmp_path / "deep" / "er" / "x.txt", "µ")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text(encoding="utf-8") == "µ"


def test_an_error_inside_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = publish_bytes(tmp_path / "x", b"old")

    def fail_half_way() -> None:
        with publishing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_output_error_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="no space left") as caught:
        publish_bytes(small_disk / "x.bin", bytes(2 << 20))
    assert caught.value.exit_code == 4
    assert str(small_disk / "x.bin") in str(caught.value)
    assert list(small_disk.iterdir()) == []
    assert publish_bytes(small_disk / "x.bin", bytes(1000)).stat().st_size == 1000


def test_features_on_a_full_disk_leave_nothing_and_the_process_lives(
    small_disk: Path, make_file
) -> None:
    from wsipipe.store import read_features, write_features

    with pytest.raises(OutputError):
        write_features(small_disk / "a.h5", make_file(2000, 384))
    assert list(small_disk.iterdir()) == []
    write_features(small_disk / "a.h5", make_file(200, 384))
    assert len(read_features(small_disk / "a.h5")) == 200


def test_a_file_where_a_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError):
        publish_bytes(tmp_path / "out" / "x", b"")


def test_a_name_that_the_file_system_refuses_concerns_one_file_only(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        publish_bytes(tmp_path / ("n" * 300), b"")
    assert not isinstance(caught.value, OutputError)


def test_the_longest_name_that_is_allowed_can_be_published(tmp_path: Path) -> None:
    assert publish_bytes(tmp_path / ("µ" * 127), b"1").read_bytes() == b"1"


def test_publish_file_copies_and_keeps_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1000))
    assert publish_file(source, tmp_path / "copy").read_bytes() == source.read_bytes()
    with pytest.raises(StoreError, match="gone"):
        publish_file(tmp_path / "gone", tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "source"]


def test_only_temporaries_that_nobody_will_finish_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, my_former_life = this_process(), Owner(this_host(), os.getpid(), "0")
    other = Owner("elsewhere", 1, "0")
    names = {
        "mine": f".a.h5.{mine}.0.tmp",
        "reused pid": f".a.h5.{my_former_life}.0.tmp",
        "dead": f".b.h5.{Owner(this_host(), dead.pid, '0')}.7.tmp",
        "other, young": f".c.h5.{other}.0.tmp",
        "other, old": f".d.h5.{other}.1.tmp",
        "not ours": ".hidden.tmp",
        "final": "a.h5",
    }
    for name in names.values():
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_bytes(b"")
    past = time.time() - 1000
    os.utime(tmp_path / "sub" / names["other, old"], (past, past))
    removed = {p.name for p in remove_stale_temporaries(tmp_path)}
    assert removed == {names["reused pid"], names["dead"], names["other, old"]}


def test_a_process_knows_the_living_from_the_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        from wsipipe.owner import _start_of

        start = _start_of(child.pid)
        assert start is not None
        assert Owner(this_host(), child.pid, start).state() == "alive"
        assert Owner("elsewhere", child.pid, start).state() == "elsewhere"
    finally:
        child.kill()
        # A zombie is dead, too: the parent that will collect it may be a scheduler.
        time.sleep(0.2)
        assert Owner(this_host(), child.pid, start).state() == "dead"
        child.wait()
    assert this_process().state() == "alive"


def test_permission_and_space_say_different_remedies() -> None:
    import errno

    space = output_error("x", OSError(errno.EDQUOT, "Disk quota exceeded"))
    denied = output_error("x", OSError(errno.EROFS, "Read-only file system"))
    assert "Free space" in space.remedy
    assert "permissions" in denied.remedy


def test_writing_in_pieces_and_out_of_order(tmp_path: Path) -> None:
    with publishing(tmp_path / "x") as file:
        file.write_at(5, np.arange(3, dtype=np.uint8).data)
        file.write_at(0, b"01234")
        file.truncate(10)
    assert (tmp_path / "x").read_bytes() == b"01234\x00\x01\x02\x00\x00"
