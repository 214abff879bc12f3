"""Which slides are found, and what they are called."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from slidekit import tissue, write_dicom

import wsipipe as wp
from wsipipe.errors import ConfigError, SlideOpenError
from wsipipe.slide import SlideEntry, find_slides, fingerprint


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def ids(*inputs):
    return [entry.slide_id for entry in find_slides([str(i) for i in inputs])]


def test_known_suffixes_of_any_case_are_found_and_one_is_removed(tmp_path):
    touch(
        tmp_path, "a.svs", "b.SVS", "c.tif", "d.tiff", "e.ome.tif", "f.OME.TIFF", "g.ndpi",
        "h.mrxs", "i.scn", "j.bif", "k.vms", "l.vmu", "m.svslide", "n.czi", "o.dcm",
        "TCGA-XX.1234-uuid.svs", "two.dots.v1.svs",
        "no.png", "no.jpg", "no.txt", "no.svs.part", "svs", ".hidden.svs", "._a.svs", ".git/x.svs",
    )  # fmt: skip
    assert ids(tmp_path) == [
        "TCGA-XX.1234-uuid", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n",
        "o", "two.dots.v1",
    ]  # fmt: skip


def test_folders_stay_in_the_id(tmp_path):
    touch(tmp_path, "x/a.svs", "y/a.svs", "a.svs")
    assert ids(tmp_path) == ["a", "x/a", "y/a"]


def test_single_files_and_urls_have_their_base_name(tmp_path):
    touch(tmp_path, "x/a.svs", "x/flat.png", "x/no_suffix")
    found = ids(
        tmp_path / "x/a.svs", tmp_path / "x/flat.png", tmp_path / "x/no_suffix",
        "s3://bucket/deep/b.svs", "https://host/c.ome.tiff?sig=1",
    )  # fmt: skip
    assert found == ["a", "flat", "no_suffix", "b", "c"]


def test_a_mirax_set_is_one_slide(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/thumb.tif")
    assert ids(tmp_path) == ["m"]


def test_a_zarr_folder_is_one_slide(tmp_path):
    touch(tmp_path, "z.zarr/0/0.0.0", "z.zarr/.zattrs", "z.zarr/inner.tif")
    assert ids(tmp_path) == ["z"]


def test_a_dicom_series_is_one_slide_whichever_way_it_is_named(dicom_series):
    assert ids(dicom_series) == ["case"]
    (entry,) = find_slides(str(dicom_series.parent))
    assert entry == SlideEntry("case", str(dicom_series))
    assert ids(dicom_series / "b.dcm") == ["b"]


def test_several_series_in_a_folder_are_told_apart(tmp_path):
    image = tissue(130, 130)
    write_dicom(tmp_path / "a.dcm", image, series="1.1")
    write_dicom(tmp_path / "b.dcm", image[:65, :65], series="1.1")
    write_dicom(tmp_path / "c.dcm", image, series="1.2")
    assert ids(tmp_path) == ["a", "c"]


def test_loops_are_not_followed_and_dangling_links_fail_as_slides(tmp_path):
    touch(tmp_path, "real/a.svs")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "other").symlink_to(tmp_path / "real")
    assert ids(tmp_path) == ["gone", "other/a", "real/a"]


def test_equal_ids_are_refused_naming_both(tmp_path):
    touch(tmp_path, "x/slide.svs", "x/slide.tiff")
    with pytest.raises(ConfigError) as caught:
        find_slides(str(tmp_path))
    assert "slide.svs" in str(caught.value)
    assert "slide.tiff" in str(caught.value)


@pytest.mark.parametrize("other", ["SLIDE.svs", "slide.SVS", "Slide.tif"])
def test_ids_equal_but_for_case_are_refused(tmp_path, other):
    touch(tmp_path, "slide.tif" if other != "Slide.tif" else "slide.svs", other)
    with pytest.raises(ConfigError, match="Two slides"):
        find_slides(str(tmp_path))


def test_ids_equal_but_for_unicode_form_are_refused(tmp_path):
    touch(tmp_path, "\u00e9.svs", "e\u0301.svs")
    with pytest.raises(ConfigError, match="Two slides"):
        find_slides(str(tmp_path))


def test_the_same_slide_named_twice_is_one(tmp_path):
    touch(tmp_path, "a.svs")
    assert ids(tmp_path, tmp_path / "a.svs") == ["a"]


@pytest.mark.parametrize("first", ["folder", "manifest"])
def test_what_the_user_says_of_a_slide_holds_wherever_it_is_said(tmp_path, first):
    (tmp_path / "a.svs").touch()
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,mpp\na.svs,0.9\n")
    named = [str(tmp_path), str(manifest)]
    found = find_slides(named if first == "folder" else named[::-1])
    assert [entry.mpp for entry in found] == [0.9]
    manifest.write_text("path,mpp\na.svs,0.9\na.svs,0.25\n")
    with pytest.raises(ConfigError, match=r"mpp 0\.9 and 0\.25"):
        find_slides([str(manifest)])


def test_a_folder_without_slides_and_a_missing_path_stop_the_run(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConfigError, match="no slides"):
        find_slides(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        find_slides(str(tmp_path / "gone"))
    with pytest.raises(ConfigError):
        find_slides([])


def write_manifest(path, text):
    path.write_text(text, encoding="utf-8-sig")
    return str(path)


@pytest.mark.parametrize("inputs", ["", [""], ["a.svs", ""]])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, inputs):
    touch(tmp_path, "a.svs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="empty"):
        find_slides(inputs)


def test_a_manifest_gives_paths_ids_and_mpp(tmp_path):
    touch(tmp_path, "a.svs", "sub/b.png")
    manifest = write_manifest(
        tmp_path / "m.csv",
        "path,slide_id,mpp,label\na.svs,case/1,0.2527,x\nsub/b.png,,,y\ngone.svs,,0.5,z\n"
        "s3://bucket/c.svs,,,\n",
    )
    assert find_slides(manifest) == [
        SlideEntry("case/1", str(tmp_path / "a.svs"), 0.2527),
        SlideEntry("b", str(tmp_path / "sub/b.png"), None),
        SlideEntry("gone", str(tmp_path / "gone.svs"), 0.5),
        SlideEntry("c", "s3://bucket/c.svs", None),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "column 'path'"),
        ("file,mpp\na.svs,1\n", "column 'path'"),
        ("path\n", "no slides"),
        ("path,mpp\n,0.5\n", "line 2"),
        ("path,mpp\na.svs,0.5\nb.svs,fast\n", "line 3"),
        ("path,mpp\na.svs,300\n", "line 2"),
        ("path,slide_id\na.svs,../up\n", "slide id"),
        ("path,slide_id\na.svs,/abs\n", "slide id"),
        ("path,slide_id\na.svs,x\nb.svs,X\n", "Two slides"),
        ('path\n"a.svs\n', "CSV"),
        ("path,path\na.svs,b.svs\n", "several columns 'path'"),
        ("path,mpp\n\na.svs,0.5\n\nb.svs,fast\n", "line 5"),
        ('path,slide_id\na.svs,"two\nlines"\n', "slide id"),
        (f"path,slide_id\na.svs,case/{'é' * 130}\n", "more than 247 bytes"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_place(tmp_path, text, word):
    with pytest.raises(ConfigError, match=word):
        find_slides(write_manifest(tmp_path / "m.csv", text))


def test_fingerprint_depends_on_content_alone(tmp_path, slide_path):
    same = tmp_path / "renamed.svs"
    shutil.copy(slide_path, same)
    os.utime(same, (1, 1))
    first = fingerprint(slide_path)
    assert len(first) == 64
    assert fingerprint(same) == first
    with wp.open_slide(same) as slide:
        assert slide.fingerprint() == first
    with same.open("ab") as file:
        file.write(b"x")
    assert fingerprint(same) != first


def test_fingerprint_covers_every_file_of_a_slide(dicom_series):
    first = fingerprint(dicom_series)
    assert fingerprint(dicom_series / "b.dcm") == first
    with (dicom_series / "c.dcm").open("ab") as file:
        file.write(b"xx")
    assert fingerprint(dicom_series) != first


def test_real_folder(real_data):
    found = {entry.slide_id: entry for entry in find_slides(str(real_data / "slides"))}
    assert "CMU-1-Small-Region_dicom" in found
    assert "P2_crop_bounds" in found
    assert not any("Data0000" in key or "1.2.826" in key for key in found)


def test_names_that_are_no_text_get_ids_that_are(tmp_path):
    names = [b"caf\xe9.svs", b"two\nlines.svs", "Ä 日本.svs".encode()]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found = find_slides(tmp_path)
    assert sorted(entry.slide_id for entry in found) == ["caf%E9", "two%0Alines", "Ä 日本"]
    assert sorted(os.fsencode(Path(entry.path).name) for entry in found) == sorted(names)


def test_a_path_that_no_file_can_have_is_one_failed_slide_of_a_manifest(tmp_path):
    touch(tmp_path, "a.svs")
    deep = f"{'x/' * 3000}b.svs"
    entries = find_slides(write_manifest(tmp_path / "m.csv", f"path\na.svs\n{deep}\n"))
    assert [entry.slide_id for entry in entries] == ["a", "b"]
    with pytest.raises(SlideOpenError, match="cannot be read: File name too long"):
        wp.open_slide(entries[1].path)
    with pytest.raises(SlideOpenError, match="cannot be read"):
        fingerprint(entries[1].path)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_slides(deep)


def test_a_locked_folder_is_one_failed_slide_of_a_manifest(tmp_path, monkeypatch):
    touch(tmp_path, "a.svs", "locked/b.svs")
    manifest = write_manifest(tmp_path / "m.csv", "path\na.svs\nlocked/b.svs\n")
    look = Path.stat

    def stat(path, **options):
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    entries = find_slides(manifest)
    assert [entry.slide_id for entry in entries] == ["a", "b"]
    with pytest.raises(SlideOpenError, match="cannot be read: Permission denied"):
        wp.open_slide(entries[1].path)
