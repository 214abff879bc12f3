"""`--profile`: a trace that viewers open: valid events, nested spans, the right threads."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsipipe as wp
from wsipipe.embed.trace import Trace, join_traces

Make = Callable[..., Any]
Events = list[dict[str, Any]]


def read_trace(path: Path) -> Events:
    """All events, each checked against the Trace Event Format."""
    events: Events = json.loads(path.read_text(encoding="utf-8"))
    for event in events:
        assert {"name", "ph", "pid", "tid", "args"} <= set(event)
        assert event["ph"] in "XMC"
        if event["ph"] != "M":
            assert event["ts"] > 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
    return events


def thread_names(events: Events) -> dict[int, str]:
    return {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}


def assert_nested(events: Events) -> None:
    """Within a thread, spans lie side by side or one within the other, as calls do."""
    by_thread = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_thread[event["pid"], event["tid"]].append((event["ts"], -event["dur"]))
    for spans in by_thread.values():
        open_until: list[float] = []
        for begun, minus in sorted(spans):
            while open_until and open_until[-1] <= begun + 1e-3:
                open_until.pop()
            assert not open_until or begun - minus <= open_until[-1] + 1e-3
            open_until.append(begun - minus)


def test_a_trace_says_what_each_thread_did(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    path = tmp_path / "traces" / "t.json"
    result = wp.extract(
        slides, encoder=make_encoder(), out=tmp_path / "out", profile=path, batch_size=8, workers=2
    )
    events = read_trace(path)
    assert_nested(events)
    names = thread_names(events)
    kinds = {name.split()[0] for name in names.values()}
    assert kinds == {"run", "prepare", "decode", "stream", "publish"}
    spans = [e for e in events if e["ph"] == "X"]
    by_kind = defaultdict(set)
    for event in spans:
        by_kind[names[event["tid"]].split()[0]].add(event["name"])
    assert {"open", "tissue", "grid", "thumbnail", "prepare"} <= by_kind["prepare"]
    assert {"read", "wait for a slide"} <= by_kind["decode"]
    assert {"forward", "fetch", "keep rows", "wait for tiles"} <= by_kind["stream"]
    assert by_kind["publish"] == {"publish"}
    for name in ("read", "forward"):
        assert sum(e["args"]["tiles"] for e in spans if e["name"] == name) == result.tiles
    assert {e["args"]["slide"] for e in spans if e["name"] == "publish"} == {"s0", "s1", "s2"}
    assert {e["args"]["encoder"] for e in spans if e["name"] == "forward"} == {"mean"}
    embedded = [e["args"]["tiles"] for e in events if e["name"] == "tiles embedded"]
    assert embedded == sorted(embedded)
    assert embedded[-1] == result.tiles


def test_without_a_profile_nothing_is_recorded(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    trace = Trace(None)
    with trace.span("a"):
        trace.count("b", c=1)
    trace.close()
    wp.extract(slides, encoder=make_encoder(), out=tmp_path / "out")
    assert not list(tmp_path.rglob("*.json.*"))


def test_a_trace_that_cannot_be_written_stops_the_run_before_it_starts(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(wp.OutputError, match="--profile"):
        wp.extract(
            slides, encoder=make_encoder(), out=tmp_path / "out", profile=tmp_path / "file" / "t"
        )
    assert not (tmp_path / "out" / "features").exists()


def test_traces_of_several_processes_become_one_even_of_a_killed_one(tmp_path: Path) -> None:
    parts = [tmp_path / f"t.json.{n}.part" for n in range(3)]
    for number, part in enumerate(parts[:2]):
        trace = Trace(part, f"device {number}")
        with trace.span("forward", tiles=number):
            pass
        trace.close()
    whole = parts[1].read_text()
    parts[1].write_text(whole[: whole.rindex('"args"')])  # killed while it wrote
    join_traces(parts, tmp_path / "t.json")
    events = read_trace(tmp_path / "t.json")
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == [
        "device 0",
        "device 1",
    ]
    assert [e["args"]["tiles"] for e in events if e["name"] == "forward"] == [0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json"]
