"""`--pseudonymize` and `--hide-paths`: what is searched for is every byte of every output."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsipipe as wp
from wsipipe.pipeline.stages import StageSettings, TissueStage, run_stage
from wsipipe.store.names import TextFilter

Make = Callable[..., Any]
# Words that stand for patients in the names of folders and files.
SECRETS = ("DOE_JANE", "Müller", "A-2031/07", "2031-07", "O'Brien", "ROE")


@pytest.fixture
def cohort(tmp_path: Path, make_svs: Make) -> Path:
    """Good slides and all kinds of bad ones, under names that nobody may see."""
    root = tmp_path / "ward"
    make_svs(root / "DOE_JANE" / "A-2031-07.svs", size=(512, 512))
    make_svs(root / "ROE" / "Müller O'Brien 2.svs", size=(512, 512), seed=1)
    make_svs(root / "ROE" / "blank 2031-07.svs", size=(512, 512), tissue=False)
    make_svs(root / "DOE_JANE" / "A-2031-07 nompp.svs", size=(512, 512), mpp=None)
    (root / "ROE" / "Müller.svs").write_bytes(b"no slide")
    (root / "DOE_JANE" / "O'Brien.mrxs").write_bytes(b"\xff\xd8\xff\xe0 no folder beside it")
    cut = make_svs(root / "ROE" / "cut 2031-07.svs", size=(512, 512), seed=3)
    data = bytearray(cut.read_bytes())
    data[2000:60_000] = bytes(58_000)
    cut.write_bytes(data)
    manifest = tmp_path / "cohort.csv"
    paths = [*sorted(map(str, root.rglob("*.*"))), str(root / "DOE_JANE" / "gone.svs")]
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "slide_id"])
        writer.writerows((p, Path(p).relative_to(root).with_suffix("").as_posix()) for p in paths)
    return manifest


def found_in(folder: Path, texts: tuple[str, ...] = SECRETS) -> list[str]:
    """Where one of the texts is found in a name or in bytes below `folder`."""
    needles = [t.encode() for text in texts for t in {text, text.lower(), ascii(text)[1:-1]}]
    found = []
    for path in folder.rglob("*"):
        inside = os.fsencode(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        found += [f"{n!r} in {path}" for n in needles if n in inside or n in data]
    return found


def test_no_name_reaches_any_output(cohort: Path, tmp_path: Path, make_encoder: Make) -> None:
    key, names = tmp_path / "keys" / "study.key", tmp_path / "keys" / "who.csv"
    key.parent.mkdir()
    command = [
        sys.executable, "-m", "wsipipe", "extract", str(cohort), "--encoder", make_encoder(),
        "--pseudonymize", str(key), "--new-key", "--pseudonym-map", str(names), "--json",
    ]  # fmt: skip
    out = tmp_path / "out"
    ran = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert found_in(out) == []
    assert [s for s in SECRETS if s in ran.stdout + ran.stderr] == []
    assert key.stat().st_mode & 0o777 == 0o600
    assert names.stat().st_mode & 0o777 == 0o600
    with names.open(newline="") as file:
        known = {row["pseudonym"]: row["slide_id"] for row in csv.DictReader(file)}
    with (out / "slides.csv").open(newline="") as file:
        status = {known[r["slide_id"]]: (r["status"], r["path"]) for r in csv.DictReader(file)}
    assert {name: s for name, (s, _) in status.items()} == {
        "DOE_JANE/A-2031-07": "done",
        "DOE_JANE/A-2031-07 nompp": "failed",
        "DOE_JANE/O'Brien": "failed",
        "DOE_JANE/gone": "failed",
        "ROE/Müller": "failed",
        "ROE/Müller O'Brien 2": "done",
        "ROE/blank 2031-07": "empty",
        "ROE/cut 2031-07": "failed",
    }
    assert all(path in known for _, path in status.values())
    # Why a slide failed is still said.
    assert "--slide-mpp" in (out / "failures.csv").read_text()
    features = wp.read_features(next((out / "features" / "mean").glob("p*.h5")))
    assert features.attrs["slide_id"] == features.coords_attrs["name"] == features.path.stem


def test_the_same_key_resumes_and_no_other_does(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out, encoder = tmp_path / "out", make_encoder()
    keys = [tmp_path / "one.key", tmp_path / "two.key"]
    first = wp.extract(slides, encoder=encoder, out=out, pseudonymize=keys[0], new_key=True)
    assert len(first.done) == 3
    assert not set(first.done) & {"s0", "s1", "s2"}
    files = {f: f.stat().st_mtime_ns for f in (out / "features").rglob("*.h5")}
    again = wp.extract(slides, encoder=encoder, out=out, pseudonymize=keys[0], new_key=True)
    assert (again.done, again.tiles) == (first.done, 0)
    with pytest.raises(wp.ConfigError, match="another key"):
        wp.extract(slides, encoder=encoder, out=out, pseudonymize=keys[1], new_key=True)
    with pytest.raises(wp.ConfigError, match="--pseudonymize"):
        wp.extract(slides, encoder=encoder, out=out)
    assert {f: f.stat().st_mtime_ns for f in (out / "features").rglob("*.h5")} == files
    # No other command writes names among the pseudonyms.
    stage = TissueStage(StageSettings(out=out))
    with pytest.raises(wp.ConfigError, match="under pseudonyms"):
        run_stage(stage, [str(slides)])
    assert not list(out.rglob("*s0*"))
    named = tmp_path / "named"
    wp.extract(slides, encoder=encoder, out=named)
    with pytest.raises(wp.ConfigError, match="their own names"):
        wp.extract(slides, encoder=encoder, out=named, pseudonymize=keys[0])


def test_a_key_among_the_outputs_or_none_at_all_is_refused(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    with pytest.raises(wp.ConfigError, match="output folder"):
        wp.extract(slides, out=out, pseudonymize=out / "study.key", new_key=True)
    with pytest.raises(wp.ConfigError, match="--new-key"):
        wp.extract(slides, encoder=make_encoder(), out=out, pseudonymize=tmp_path / "no.key")
    key = tmp_path / "study.key"
    with pytest.raises(wp.ConfigError, match="output folder"):
        wp.extract(slides, out=out, pseudonymize=key, new_key=True, pseudonym_map=out / "who.csv")
    assert not out.exists()
    assert not key.exists()


def test_masks_are_found_under_the_slides_own_names(
    slides: Path, tmp_path: Path, make_encoder: Make
) -> None:
    encoder = make_encoder()
    wp.extract(slides, encoder=encoder, out=tmp_path / "named")
    options = {"pseudonymize": tmp_path / "k", "new_key": True, "encoder": encoder}
    out = tmp_path / "out"
    one = wp.extract(slides, out=out, tissue=str(tmp_path / "named" / "tissue"), **options)
    assert len(one.done) == 3
    # Or under the pseudonyms that a former run gave them.
    two = wp.extract(slides, out=tmp_path / "two", tissue=str(out / "tissue"), **options)
    assert two.done == one.done


def test_hidden_paths_leave_no_folder_in_the_records(
    cohort: Path, tmp_path: Path, make_encoder: Make
) -> None:
    out = tmp_path / "out"
    wp.extract(cohort, encoder=make_encoder(), out=out, hide_paths=True)
    with (out / "slides.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(paths) == 8
    assert not [p for p in paths if "/" in p.removeprefix("…/")]
    assert found_in(out, (str(cohort.parent / "ward"),)) == []


@pytest.mark.parametrize(
    "text",
    [
        "/data/DOE JANE/B 7.svs: cannot be read",
        "[Errno 2] No such file: '/data/DOE JANE/B 7.svs'",
        "/data/DOE JANE/B 7/Slidedat.ini is missing",
        "b 7.SVS of DOE JANE",
        "DOE JANE/B 7 has no mask",
        "cannot list /data/DOE JANE",
    ],
)
def test_messages_about_a_slide_call_it_by_its_pseudonym(text: str) -> None:
    texts = TextFilter(hidden={"p0": ("/data/DOE JANE/B 7.svs", "DOE JANE/B 7")})
    said = texts.about("p0")(text)
    assert "doe" not in said.lower()
    assert "b 7" not in said.lower()
    assert "p0" in said


def test_heatmaps_find_slides_of_pseudonymised_features_by_the_key(
    tmp_path: Path, make_svs: Make, make_encoder: Make
) -> None:
    from wsipipe.cli.heatmap import _slide_paths

    slides, out, key = tmp_path / "slides", tmp_path / "out", tmp_path / "study.key"
    path = make_svs(slides / "ward" / "jane.svs", size=(512, 512))
    encoder = make_encoder()
    wp.extract(slides, encoder=encoder, out=out, pseudonymize=key, new_key=True)
    (features,) = (out / "features").rglob("*.h5")
    assert _slide_paths(slides, key) == {features.stem: (str(path), None)}
    assert set(_slide_paths(slides, None)) == {"ward/jane"}
