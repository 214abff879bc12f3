"""A run over finished slides: what it looks at, what it leaves alone, what it puts right."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

import wsipipe as wp
from wsipipe.embed.drain import Drain
from wsipipe.pipeline import planning
from wsipipe.pipeline.claims import Claims
from wsipipe.pipeline.planning import SlidePlan
from wsipipe.slide.discover import SlideEntry
from wsipipe.store import Leases, identity_hash

Make = Callable[..., Any]


def statuses(out: Path) -> dict[str, str]:
    with (out / "slides.csv").open(newline="") as file:
        return {row["slide_id"]: row["status"] for row in csv.DictReader(file)}


def many(folder: Path, count: int, make_svs: Make) -> tuple[Path, Path]:
    """So many finished slides, of which one was really extracted."""
    slides, out = folder / "slides", folder / "out"
    first = make_svs(slides / "s00000.svs", size=(256, 256))
    wp.extract(slides, encoder="texture", out=out)
    file = out / "features" / "texture" / "s00000.h5"
    record = (out / "attempts" / "s00000.json").read_text()
    for i in range(1, count):
        shutil.copy2(first, slides / f"s{i:05d}.svs")
        shutil.copy2(file, file.with_name(f"s{i:05d}.h5"))
        text = record.replace("s00000", f"s{i:05d}")
        (out / "attempts" / f"s{i:05d}.json").write_text(text)
    return slides, out


SAY = """
import sys
from wsipipe.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""


def again(slides: Path, out: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", SAY, "extract", str(slides), "--out", str(out)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_run_that_finds_all_done_needs_no_torch(tmp_path: Path, make_svs: Make) -> None:
    slides, out = many(tmp_path, 100, make_svs)
    ran = again(slides, out)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "False"
    assert "100 done" in ran.stderr


@pytest.mark.full
@pytest.mark.timeout(900)
def test_ten_thousand_finished_slides_take_less_than_ten_seconds(
    tmp_path: Path, make_svs: Make
) -> None:
    slides, out = many(tmp_path, 10_000, make_svs)
    begun = time.monotonic()
    ran = again(slides, out)
    seconds = time.monotonic() - begun
    assert "10000 done" in ran.stderr
    assert seconds < 10, seconds


def test_a_record_vouches_for_the_file_it_knows_and_for_no_other(
    slides: Path, tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides, encoder=encoder, out=out)
    opened: list[str] = []
    really = planning.check_file

    def count(path: Path, wanted: str) -> Any:
        opened.append(path.stem)
        return really(path, wanted)

    monkeypatch.setattr(planning, "check_file", count)
    assert wp.extract(slides, encoder=encoder, out=out).tiles == 0
    assert opened == []
    # Touched, copied, or of another identity though the record says otherwise: looked at.
    file = out / "features" / "mean" / "s1.h5"
    with h5py.File(file, "r+") as h5:
        text = h5.attrs["identity_json"].replace('"overlap":0', '"overlap":0.5')
        h5.attrs["identity_json"] = text
        h5.attrs["identity"] = identity_hash(text)
    with pytest.raises(wp.IdentityMismatchError, match="overlap"):
        wp.extract(slides, encoder=encoder, out=out)
    assert opened == ["s1"]
    # The same size and time with another identity asked for is no match either.
    with pytest.raises(wp.IdentityMismatchError, match="min_tissue"):
        wp.extract(slides / "s0.svs", encoder=encoder, out=out, min_tissue=0.5)


def test_a_slide_that_is_whole_again_is_no_longer_called_failed(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(slides, encoder=encoder, out=out)
    whole = (slides / "s1.svs").read_bytes()
    (slides / "s1.svs").write_bytes(whole + b"x")
    assert wp.extract(slides, encoder=encoder, out=out).failed == ("s1",)
    assert statuses(out)["s1"] == "failed"
    (slides / "s1.svs").write_bytes(whole)
    assert wp.extract(slides, encoder=encoder, out=out).done == ("s0", "s1", "s2")
    assert statuses(out)["s1"] == "done"
    assert not (out / "failures.csv").exists()


def test_an_empty_slide_is_known_by_its_file(
    tmp_path: Path, make_encoder: Make, make_svs: Make
) -> None:
    make_svs(tmp_path / "slides" / "blank.svs", size=(512, 512), tissue=False)
    encoder, out = make_encoder(), tmp_path / "out"
    wp.extract(tmp_path / "slides", encoder=encoder, out=out)
    shutil.rmtree(out / "attempts")
    assert wp.extract(tmp_path / "slides", encoder=encoder, out=out).empty == ("blank",)
    assert statuses(out) == {"blank": "empty"}


def test_another_encoder_does_not_move_the_outline_of_the_first(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    wp.extract(slides, encoder=make_encoder(), out=out)
    outline = (out / "tissue" / "s0.geojson").read_bytes()
    with pytest.raises(wp.IdentityMismatchError, match=r"tissue\.") as caught:
        wp.extract(slides, encoder=make_encoder("other"), out=out, tissue="otsu")
    assert caught.value.exit_code == 2
    assert (out / "tissue" / "s0.geojson").read_bytes() == outline


def test_the_last_slides_are_left_to_whoever_is_free(tmp_path: Path) -> None:
    """Looking ahead ends where it would take what another process could begin now."""
    plans = [SlidePlan(SlideEntry(f"s{i}", "")) for i in range(12)]
    leases = Leases(tmp_path / "leases")
    claims = Claims(
        leases,
        plans,
        replan=lambda p: p,
        elsewhere=lambda p: False,
        suspect=lambda p: False,
        drain=Drain(),
    )
    taken: list[str] = []

    def take() -> None:
        for plan in claims:
            taken.append(plan.entry.slide_id)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    time.sleep(1)
    # 12 free: ahead while more than eight would be left.
    assert taken == [f"s{i}" for i in range(4)]
    for name in list(taken):
        claims.release(name)
    deadline = time.monotonic() + 10
    while len(taken) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert taken == [f"s{i}" for i in range(5)]
    while thread.is_alive() and time.monotonic() < deadline + 20:
        claims.release(taken[-1])
        time.sleep(0.05)
    assert sorted(taken) == sorted(p.entry.slide_id for p in plans)
    leases.close()
