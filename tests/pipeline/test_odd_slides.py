"""Slides as they really arrive, in one run: each ends as it should, and none stops another."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsipipe as wp
from tests.pipeline.odd_slides import ODD_NAMES, make_all
from wsipipe.store.verify import verify_run

Make = Callable[..., Any]
# Id -> words that the reason must hold.
FAIL = {
    "zero_byte": "is empty",
    "text": "a text file",
    "html_error": "HTML page",
    "lfs_pointer": "Git LFS pointer",
    "random": "cannot open",
    "jpeg_named": "JPEG image under the name of a slide",
    "trunc_header": "cut off",
    "trunc_30": "cut off",
    "trunc_90": "cut off",
    "trunc_last_1k": "cut off",
    "zero_hole": "tiles cannot be read",
    "tile_corrupt": "tiles cannot be read",
    "tile_truncated": "tiles cannot be read",
    "tile_not_jpeg": "tiles cannot be read",
    "mpp_and_mag_missing": "--slide-mpp",
    "generic_72dpi": "outside 0.05 to 20",
    "generic_no_unit": "--slide-mpp",
    "gray8": "--slide-mpp",
    "planar_rgb": "--slide-mpp",
    "rgba_transparent": "--slide-mpp",
    "untiled_strips": "--slide-mpp",
    "huge_single_level_sparse": "--slide-mpp",
    "huge_single_level_zstd": "--slide-mpp",
    "flat": "--slide-mpp",
    "flat.bmp": "--slide-mpp",
    # 0.499 by 0.998 µm: the coarser axis decides.
    "generic_nonsquare_mpp": "coarser than the 0.5",
    "level_order_reversed": "do not descend",
    "gray16_fluor": "16-bit",
    "rgb16": "16-bit",
    "float32": "floating-point",
    "cmyk": "CMYK",
    "fluor_5ch": "5 channels",
    "dangling": "link to nothing",
    "self": "link to nothing",
    "orphan_mrxs/case": "case/ is missing",
}
EMPTY = {
    "all_white", "all_black", "white_noise_only", "pen_only", "dust_only", "tiny_1px",
    "smaller_than_tile",
}  # fmt: skip
DONE = {
    "ok_small", "ok_pyramid", "link_ok", "mpp_missing", "mpp_zero", "mpp_text", "mpp_comma",
    "mpp_in_nm", "mpp_conflicts_mag", "mpp_negative", "generic_ok", "single_level", "odd_factors",
    "tile_512", "bigtiff", "thin_strip", "no_thumbnail", "tile_zero_length", "jp2k_33003",
    "jp2k_33005", "ome_subifd_pyramid", "dup/a/slide", "dup/b/slide",
    *(
        name.removesuffix(".svs").removesuffix(".SVS").replace("\n", "%0A") for name in ODD_NAMES
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "in"
    make_all(folder)
    return folder


def test_each_ends_as_it_should(odd: Path, tmp_path: Path, make_encoder: Make) -> None:
    out = tmp_path / "out"
    named = [odd / name for name in ("flat.png", "flat.bmp", "no_extension")]
    result = wp.extract([odd, *named], encoder=make_encoder(), out=out)
    assert set(result.failed) == set(FAIL)
    assert set(result.empty) == EMPTY
    assert set(result.done) == DONE
    assert result.pending == ()
    said = {name: result.reasons[name] for name in FAIL}
    assert {name for name, words in FAIL.items() if words not in said[name]} == set()
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["slide_id"] for line in lines} == set(FAIL)
    assert all(line["remedy"] for line in lines)
    assert not verify_run(out).damaged
    # A zero-length tile was never scanned: it is glass, not black and not damage.
    holed = wp.read_features(out / "features" / "mean" / "tile_zero_length.h5")
    inside = (holed.coords // 256 == (1, 1)).all(axis=1)
    assert inside.sum() == 16
    assert (holed.features[inside] > 0.85).all()
    assert not holed.tile_status.any()


def test_what_lacks_only_its_resolution_is_done_once_that_is_given(
    odd: Path, tmp_path: Path, make_encoder: Make
) -> None:
    names = (
        "planar_rgb.tif", "rgba_transparent.tif", "untiled_strips.tif", "flat.png",
        "generic_no_unit.tif", "generic_72dpi.tif",
    )  # fmt: skip
    result = wp.extract(
        [odd / name for name in names], encoder=make_encoder(), out=tmp_path / "o", slide_mpp=0.5
    )
    assert len(result.done) == len(names)


def test_two_names_that_are_one_but_for_case_start_nothing(
    odd: Path, tmp_path: Path, make_encoder: Make
) -> None:
    small = (odd / "ok_small.svs").read_bytes()
    for name in ("slide.svs", "Slide.svs", "slide.tiff"):
        (tmp_path / "dup").mkdir(exist_ok=True)
        (tmp_path / "dup" / name).write_bytes(small)
    with pytest.raises(wp.ConfigError, match="the id"):
        wp.extract(tmp_path / "dup", encoder=make_encoder(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_slide_whose_name_is_no_utf8_is_extracted_like_any_other(
    tmp_path: Path, make_svs: Make
) -> None:
    """Old archives hold such names; every table and record must be readable afterwards."""
    odd = make_svs(tmp_path / "plain.svs").rename(tmp_path / os.fsdecode(b"caf\xe9.svs"))
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "wsipipe", "extract", "--encoder", "texture", "--tissue", "none",
         "--json", "--out", str(out), str(odd)],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert len(wp.read_features(out / "features" / "texture" / "caf%E9.h5").features) > 0
    assert not verify_run(out).findings
