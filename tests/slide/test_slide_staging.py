"""Staging: bounded, and it deletes only what it made."""

from __future__ import annotations

from pathlib import Path

import pytest

import wsipipe as wp
from wsipipe.errors import OutputError
from wsipipe.owner import this_host, this_process
from wsipipe.slide import Stage


def slides(folder, count, size=1000):
    folder.mkdir()
    paths = []
    for number in range(count):
        path = folder / f"{number}.svs"
        path.write_bytes(bytes([number]) * size)
        paths.append(path)
    return paths


def test_copies_are_equal_and_go_when_released(tmp_path):
    (path,) = slides(tmp_path / "slow", 1)
    with Stage(tmp_path / "fast", 10_000) as stage:
        local = stage.fetch(path)
        assert local != str(path)
        assert local.endswith("0.svs")
        assert Path(local).read_bytes() == path.read_bytes()
        stage.release(path)
        assert not list(stage.folder.rglob("*.svs"))
    assert path.exists()


def test_what_others_put_beside_stays(tmp_path):
    fast = tmp_path / "fast"
    fast.mkdir()
    (fast / "mine.txt").write_text("keep")
    (path,) = slides(tmp_path / "slow", 1)
    with Stage(fast, 10_000) as stage:
        stage.fetch(path)
    assert [p.name for p in fast.iterdir()] == ["mine.txt"]


def test_the_bound_holds_and_the_rest_is_read_in_place(tmp_path):
    paths = slides(tmp_path / "slow", 4)
    with Stage(tmp_path / "fast", 2500) as stage:
        found = [stage.fetch(path) for path in paths]
        assert [text != str(path) for text, path in zip(found, paths, strict=True)] == [
            True, True, False, False,
        ]  # fmt: skip
        assert sum(p.stat().st_size for p in stage.folder.rglob("*.svs")) <= 2500
        stage.release(paths[0])
        assert stage.fetch(paths[2]) != str(paths[2])


def test_a_slide_held_twice_goes_after_the_second_release(tmp_path):
    (path,) = slides(tmp_path / "slow", 1)
    with Stage(tmp_path / "fast", 10_000) as stage:
        stage.fetch(path)
        stage.fetch(path)
        stage.release(path)
        assert list(stage.folder.rglob("*.svs"))
        stage.release(path)
        assert not list(stage.folder.rglob("*.svs"))


def test_a_missing_slide_is_left_to_the_reader_to_report(tmp_path):
    with Stage(tmp_path / "fast", 10_000) as stage:
        assert stage.fetch(tmp_path / "gone.svs") == str(tmp_path / "gone.svs")
        stage.release(tmp_path / "gone.svs")


def test_a_set_of_files_is_staged_whole(tmp_path, dicom_series):
    with Stage(tmp_path / "fast", 10**9) as stage:
        local = stage.fetch(dicom_series)
        with wp.open_slide(local) as copy, wp.open_slide(dicom_series) as original:
            assert copy.dimensions == original.dimensions
            assert copy.fingerprint() == original.fingerprint()


def test_what_a_killed_process_left_is_removed(tmp_path):
    host, me = this_host(), this_process()
    left = tmp_path / f"wsipipe-stage-{host}.999999999.abc-x"
    kept = [
        f"wsipipe-stage-{me}-x",
        f"wsipipe-stage-{host}-ns4026.999999999.abc-x",  # a container of the same host's name
        "wsipipe-stage-elsewhere.999999999.abc-x",
        "wsipipe-stage-mine",
    ]
    for name in (left.name, *kept):
        (tmp_path / name).mkdir()
    with Stage(tmp_path, 10):
        pass
    assert not left.exists()
    assert all((tmp_path / name).exists() for name in kept)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--stage"):
        Stage(tmp_path / "file", 10)


def test_an_error_of_a_storage_library_lets_the_slide_be_read_where_it_lies(tmp_path, monkeypatch):
    def fails(path, folder):
        raise LookupError("a client's own error")

    source = tmp_path / "a.svs"
    source.write_bytes(b"pixels")
    monkeypatch.setattr("wsipipe.slide.staging._copy_slide", fails)
    with Stage(tmp_path / "stage") as stage:
        assert stage.fetch(source) == str(source)
