"""The page about a run says what its files say, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from wsipipe.report.run_page import MAX_PICTURES, RunFacts, read_run, render_run_page
from wsipipe.store import SlideRow


def facts(tmp_path: Path, **changes: object) -> RunFacts:
    rows = [
        SlideRow(slide_id="a/<one>", path="x", encoder="texture", status="done", tiles=30, mpp=0.25,
                 mpp_source="reader", width=100, height=80, tissue_mm2=1.5, seconds=2.0),
        SlideRow(slide_id="two", path="y", encoder="texture", status="failed", reason="broken"),
    ]  # fmt: skip
    failures = [{"slide_id": "two", "stage": "open", "error": "cut & short", "remedy": "copy it"}]
    base = {"rows": rows, "failures": failures, "settings": {}, "thumbnails": [], "out": tmp_path}
    return RunFacts(**{**base, **changes})  # type: ignore[arg-type]


def test_page_names_slides_failures_and_remedies_escaped(tmp_path: Path) -> None:
    page = render_run_page(facts(tmp_path))
    assert "a/&lt;one&gt;" in page
    assert "<one>" not in page
    assert "cut &amp; short" in page
    assert "copy it" in page
    assert "Failed (1)" in page


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "thumbnails" / "a"
    folder.mkdir(parents=True)
    pictures = []
    for i in range(MAX_PICTURES + 1):
        path = folder / f"{i:03d}.jpg"
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
        pictures.append(path)
    page = render_run_page(facts(tmp_path, thumbnails=pictures))
    assert page.count("data:image/jpeg;base64,") == MAX_PICTURES
    assert f"the first {MAX_PICTURES} of {MAX_PICTURES + 1}" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a/000" in page


def test_a_folder_without_a_run_has_no_rows(tmp_path: Path) -> None:
    assert read_run(tmp_path).rows == []
