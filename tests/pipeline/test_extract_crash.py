"""A slide that takes its process down costs itself, not the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsipipe as wp
from wsipipe.pipeline.account import Account
from wsipipe.pipeline.crash import crashes
from wsipipe.store import Records

Make = Callable[..., Any]


def record_crash(out: Path, slide_id: str, path: Path, pid: int, *, trace: bool = True) -> None:
    """What a process leaves that died with the slide in hand."""
    records = Records(out)
    record = records.begin(slide_id, path, ["mean"])
    file = records.path_of(slide_id)
    content = json.loads(file.read_text())
    content["attempts"][-1].update(pid=pid, start="0")
    file.write_text(json.dumps(content))
    assert record.attempts
    if trace:
        host = content["attempts"][-1]["host"]
        (out / "events").mkdir(exist_ok=True)
        (out / "events" / f"{host}-{pid}.crash").write_text("Fatal Python error: Segmentation")


def test_a_slide_that_crashed_twice_is_left_out_with_a_reason(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder, out = make_encoder(), tmp_path / "out"
    record_crash(out, "s1", slides / "s1.svs", 999_999_001)
    record_crash(out, "s1", slides / "s1.svs", 999_999_002)
    record_crash(out, "s2", slides / "s2.svs", 999_999_002)
    assert crashes(out, Records(out).read("s1")) == 2
    assert crashes(out, Records(out).read("s2")) == 1
    result = wp.extract(slides, encoder=encoder, out=out)
    assert result.done == ("s0", "s2")
    assert result.failed == ("s1",)
    assert "crashed its process 2 times" in result.reasons["s1"]
    assert "attempts/" in result.reasons["s1"]
    again = wp.extract(slides, encoder=encoder, out=out)
    assert again.failed == ("s1",), "being left out acquits no slide"
    Records(out).path_of("s1").unlink()
    assert wp.extract(slides, encoder=encoder, out=out).done == ("s0", "s1", "s2")


def test_kills_from_outside_are_held_against_no_slide(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    for pid in range(999_999_001, 999_999_006):
        record_crash(out, "s1", slides / "s1.svs", pid, trace=False)
    assert wp.extract(slides, encoder=make_encoder(), out=out).done == ("s0", "s1", "s2")


def broken_attempts(out: Path) -> list[dict[str, Any]]:
    """Attempts that ended with the injected bug."""
    attempts = [
        attempt
        for path in (out / "attempts").glob("*.json")
        for attempt in json.loads(path.read_text())["attempts"]
    ]
    return [a for a in attempts if "injected" in a.get("traceback", "")]


def test_a_bug_beside_the_slides_is_recorded_with_the_slides_in_hand(
    slides: Path, tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(self: Account, snapshot: object) -> None:
        if self._open:
            raise RuntimeError("injected")

    encoder, out = make_encoder(), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Account, "tick", tick)
        with pytest.raises(RuntimeError, match="injected"):
            wp.extract(slides, encoder=encoder, out=out)
    assert broken_attempts(out)
    table = (out / "slides.csv").read_text()
    assert "RuntimeError: injected" in (out / "failures.csv").read_text()
    assert ",failed," in table
    assert wp.extract(slides, encoder=encoder, out=out).done == ("s0", "s1", "s2")


def test_a_bug_in_one_of_several_processes_leaves_no_slide_pending(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out, hook = tmp_path / "out", tmp_path / "hook.py"
    hook.write_text(
        "from pathlib import Path\n"
        "from wsipipe.pipeline.account import Account\n"
        f"mark = Path({str(tmp_path / 'struck')!r})\n"
        "usual = Account.tick\n"
        "def tick(self, snapshot):\n"
        "    if self._open and not mark.exists():\n"
        "        mark.touch()\n"
        "        raise RuntimeError('injected')\n"
        "    usual(self, snapshot)\n"
        "Account.tick = tick\n"
    )
    encoder = make_encoder(act=f"exec(open({str(hook)!r}).read(), {{}})")
    result = wp.extract(slides, encoder=encoder, out=out, device="cpu,cpu")
    assert broken_attempts(out)
    assert not result.pending
    assert result.done == ("s0", "s1", "s2")
