"""Attempts, events, run.yaml, and the tables that are folded from them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from wsipipe.errors import MissingMppError
from wsipipe.store import (
    EventLog,
    Records,
    SlideResult,
    TextFilter,
    count_statuses,
    fold,
    write_features,
    write_run_yaml,
    write_tables,
)

SLIDES_HEADER = (
    "slide_id,path,encoder,status,reason,mpp,mpp_source,width,height,"
    "tissue_mm2,tiles,bad_tiles,precision,seconds"
)


def done(encoder: str = "texture", **more: object) -> SlideResult:
    return SlideResult(encoder=encoder, status="done", tiles=5, precision="fp32", **more)  # type: ignore[arg-type]


def finish(out: Path, slide_id: str, *results: SlideResult) -> None:
    records = Records(out)
    record = records.begin(slide_id, f"/slides/{slide_id}.svs", ["texture"])
    record.mpp, record.mpp_source, record.width, record.height = 0.2471, "reader", 46000, 32914
    record.tissue_mm2 = 12.3456789
    records.finish(record, results)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_have_the_columns_of_the_contract(tmp_path: Path, make_file) -> None:
    write_features(tmp_path / "features/texture/c/a.h5", make_file(5))
    finish(tmp_path, "c/a", done(seconds=1.5))
    error = MissingMppError("/slides/b.svs")
    finish(tmp_path, "b", SlideResult.failure("texture", error, stage="open"))
    expected = [("c/a", "x"), ("b", "x"), ("z", "/slides/z.svs")]
    rows = write_tables(tmp_path, expected, ["texture"])
    assert (tmp_path / "slides.csv").read_text().splitlines()[0] == SLIDES_HEADER
    by_id = {line["slide_id"]: line for line in table(tmp_path / "slides.csv")}
    assert by_id["c/a"] == {
        "slide_id": "c/a",
        "path": "/slides/c/a.svs",
        "encoder": "texture",
        "status": "done",
        "reason": "",
        "mpp": "0.2471",
        "mpp_source": "reader",
        "width": "46000",
        "height": "32914",
        "tissue_mm2": "12.3457",
        "tiles": "5",
        "bad_tiles": "0",
        "precision": "fp32",
        "seconds": "1.5",
    }
    assert by_id["b"]["status"] == "failed"
    assert by_id["z"]["status"] == "pending"
    assert by_id["z"]["path"] == "/slides/z.svs"
    assert count_statuses(rows) == {"done": 1, "empty": 0, "failed": 1, "pending": 1}
    (failure,) = table(tmp_path / "failures.csv")
    assert list(failure) == ["slide_id", "path", "stage", "error", "remedy"]
    assert failure["stage"] == "open"
    assert "mpp" in failure["error"]
    assert "--slide-mpp" in failure["remedy"]


def test_failures_go_away_when_there_are_none(tmp_path: Path, make_file) -> None:
    finish(tmp_path, "a", SlideResult.failure("texture", OSError("gone"), stage="read"))
    write_tables(tmp_path)
    assert "OSError: gone" in (tmp_path / "failures.csv").read_text()
    write_features(tmp_path / "features/texture/a.h5", make_file(5))
    finish(tmp_path, "a", done())
    write_tables(tmp_path)
    assert not (tmp_path / "failures.csv").exists()


def test_the_file_decides_not_the_record_nor_the_table(tmp_path: Path, make_file) -> None:
    path = write_features(tmp_path / "features/texture/a.h5", make_file(5))
    finish(tmp_path, "a", done())
    write_tables(tmp_path)
    path.unlink()
    assert fold(tmp_path)[0][0].status == "pending"
    write_features(path, make_file(3))
    for record in (tmp_path / "attempts").iterdir():
        record.unlink()
    (row,) = fold(tmp_path)[0]
    assert (row.status, row.tiles, row.width, row.precision) == ("done", 3, 46000, "fp32")
    write_features(path, make_file(0))
    assert fold(tmp_path)[0][0].status == "empty"
    path.write_bytes(b"rubbish")
    (row,) = fold(tmp_path)[0]
    assert row.status == "failed"
    assert "HDF5" in row.reason


def test_a_slide_that_kills_its_worker_is_known_by_it(tmp_path: Path) -> None:
    code = f"""if True:
        from wsipipe.store import Records
        Records({str(tmp_path)!r}).begin("a", "a.svs", ["texture"])"""
    records = Records(tmp_path)
    for deaths in range(3):
        record = records.begin("a", "a.svs", ["texture"]) if deaths == 2 else None
        if record is None:
            subprocess.run([sys.executable, "-c", code], check=True)
        else:
            assert record.deaths == 2
            assert [a["state"] for a in record.attempts] == ["died", "died", "running"]
            records.finish(record, [done()])
    again = records.begin("a", "a.svs", ["texture"])
    assert again.deaths == 0


def test_a_drained_attempt_is_no_death(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = records.begin("a", "a.svs", ["texture"], batch=8)
    records.finish(record, [], state="abandoned")
    assert records.begin("a", "a.svs", ["texture"]).deaths == 0
    stored = json.loads((tmp_path / "attempts/a.json").read_text())
    assert [a["state"] for a in stored["attempts"]] == ["abandoned", "running"]
    assert stored["attempts"][0]["batch"] == 8


def test_one_encoders_result_survives_the_others_attempt(tmp_path: Path) -> None:
    finish(tmp_path, "a", done("texture"))
    finish(tmp_path, "a", done("phikon"))
    record = Records(tmp_path).read("a")
    assert record is not None
    assert sorted(record.results) == ["phikon", "texture"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"slide_id": "a"}', '{"results": 3}'])
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts/a.json").write_text(content)
    assert Records(tmp_path).read("a") is None
    assert fold(tmp_path) == ([], [])
    assert Records(tmp_path).begin("a", "a.svs", []).slide_id == "a"


def test_tokens_never_and_paths_on_request_stay_out_of_records(tmp_path: Path) -> None:
    hiding = TextFilter(hide_paths=True)
    records = Records(tmp_path, texts=hiding)
    record = records.begin("a", "/data/DOE_JANE/a.svs", ["texture"])
    token = "hf_" + "a" * 34
    error = OSError(f"GET {token} of /data/DOE_JANE/a.svs")
    records.finish(record, [SlideResult.failure("texture", error, stage="read")])
    with EventLog(tmp_path, texts=hiding) as log:
        log.log("slide_failed", error=str(error), path=Path("/data/DOE_JANE/a.svs"))
    write_run_yaml(tmp_path, {"slides": ["/data/DOE_JANE"], "token": token}, texts=hiding)
    write_tables(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert token not in text
            assert "/data/" not in text


def test_every_line_of_the_log_is_one_object_whoever_writes(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        threads = [
            threading.Thread(
                target=lambda k=k: [log.log("tick", k=k, i=i, t="x\n" * 50) for i in range(200)]
            )
            for k in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    log.log("after close")
    (path,) = (tmp_path / "events").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 800
    assert {line["event"] for line in lines} == {"tick"}
    assert [e["i"] for e in lines if e["k"] == 2] == list(range(200))
    assert path.name.endswith(".jsonl")


def test_run_yaml_says_settings_and_versions(tmp_path: Path) -> None:
    write_run_yaml(
        tmp_path, {"mpp": 0.5, "slides": [Path("a")], "roi": None}, device={"name": "cpu"}
    )
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert content["settings"] == {"mpp": 0.5, "slides": ["a"], "roi": None}
    assert content["device"] == {"name": "cpu"}
    assert {"wsipipe", "python", "torch", "h5py"} <= set(content["versions"])
