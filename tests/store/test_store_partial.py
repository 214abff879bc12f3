"""A killed run of a large slide goes on where it stood; half rows never count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsipipe.errors import OutputError, StoreError
from wsipipe.owner import Owner, this_host
from wsipipe.store import PartialRows, RowRange, is_whole, remove_stale_partials
from wsipipe.store.partial import find_partials

ROWS, DIM = 1000, 16
X = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float16)


def open_rows(out: Path, identity: str = "one", **settings: Any) -> PartialRows:
    return PartialRows(
        out / "features" / "e" / "a.h5",
        folder=out / ".partial",
        identity={"identity": identity},
        rows=ROWS,
        dim=DIM,
        **settings,
    )


def put(partial: PartialRows, first: int, last: int) -> None:
    rows = np.arange(first, last)
    partial.put(rows, X[first:last], np.zeros(len(rows), np.uint8))


def files(out: Path) -> list[Path]:
    return [path for path, _ in find_partials(out / ".partial")]


def test_a_slide_that_is_done_before_the_first_flush_never_makes_a_file(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    for first in range(0, ROWS, 100):
        put(partial, first, first + 100)
    assert partial.complete
    np.testing.assert_array_equal(partial.features(), X)
    assert list(tmp_path.iterdir()) == []


def test_rows_in_any_order_come_out_in_row_order(tmp_path: Path) -> None:
    partial = open_rows(tmp_path, flush_rows=64)
    order = np.random.default_rng(1).permutation(ROWS)
    for rows in np.array_split(order, 40):
        partial.put(rows, X[rows].astype(np.float32), np.zeros(len(rows), np.uint8))
    assert len(files(tmp_path)) == 1
    np.testing.assert_array_equal(partial.features(), X)
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_bad_tiles_are_nan_and_known_after_recovery(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    rows = np.arange(10)
    status = np.zeros(10, np.uint8)
    status[3] = 1
    partial.put(rows, X[:10], status)
    for held in (partial, None):
        if held is None:
            partial.close()
            held = open_rows(tmp_path)
        assert held.tile_status.tolist() == [0, 0, 0, 1] + [0] * 996
        assert np.isnan(held.features()[3]).all()
        assert held.done.tolist() == [True] * 10 + [False] * 990


def test_what_was_closed_in_good_order_is_taken_up(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    put(partial, 100, 300)
    partial.close()
    partial = open_rows(tmp_path)
    assert partial.recovered_rows == 200
    assert np.flatnonzero(partial.done).tolist() == list(range(100, 300))
    put(partial, 0, 100)
    put(partial, 300, ROWS)
    np.testing.assert_array_equal(partial.features(), X)


@pytest.mark.parametrize("change", ["identity", "shape", "header", "size"])
def test_leftovers_that_do_not_fit_are_removed(tmp_path: Path, change: str) -> None:
    partial = open_rows(tmp_path)
    put(partial, 0, 500)
    partial.close()
    (path,) = files(tmp_path)
    if change == "header":
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.write_bytes(data)
    elif change == "size":
        os.truncate(path, path.stat().st_size - 8)
    settings: dict[str, Any] = {"identity": "two"} if change == "identity" else {}
    settings |= {"dtype": "float32"} if change == "shape" else {}
    assert open_rows(tmp_path, **settings).recovered_rows == 0
    assert files(tmp_path) == []


def test_a_damaged_row_is_computed_again(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    put(partial, 0, 500)
    partial.close()
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[4096 + 7 * DIM * 2 + 3] ^= 1
    path.write_bytes(data)
    done = open_rows(tmp_path).done
    assert done.sum() == 499
    assert not done[7]


_WRITER = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from test_store_partial import open_rows, put
from pathlib import Path
partial = open_rows(Path(sys.argv[1]), flush_rows=100)
print("start", flush=True)
for first in range(0, 1000, 20):
    put(partial, first, first + 20)
"""


@pytest.mark.parametrize(
    ("at", "least"),
    [
        ("partial:create", 0),
        ("partial:header", 0),
        ("partial:features", 0),
        ("partial:sync", 100),
        ("partial:features#4", 300),
        ("partial:rows#6", 500),
        ("partial:sync#10", 1000),
    ],
)
def test_killed_anywhere_only_whole_rows_are_taken_up(tmp_path: Path, at: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITER, str(tmp_path), str(Path(__file__).parent)],
        env={**os.environ, "WSIPIPE_TEST_KILL_AT": at},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    partial = open_rows(tmp_path)
    assert partial.recovered_rows >= least
    np.testing.assert_array_equal(partial.features()[partial.done], X[partial.done])
    put(partial, 0, ROWS)
    np.testing.assert_array_equal(partial.features(), X)


def test_a_living_writer_of_this_host_keeps_its_file(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    put(partial, 0, 10)
    partial.flush()
    assert open_rows(tmp_path).recovered_rows == 0
    assert len(files(tmp_path)) == 1
    assert remove_stale_partials(tmp_path / ".partial") == []


def test_another_hosts_file_is_taken_once_it_is_still(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    put(partial, 0, 10)
    partial.close()
    (path,) = files(tmp_path)
    other = path.with_name(path.name.replace("free", str(Owner("elsewhere", 7, "x"))))
    path.rename(other)
    assert open_rows(tmp_path).recovered_rows == 0
    past = time.time() - 130
    os.utime(other, (past, past))
    assert open_rows(tmp_path).recovered_rows == 10
    assert not other.exists()


def test_rows_of_a_finished_slide_are_stale_those_of_others_are_not(tmp_path: Path) -> None:
    partial = open_rows(tmp_path)
    put(partial, 0, 10)
    partial.close()
    folder = tmp_path / ".partial"
    dead = Owner(this_host(), 2**22 - 1, "x")
    (path,) = files(tmp_path)
    path = path.rename(path.with_name(path.name.replace("free", str(dead))))
    assert remove_stale_partials(folder) == []
    final = tmp_path / "features" / "e" / "a.h5"
    final.parent.mkdir(parents=True)
    final.write_bytes(b"")
    os.utime(path, (time.time() - 10, time.time() - 10))
    assert remove_stale_partials(folder) == [path]
    assert not folder.exists()


def test_a_full_disk_is_said_and_flushed_rows_survive(small_disk: Path) -> None:
    rows, dim = 1000, 1000
    settings: dict[str, Any] = {
        "folder": small_disk / ".partial", "identity": {}, "rows": rows, "dim": dim
    }  # fmt: skip
    partial = PartialRows(small_disk / "a.h5", **settings)
    good = np.zeros(200, np.uint8)
    partial.put(np.arange(200), np.ones((200, dim), np.float32), good)
    partial.flush()
    partial.put(np.arange(200, 1000), np.ones((800, dim), np.float32), np.zeros(800, np.uint8))
    with pytest.raises(OutputError, match="no space left"):
        partial.flush()
    code = "import sys; from wsipipe.store import PartialRows; " + (
        f"p = PartialRows({str(small_disk / 'a.h5')!r}, folder={str(small_disk / '.partial')!r}, "
        f"identity={{}}, rows={rows}, dim={dim}); print(p.recovered_rows)"
    )
    (path,) = files(small_disk)
    path.rename(path.parent / f"{path.name.split('.')[0]}.free.part")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 200


@pytest.mark.parametrize(("value", "dtype"), [(70_000.0, "float16"), (np.nan, "float32")])
def test_numbers_that_cannot_be_stored_are_refused(
    tmp_path: Path, value: float, dtype: str
) -> None:
    partial = open_rows(tmp_path, dtype=dtype)
    features = np.ones((3, DIM), np.float32)
    features[1, 2] = value
    with pytest.raises(StoreError, match="1 tiles features that are no finite"):
        partial.put(np.arange(3), features, np.zeros(3, np.uint8))
    assert not partial.done.any()
    partial.put(np.arange(3), features, np.array([0, 1, 0], np.uint8))
    assert partial.done.sum() == 3


def whole(out: Path, row_range: RowRange, identity: str = "one") -> bool:
    return is_whole(
        out / "features" / "e" / "a.h5",
        row_range,
        folder=out / ".partial",
        identity={"identity": identity},
    )


def test_ranges_come_together_and_stay_until_the_slide_is_over(tmp_path: Path) -> None:
    thirds = [RowRange(number, 3) for number in (1, 2, 3)]
    for row_range, (first, last) in zip(thirds, [(0, 333), (333, 666), (666, 1000)], strict=True):
        assert np.flatnonzero(row_range.mask(ROWS)).tolist() == list(range(first, last))
        partial = open_rows(tmp_path, row_range=row_range)
        put(partial, first, last - 1)
        partial.close()
        assert not whole(tmp_path, row_range)
        partial = open_rows(tmp_path, row_range=row_range)
        assert partial.recovered_rows == last - 1 - first
        bad = np.array([last - 1])
        partial.put(bad, X[bad], np.ones(1, np.uint8))
        partial.close(whole=True)
        assert whole(tmp_path, row_range)
        assert not whole(tmp_path, row_range, identity="two")
    for _ in range(2):  # the process that gathers them is killed once
        together = open_rows(tmp_path)
        assert together.complete
        assert np.flatnonzero(together.tile_status).tolist() == [332, 665, 999]
        good = together.tile_status == 0
        np.testing.assert_array_equal(together.features()[good], X[good])
        assert np.isnan(together.features()[~good]).all()
        together.close()
        assert all(whole(tmp_path, row_range) for row_range in thirds)
    together = open_rows(tmp_path)
    together.discard()
    assert files(tmp_path) == []


def test_a_range_takes_in_its_own_rows_of_what_was_there_before_the_cut(tmp_path: Path) -> None:
    before = open_rows(tmp_path)
    put(before, 100, 600)
    before.close()
    partial = open_rows(tmp_path, row_range=RowRange(1, 2))
    assert np.flatnonzero(partial.done).tolist() == list(range(100, 500))
    partial.discard()
    assert open_rows(tmp_path).recovered_rows == 500, "the other file is not its to remove"


def test_an_empty_range_is_made_without_a_row(tmp_path: Path) -> None:
    partial = open_rows(tmp_path, row_range=RowRange(2, 2))
    partial.close(whole=True)
    assert whole(tmp_path, RowRange(2, 2))


def test_rows_made_otherwise_are_not_taken_over(tmp_path: Path) -> None:
    for row_range in (None, RowRange(1, 2)):
        partial = open_rows(tmp_path, row_range=row_range, made_by="bf16")
        put(partial, 0, 300)
        partial.close()
    assert open_rows(tmp_path, made_by="fp32").recovered_rows == 0


@pytest.mark.parametrize("row_range", [None, RowRange(1, 2)])
def test_a_batch_without_a_row_is_nothing_to_write(
    tmp_path: Path, row_range: RowRange | None
) -> None:
    """As where a killed run had measured all the tiles that it was still to embed."""
    partial = open_rows(tmp_path, row_range=row_range, flush_s=0.0)
    put(partial, 0, 0)
    partial.flush_if_due()
    assert files(tmp_path) == []
    put(partial, 0, 500)
    put(partial, 500, 500)
    partial.close(whole=row_range is not None)
    assert open_rows(tmp_path).recovered_rows == 500


def test_a_damaged_row_of_a_range_is_left_out(tmp_path: Path) -> None:
    partial = open_rows(tmp_path, row_range=RowRange(1, 2))
    put(partial, 0, 500)
    partial.close(whole=True)
    path = files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[4096 + 7 * DIM * 2] ^= 1
    path.write_bytes(content)
    assert np.flatnonzero(~open_rows(tmp_path).done).tolist() == [7, *range(500, ROWS)]


def test_a_range_that_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    writer = open_rows(tmp_path, row_range=RowRange(1, 2), flush_rows=1)
    put(writer, 0, 100)
    assert open_rows(tmp_path).recovered_rows == 0
    put(writer, 100, 500)
    writer.close(whole=True)
    assert open_rows(tmp_path).recovered_rows == 500
