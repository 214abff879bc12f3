"""`wsipipe export` and `wsipipe import` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from test_status import add_slide, wsipipe

from wsipipe.store import read_features


def test_export_and_import_by_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = read_features(add_slide(out, "case/a", 5))
    done = wsipipe("export", out, "--to", "trident", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["dest"] == str(out / "export" / "trident")
    assert all(Path(p).is_file() for p in document["files"])
    refused = wsipipe("import", document["dest"], "--from", "trident", "--out", tmp_path / "in")
    assert refused.returncode == 2
    assert "--slide-mpp" in refused.stderr
    done = wsipipe(
        "import", document["dest"], "--from", "trident", "--out", tmp_path / "in",
        "--slide-mpp", "0.5", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = json.loads(done.stdout)["files"]
    back = read_features(path)
    np.testing.assert_array_equal(back.coords, source.coords)
    np.testing.assert_array_equal(back.features, source.features)


def test_unknown_layouts_are_usage_errors(tmp_path: Path) -> None:
    add_slide(tmp_path, "a", 1)
    done = wsipipe("export", tmp_path, "--to", "qupath")
    assert done.returncode == 2
    assert "trident" in done.stderr
    assert wsipipe("import", tmp_path / "gone", "--from", "clam").returncode == 2
