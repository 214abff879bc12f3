"""`wsipipe status` and `wsipipe verify` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsipipe.store import (
    FeatureFile,
    FeatureMeta,
    Records,
    SlideResult,
    write_features,
    write_run_yaml,
    write_tables,
)

META = FeatureMeta(
    slide_id="a", slide_fingerprint="00" * 32, encoder="texture", encoder_revision="1",
    pooling="mean", mpp=0.5, mpp_effective=0.5, level0_mpp=0.5, mpp_source="reader", tile_px=224,
    tile_px0=224, stride_px=224, overlap=0, level0_width=9000, level0_height=9000,
    precision="fp32", identity={"encoder": "texture"},
)  # fmt: skip


def wsipipe(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsipipe", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def add_slide(out: Path, slide_id: str, rows: int) -> Path:
    file = FeatureFile(
        features=np.ones((rows, 4), np.float16),
        coords=np.stack([np.arange(rows) * 224, np.zeros(rows, np.int64)], axis=1),
        tissue_fraction=np.ones(rows, np.float32),
        tile_status=np.zeros(rows, np.uint8),
        meta=replace(META, slide_id=slide_id),
    )
    return write_features(out / "features" / "texture" / f"{slide_id}.h5", file)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    write_run_yaml(out, {"encoder": ["texture"]})
    records = Records(out)
    for slide_id, rows in (("a", 5), ("b", 0)):
        add_slide(out, slide_id, rows)
        status = "done" if rows else "empty"
        record = records.begin(slide_id, f"{slide_id}.svs", ["texture"])
        result = SlideResult(encoder="texture", status=status, tiles=rows)
        records.finish(record, [result])
    record = records.begin("c", "c.svs", ["texture"])
    failure = SlideResult.failure("texture", ValueError("cut short"), stage="open")
    records.finish(record, [failure])
    write_tables(out, [("d", "d.svs")], ["texture"])
    return out


def test_status_counts_and_names_the_failed(out: Path) -> None:
    done = wsipipe("status", out)
    assert done.returncode == 0
    assert "1 done, 1 empty, 1 failed, 1 pending (of 4)" in done.stdout
    assert "c: ValueError: cut short" in done.stdout


def test_status_as_json_is_one_document(out: Path) -> None:
    state = json.loads(wsipipe("status", out, "--json").stdout)
    assert state["counts"] == {"done": 1, "empty": 1, "failed": 1, "pending": 1}
    assert state["encoders"]["texture"]["tiles"] == 5
    assert state["finished"] is False
    assert [row["slide_id"] for row in state["slides"]] == ["a", "b", "c", "d"]
    assert state["failures"][0]["stage"] == "open"


def test_watch_ends_when_nothing_is_pending(out: Path) -> None:
    add_slide(out, "d", 3)
    done = wsipipe("status", out, "--watch", "--every", "0.1")
    assert done.returncode == 0
    assert "2 done" in done.stdout


def test_a_slide_whose_process_is_gone_is_shown_as_such(out: Path) -> None:
    code = f"""if True:
        from wsipipe.store import Records
        Records({str(out)!r}).begin("d", "d.svs", ["texture"])"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "d (process" in (text := wsipipe("status", out).stdout)
    assert "run again" in text


def test_metrics_are_what_prometheus_reads(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "wsipipe.prom"
    assert wsipipe("status", out, "--metrics", path).returncode == 0
    values = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    assert values['wsipipe_slides{run="out",encoder="texture",state="failed"}'] == 1
    assert values['wsipipe_tiles{run="out",encoder="texture"}'] == 5
    assert values['wsipipe_at_work{run="out"}'] == 0
    assert "slide_id" not in path.read_text()


def test_status_of_nothing_is_a_usage_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        done = wsipipe("status", folder)
        assert done.returncode == 2
        assert "--out folder" in done.stderr


@pytest.mark.full
def test_ten_thousand_slides_take_less_than_five_seconds(tmp_path: Path) -> None:
    import shutil
    import time

    out = tmp_path / "out"
    first = add_slide(out, "s00000", 3)
    template = Records(out)
    record = template.begin("s00000", "s.svs", ["texture"])
    template.finish(record, [SlideResult(encoder="texture", status="done", tiles=3)])
    text = (out / "attempts/s00000.json").read_text()
    for i in range(1, 10_000):
        shutil.copy(first, first.with_name(f"s{i:05d}.h5"))
        (out / f"attempts/s{i:05d}.json").write_text(text.replace("s00000", f"s{i:05d}"))
    write_run_yaml(out, {})
    start = time.monotonic()
    state = json.loads(wsipipe("status", out, "--json").stdout)
    seconds = time.monotonic() - start
    assert state["counts"]["done"] == 10_000
    assert seconds < 5
    write_tables(out)
    with (out / "slides.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == 10_000
