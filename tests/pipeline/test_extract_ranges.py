"""One slide over several devices, by ranges of its rows: the same file as from one device."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import wsipipe as wp
from tests.pipeline.test_extract_devices import Watch, worker_pids
from wsipipe.config import ExtractSettings
from wsipipe.embed.drain import Drain
from wsipipe.owner import Owner
from wsipipe.pipeline import ranges, run_extract
from wsipipe.pipeline.claims import Claims
from wsipipe.pipeline.planning import SlidePlan
from wsipipe.pipeline.result import RunDrained
from wsipipe.slide.discover import SlideEntry
from wsipipe.store import Leases, Records, SlideResult, range_records, remove_range_records
from wsipipe.store.progress import run_status

Make = Callable[..., Any]
# Says how many tiles it saw, and takes its time over them.
COUNTING = """import time
        time.sleep(0.02 * len(x))
        with open({note!r}, "a") as note:
            print(len(x), file=note)"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MIN_RANGE_BYTES", 1 << 10)


@pytest.fixture
def slide(tmp_path: Path, make_svs: Make) -> Path:
    return Path(make_svs(tmp_path / "slides" / "large.svs", size=(2048, 2048)))


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in (out / "events").glob("*.jsonl")]
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return [event for event in found if event["event"] == kind]


def assert_equal(one: Path, two: Path, name: str = "large", encoder: str = "mean") -> None:
    a, b = (wp.read_features(out / "features" / encoder / f"{name}.h5") for out in (one, two))
    assert len(a.features) > 20
    assert np.array_equal(a.coords, b.coords)
    assert np.array_equal(a.features, b.features, equal_nan=True)
    assert sorted(a.quality) == sorted(b.quality)
    for measure, values in a.quality.items():
        assert np.array_equal(values, b.quality[measure], equal_nan=True)


def seen(note: Path) -> int:
    return sum(int(line) for line in note.read_text().split())


def counting(make_encoder: Make, note: Path, **settings: Any) -> str:
    return str(make_encoder(act=COUNTING.format(note=str(note)), **settings))


def test_two_devices_share_one_slide(slide: Path, tmp_path: Path, make_encoder: Make) -> None:
    """With what goes along: another tile size, measured tiles, a filter that leaves some out."""
    note = tmp_path / "note"
    given: dict[str, Any] = {
        "encoders": (counting(make_encoder, note), make_encoder("coarse", tile_px=128)),
        "min_focus": 150.0,
        "dtype": "float32",
    }
    watch = Watch()
    two = ExtractSettings.of(**given, device="cpu,cpu", out=tmp_path / "two")
    result = run_extract(two, slide, reporter=watch)
    assert result.done == ("large",)
    assert watch.over == [("large", "done")]
    made = events(tmp_path / "two", "range_done")
    assert sorted(event["rows"] for event in made) == ["1-2", "2-2"]
    twice = seen(note)
    single = run_extract(ExtractSettings.of(**given, out=tmp_path / "one"), slide)
    assert result.tiles == single.tiles
    assert twice == seen(note) - twice, "each row was made once"
    assert 0 < twice < single.tiles, "the filter leaves some out"
    for encoder in ("mean", "coarse"):
        assert_equal(tmp_path / "one", tmp_path / "two", encoder=encoder)
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left == {path.name for path in (tmp_path / "one").iterdir()}, "nothing of it stays"


class Stop(Watch):
    """Asks the run to stop after so many tiles."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.drain, self.limit = Drain(), tiles

    def tick(self, snapshot: Any) -> None:
        if snapshot.tiles >= self.limit:
            self.drain.request("SIGTERM")


@pytest.mark.parametrize(
    ("first", "then"),
    [pytest.param("cpu,cpu", "auto", marks=pytest.mark.full), ("auto", "cpu,cpu,cpu")],
)
def test_rows_are_not_made_again_where_the_next_run_cuts_otherwise(
    slide: Path, tmp_path: Path, make_encoder: Make, first: str, then: str
) -> None:
    note, out, stop = tmp_path / "note", tmp_path / "out", Stop(60)
    encoder = counting(make_encoder, note)
    given = {"encoders": (encoder,), "dtype": "float32", "grace": 0.1, "out": out}
    begun = ExtractSettings.of(**given, device=first)
    with pytest.raises(RunDrained):
        run_extract(begun, slide, drain=stop.drain, reporter=stop)
    before = seen(note)
    assert before >= 60
    result = run_extract(ExtractSettings.of(**given, device=then), slide)
    assert result.done == ("large",)
    # Batches that were under way at the stop are lost: two in each of two processes.
    assert result.tiles <= seen(note) <= result.tiles + 4 * 32
    assert seen(note) - before < result.tiles
    assert not (out / ".partial").exists()
    run_extract(ExtractSettings.of(**given | {"out": tmp_path / "one"}), slide)
    assert_equal(tmp_path / "one", out)


def test_a_slide_that_fails_in_a_range_fails_once(
    slide: Path, tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    make_svs(slide.parent / "good.svs", size=(2048, 2048), seed=1)
    make_svs(slide.parent / "empty.svs", size=(2048, 2048), tissue=False)
    content = bytearray(slide.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    slide.write_bytes(content)
    watch = Watch()
    settings = ExtractSettings.of(
        encoders=(make_encoder(),), device="cpu,cpu", out=tmp_path / "out"
    )
    result = run_extract(settings, slide.parent, reporter=watch)
    assert (result.done, result.empty, result.failed) == (("good",), ("empty",), ("large",))
    assert "cannot be read" in result.reasons["large"]
    assert sorted(watch.over) == [("empty", "empty"), ("good", "done"), ("large", "failed")]
    assert not (tmp_path / "out" / ".leases").exists()


@pytest.mark.full
def test_the_range_of_a_killed_process_is_taken_over(
    slide: Path, tmp_path: Path, make_encoder: Make
) -> None:
    note = tmp_path / "note"
    encoder = counting(make_encoder, note)

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not (note.exists() and seen(note) > 40) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(worker_pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    given = {"encoders": (encoder,), "dtype": "float32"}
    watch = Watch()
    two = ExtractSettings.of(**given, device="cpu,cpu", out=tmp_path / "two")
    result = run_extract(two, slide, reporter=watch)
    killer.join()
    assert result.done == ("large",)
    assert any("started again" in line for line in watch.said)
    run_extract(ExtractSettings.of(**given, out=tmp_path / "one"), slide)
    assert_equal(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two" / ".partial").exists()


RUN = """
import sys
import wsipipe
from wsipipe.pipeline import ranges

if __name__ == "__main__":
    ranges.MIN_RANGE_BYTES = 1 << 10
    slide, encoder, out, device = sys.argv[1:]
    result = wsipipe.extract(slide, encoder=encoder, out=out, device=device, dtype="float32")
    sys.exit(result.exit_code)
"""


@pytest.mark.full
def test_killed_at_random_moments_and_cut_anew_each_time(
    slide: Path, tmp_path: Path, make_encoder: Make
) -> None:
    """All processes at once, as a scheduler does it, or only the parent, or only a worker."""
    script, out, rng = tmp_path / "run.py", tmp_path / "out", random.Random(0)
    script.write_text(RUN)
    encoder = make_encoder(act="import time; time.sleep(0.03 * len(x))")

    def start(device: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(script), str(slide), encoder, str(out), device]
        return subprocess.Popen(words, start_new_session=True)

    for kill in range(12):
        process = start(rng.choice(["cpu,cpu", "cpu,cpu,cpu", "auto"]))
        workers = psutil.Process(process.pid)
        try:
            process.wait(rng.uniform(4, 14))
        except subprocess.TimeoutExpired:
            if kill % 3 == 0:
                os.killpg(process.pid, signal.SIGKILL)
            elif kill % 3 == 1:
                process.kill()
            elif children := workers.children():
                rng.choice(children).kill()
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for path in out.glob("features/**/*.h5"):
            assert len(wp.read_features(path).features) > 20, "never a partial file"
    assert start("cpu,cpu").wait() == 0
    assert run_extract(
        ExtractSettings.of(encoders=(encoder,), dtype="float32", out=out), slide
    ).done
    one = tmp_path / "one"
    run_extract(ExtractSettings.of(encoders=(encoder,), dtype="float32", out=one), slide)
    assert_equal(one, out)
    assert not (out / ".leases").exists()


@pytest.mark.full
def test_a_slide_whose_range_kills_its_process_is_left_out(
    slide: Path, tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    make_svs(slide.parent / "s0.svs", size=(2048, 2048), mpp=0.5, tissue=False)
    act = "import os; os.kill(os.getpid(), 9) if x.std() > 0.02 else None"
    settings = ExtractSettings.of(
        encoders=(make_encoder(act=act),), tissue="none", device="cpu,cpu", out=tmp_path / "out"
    )
    result = run_extract(settings, slide.parent, reporter=Watch())
    assert (result.done, result.failed) == (("s0",), ("large",))
    assert "crashed its process 2 times" in result.reasons["large"]
    again = run_extract(settings, slide.parent, reporter=Watch())
    assert again.failed == ("large",), "it is not tried again"


@pytest.mark.parametrize(
    ("act", "ended"),
    [
        pytest.param("os.path.exists({path!r}) and os.unlink({path!r})", "failed", id="removed"),
        pytest.param("os.truncate({path!r}, os.path.getsize({path!r}) + 1)", "done", id="growing"),
    ],
)
def test_a_slide_whose_file_does_not_stay_as_it_is_ends_like_any_other(
    slide: Path, tmp_path: Path, make_encoder: Make, make_svs: Make, act: str, ended: str
) -> None:
    """What is found of its ranges does not count then; nobody waits for others."""
    make_svs(slide.parent / "other.svs", seed=1)
    encoder = make_encoder(act=f"import os; {act.format(path=str(slide))}")
    settings = ExtractSettings.of(encoders=(encoder,), join=True, out=tmp_path / "out")
    drain = Drain()
    timer = threading.Timer(60, drain.request, ["too long"])
    timer.start()
    result = run_extract(settings, slide.parent, drain=drain, ranges={"large": 2})
    timer.cancel()
    assert not drain.requested
    assert "other" in result.done
    assert "large" in getattr(result, ended)
    kind = "slide_failed" if ended == "failed" else "slide_done"
    assert [e["slide_id"] for e in events(tmp_path / "out", kind)].count("large") == 1


def test_rows_of_a_slide_that_another_run_publishes_meanwhile_do_not_stay(
    slide: Path, tmp_path: Path, make_encoder: Make
) -> None:
    """As a run that has joined without cutting does it."""
    one, out = (tmp_path / run / "features" / "mean" / "large.h5" for run in ("one", "out"))
    copy = f"shutil.copy({str(one)!r}, {str(out)!r})"
    encoder = make_encoder(act=f"import os, shutil; os.path.exists({str(one)!r}) and {copy}")
    run_extract(ExtractSettings.of(encoders=(encoder,), out=tmp_path / "one"), slide)
    out.parent.mkdir(parents=True)
    settings = ExtractSettings.of(encoders=(encoder,), join=True, out=tmp_path / "out")
    assert run_extract(settings, slide, ranges={"large": 2}).done == ("large",)
    assert list((tmp_path / "out" / ".partial").glob("*.part")) == []


def test_a_slide_that_is_put_off_comes_behind_all_of_its_ranges(tmp_path: Path) -> None:
    """Else a process would do a slide of which it is to make a range itself."""
    pieces = list(ranges.cut_up([SlidePlan(SlideEntry("s", ""))], {"s": 2}))
    elsewhere, leases = Leases(tmp_path / "leases"), Leases(tmp_path / "leases")
    held = elsewhere.acquire("s~1-2")
    assert held is not None

    def suspect(plan: SlidePlan) -> bool:
        held.release()  # the process that had the first range dies, too
        return True

    claims = Claims(
        leases,
        pieces,
        replan=lambda plan: plan,
        elsewhere=lambda plan: False,
        suspect=suspect,
        drain=Drain(),
    )
    assert list(claims) == []
    assert [plan.key for plan in claims.put_off] == ["s~2-2", "s~1-2", "s"]


def test_status_tells_of_ranges_from_the_first_on_and_not_of_slides_that_are_over(
    tmp_path: Path,
) -> None:
    range_records(tmp_path).begin("large~1-2", "", [])
    assert [entry["slide_id"] for entry in run_status(tmp_path).running] == ["large~1-2"]
    records = Records(tmp_path)
    result = SlideResult(encoder="mean", status="failed")
    records.finish(records.begin("large", "", ["mean"]), [result])
    status = run_status(tmp_path)
    assert status.running == []
    assert status.finished


def test_attempts_at_ranges_go_with_their_slides_but_for_those_that_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run in the folder has other slides, and cuts them, too."""
    records = range_records(tmp_path)
    for key in ("a~1-2", "b/c~1-2", "b/c~2-2"):
        records.finish(records.begin(key, "", []), [])
    records.begin("a~2-2", "", [])
    remove_range_records(tmp_path, {"a"})
    assert {record.slide_id for record in records.all()} == {"a~2-2", "b/c~1-2", "b/c~2-2"}
    monkeypatch.setattr(Owner, "state", lambda self: "dead")
    remove_range_records(tmp_path, {"a", "b/c"})
    assert list((tmp_path / ".partial").iterdir()) == []


def plans(tmp_path: Path, *mebibytes: int) -> Iterator[SlidePlan]:
    for number, size in enumerate(mebibytes):
        path = tmp_path / f"{number}.svs"
        with path.open("wb") as file:
            file.truncate(size << 20)
        yield SlidePlan(SlideEntry(str(number), str(path)), todo=("a target",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mebibytes", "devices", "counts"),
    [
        ((4000,), 8, {"0": 8}),
        ((600,), 8, {"0": 2}),  # no range below 256 MiB
        ((500,), 8, {}),
        ((1000,) * 100, 8, {}),
        ((1000,) * 10, 8, {str(n): 2 for n in range(10)}),
        ((8000, 1000, 1000), 4, {"0": 4}),
        ((2000, 1000), 1, {}),
    ],
)
def test_slides_above_half_a_device_s_share_are_cut(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mebibytes: tuple[int, ...],
    devices: int,
    counts: dict[str, int],
) -> None:
    monkeypatch.setattr(ranges, "MIN_RANGE_BYTES", 256 << 20)
    given = list(plans(tmp_path, *mebibytes))
    assert ranges.count_ranges(given, devices) == counts
    pieces = list(ranges.cut_up(given, counts))
    assert len(pieces) == len(given) + sum(counts.values())
    assert len({piece.key for piece in pieces}) == len(pieces)
    for plan in given:
        own = [piece.rows for piece in pieces if piece.entry == plan.entry and piece.rows]
        covered = sum((rows.mask(1001).astype(int) for rows in own), np.zeros(1001, int))
        assert covered.tolist() == [1 if own else 0] * 1001
