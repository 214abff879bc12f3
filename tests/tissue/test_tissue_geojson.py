"""Masks as GeoJSON: what others write is read, what is written is read by others, junk is named."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsipipe as wp
from wsipipe.errors import ConfigError, TissueError
from wsipipe.tissue import (
    detect_tissue,
    read_roi,
    read_tissue_geojson,
    roi_settings,
    tissue_settings,
    write_tissue_geojson,
)
from wsipipe.tissue.geojson import recorded

SlideOf = Callable[..., wp.Slide]
SQUARE = [[100, 100], [500, 100], [500, 500], [100, 500], [100, 100]]
HOLE = [[200, 200], [300, 200], [300, 300], [200, 300], [200, 200]]
OTHER = [[600, 100], [700, 100], [700, 200], [600, 200], [600, 100]]
MPP_AREA = 0.25e-6  # mm² of a pixel at 0.5 µm


@pytest.fixture
def slide(slide_of: SlideOf) -> wp.Slide:
    """1000 x 800 px at 0.5 µm."""
    return slide_of(np.full((800, 1000, 3), 243, np.uint8), 0.5)


def feature(rings: list[Any], kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), **more}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def write(document: Any, name: str = "a.geojson") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


TRIDENT_CRS = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
DIALECTS: dict[str, tuple[Any, float]] = {
    "QuPath collection": (
        collection(feature([SQUARE, HOLE], objectType="annotation", classification={"name": "T"})),
        160_000 - 10_000,
    ),
    "QuPath list": ([feature([SQUARE]), feature([OTHER])], 170_000),
    "QuPath list of geometries": ([{"type": "Polygon", "coordinates": [OTHER]}], 10_000),
    "TRIDENT": (
        collection(
            feature([SQUARE, HOLE], tissue_id=0), feature([OTHER], tissue_id=1), crs=TRIDENT_CRS
        ),
        160_000,
    ),
    "multipolygon": (collection(feature([[SQUARE, HOLE], [OTHER]], "MultiPolygon")), 160_000),
    "one feature": (feature([SQUARE]), 160_000),
    "bare geometry": ({"type": "Polygon", "coordinates": [SQUARE]}, 160_000),
    "geometry collection": (
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [OTHER]}]},
        10_000,
    ),
    "CLAM contours": (
        {
            "tissue": [[[p] for p in SQUARE[:4]], OTHER[:4]],
            "holes": [[[[p] for p in HOLE[:4]]], []],
        },
        160_000,
    ),
    "open rings": (collection(feature([SQUARE[:4], HOLE[:4]])), 150_000),
    "clockwise": (collection(feature([SQUARE[::-1], HOLE])), 150_000),
    "third coordinate": (collection(feature([[[*p, 0] for p in SQUARE]])), 160_000),
    "overlapping": (collection(feature([SQUARE]), feature([SQUARE]), feature([HOLE])), 160_000),
    "points and lines beside": (
        collection(
            feature([SQUARE]), feature([1, 1], "Point"), feature([[1, 1], [2, 2]], "LineString")
        ),
        160_000,
    ),
    "ignored class": (
        collection(feature([SQUARE]), feature([OTHER], classification={"name": "Ignore*"})),
        160_000,
    ),
    "no geometry": (collection(feature([SQUARE]), {"type": "Feature", "geometry": None}), 160_000),
    "degenerate rings": (
        collection(feature([SQUARE]), feature([[[1, 1], [2, 2], [1, 1]]]), feature([[]])),
        160_000,
    ),
    # A bow tie: both wings count.
    "self-crossing": (
        collection(feature([[[100, 100], [300, 300], [300, 100], [100, 300], [100, 100]]])),
        20_000,
    ),
    "empty collection": (collection(), 0),
    "beyond the edge a little": (
        collection(feature([[[-1, 100], [500, 100], [500, 500], [-1, 500], [-1, 100]]])),
        200_000,
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_masks_of_other_tools_are_read(
    slide: wp.Slide, written: Callable[[Any], Path], dialect: str
) -> None:
    document, area0 = DIALECTS[dialect]
    found = read_tissue_geojson(written(document), slide)
    assert found.area_mm2 == pytest.approx(area0 * MPP_AREA, rel=1e-9, abs=1e-12)
    assert all(p.is_valid for p in found.polygons())
    boxes = np.array([[0, 0, 1000, 800]], float)
    assert found.coverage(boxes)[0] == pytest.approx(area0 / 800_000, abs=1e-6)


def test_a_byte_order_mark_is_no_harm(slide: wp.Slide, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(collection(feature([SQUARE]))).encode())
    assert not read_tissue_geojson(path, slide).is_empty


def test_coverage_follows_the_polygon_and_not_its_pixels(
    slide: wp.Slide, written: Callable[[Any], Path]
) -> None:
    found = read_tissue_geojson(written(collection(feature([SQUARE]))), slide)
    # 500 lies within a mask pixel (16 level-0 px): the polygon decides.
    assert found.coverage(np.array([[490.0, 100, 510, 120]])).tolist() == [0.5]


JUNK = {
    "empty file": ("", "empty file"),
    "white space": ("  \n", "empty file"),
    "no JSON": ("{", "not valid JSON"),
    "a number": ("7", "not GeoJSON"),
    "other JSON": ('{"a": 1}', "not GeoJSON"),
    "text for numbers": (json.dumps(collection(feature([[["a", "b"]] * 4]))), "not GeoJSON"),
    "not finite": ('{"type":"Polygon","coordinates":[[[0,0],[NaN,1],[1,1]]]}', "finite"),
    "ring of numbers": (json.dumps(feature([[1, 2, 3]])), "not GeoJSON"),
    "no features": ('{"type":"FeatureCollection"}', "not GeoJSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "outside the slide": (
        json.dumps(collection(feature([[[x + 5000, y] for x, y in SQUARE]]))),
        "outside the slide",
    ),
    "another level": (
        json.dumps(collection(feature([[[x * 4, y * 4] for x, y in SQUARE]]))),
        "outside the slide",
    ),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_refused_with_the_slide_the_file_and_a_remedy(
    slide: wp.Slide, written: Callable[[Any], Path], name: str
) -> None:
    text, says = JUNK[name]
    with pytest.raises(TissueError, match=says) as caught:
        read_tissue_geojson(written(text), slide)
    assert "a.png" in str(caught.value)
    assert "a.geojson" in str(caught.value)
    assert caught.value.remedy


def test_no_text_file_and_no_file(slide: wp.Slide, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TissueError, match="not a text file"):
        read_tissue_geojson(tmp_path / "a.geojson", slide)
    with pytest.raises(TissueError, match="cannot be read"):
        read_tissue_geojson(tmp_path / "none.geojson", slide)


def test_half_a_million_vertices(slide: wp.Slide, written: Callable[[Any], Path]) -> None:
    angle = np.linspace(0, 2 * np.pi, 500_000, endpoint=False)
    radius = 300 + 20 * np.sin(400 * angle)
    ring = np.stack([500 + radius * np.cos(angle), 400 + radius * np.sin(angle)], 1)
    path = written(collection(feature([ring.tolist()])))
    rows, columns = np.mgrid[0:760:8, 0:960:8]
    corner = np.stack([columns.ravel(), rows.ravel()], 1).astype(float)
    boxes = np.hstack([corner, corner + 8])
    begun = time.process_time()
    found = read_tissue_geojson(path, slide)
    covered = found.coverage(boxes)
    assert time.process_time() - begun < 20
    x, y = ring.T
    area0 = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    assert covered.sum() * 64 == pytest.approx(area0, rel=1e-5)


# --- written here -------------------------------------------------------------------------------


def test_a_round_trip_loses_nothing(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, tmp_path: Path
) -> None:
    slide = slide_of(section[0], 3.7)  # down-samples that are no whole numbers
    tissue = detect_tissue(slide)
    path = tmp_path / "a.geojson"
    data = write_tissue_geojson(tissue, path, slide_id="x/a", fingerprint="f0")
    assert path.read_bytes() == data
    again = read_tissue_geojson(path, slide)
    np.testing.assert_array_equal(again.mask, tissue.mask)
    assert again.downsample == tissue.downsample
    assert again.area_mm2 == pytest.approx(tissue.area_mm2, rel=1e-12)
    boxes = np.random.default_rng(0).uniform(0, 700, (500, 2))
    boxes = np.hstack([boxes, boxes + 40])
    np.testing.assert_allclose(again.coverage(boxes), tissue.coverage(boxes), atol=1e-6)
    # A third time changes no vertex any more.
    second = json.loads(write_tissue_geojson(again, slide_id="x/a"))
    assert [f["geometry"] for f in second["features"]] == [
        f["geometry"] for f in json.loads(data)["features"]
    ]


def test_it_is_written_as_qupath_opens_it(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf
) -> None:
    document = json.loads(write_tissue_geojson(detect_tissue(slide_of(section[0])), slide_id="a"))
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == 2
    for index, item in enumerate(document["features"]):
        assert item["type"] == "Feature"
        uuid.UUID(item["id"])
        assert item["geometry"]["type"] == "Polygon"
        for ring in item["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 5
        properties = item["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["classification"]["name"] == "Tissue"
        assert len(properties["classification"]["color"]) == 3
        assert properties["tissue_id"] == index
    assert len(document["features"][0]["geometry"]["coordinates"]) == 2  # its hole


def test_nothing_but_the_id_names_the_slide(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, tmp_path: Path
) -> None:
    slide = slide_of(section[0], name="DOE_JANE")
    data = write_tissue_geojson(detect_tissue(slide), slide_id="s1")
    assert b"DOE" not in data
    assert str(tmp_path).encode() not in data


def test_the_mask_of_another_slide_is_refused(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, tmp_path: Path
) -> None:
    path = tmp_path / "m.geojson"
    write_tissue_geojson(detect_tissue(slide_of(section[0])), path)
    other = slide_of(section[0][:590], name="b")
    with pytest.raises(TissueError, match=r"800 x 600 px, this one has 800 x 590"):
        read_tissue_geojson(path, other)


def test_an_edited_file_no_longer_counts_as_written_here(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, tmp_path: Path
) -> None:
    path = tmp_path / "m.geojson"
    write_tissue_geojson(detect_tissue(slide_of(section[0])), path, fingerprint="f")
    known = recorded(path)
    assert known is not None
    assert known["slide_fingerprint"] == "f"
    document = json.loads(path.read_text())
    document["features"].pop()
    path.write_text(json.dumps(document))
    assert recorded(path) is None
    assert recorded(tmp_path / "none") is None


# --- a folder of edited masks -------------------------------------------------------------------


def test_masks_of_a_folder_are_taken_by_id(
    slide: wp.Slide, written: Callable[..., Path], tmp_path: Path
) -> None:
    written(collection(feature([SQUARE])), "masks/case 1/a.geojson")
    written(collection(feature([OTHER])), "masks/b.json")
    folder = str(tmp_path / "masks")
    one = detect_tissue(slide, folder, slide_id="case 1/a")
    two = detect_tissue(slide, folder, slide_id="ward/b")  # by base name
    assert one.area_mm2 == pytest.approx(160_000 * MPP_AREA)
    assert two.area_mm2 == pytest.approx(10_000 * MPP_AREA)
    assert one.settings == tissue_settings(folder, slide_id="case 1/a")
    assert one.settings["sha256"] != two.settings["sha256"]
    with pytest.raises(TissueError, match=r"no mask c\.geojson lies in"):
        detect_tissue(slide, folder, slide_id="c")


# --- regions of interest ------------------------------------------------------------------------


@pytest.fixture
def annotations(written: Callable[..., Path]) -> Path:
    tumour = {"name": "Tumor"}
    return written(
        collection(
            feature([SQUARE], classification=tumour),
            feature([OTHER], classification={"name": "Tumor: Positive"}),
            feature([HOLE], properties={}, classification="Stroma"),
            feature([[[0, 0], [50, 0], [50, 50], [0, 50], [0, 0]]]),
        ),
        "roi/a.geojson",
    )


@pytest.mark.parametrize(
    ("classes", "area0"),
    [("tumor", 170_000), ("Stroma", 10_000), ("Tumor: Positive", 10_000), ((), 172_500)],
)
def test_regions_of_a_class(slide: wp.Slide, annotations: Path, classes: Any, area0: float) -> None:
    for path in (annotations, annotations.parent):
        roi = read_roi(path, slide, slide_id="a", classes=classes)
        assert roi.area_mm2 == pytest.approx(area0 * MPP_AREA)


def test_regions_keep_only_tiles_within_them(slide: wp.Slide, annotations: Path) -> None:
    roi = read_roi(annotations, slide, slide_id="a", classes="Stroma")
    whole = detect_tissue(slide, "none")
    grid = wp.make_grid(slide, whole, tile_px=50, mpp=0.5, roi=roi)
    assert set(map(tuple, grid.coords.tolist())) == {(x, y) for x in (200, 250) for y in (200, 250)}


def test_a_class_that_is_not_there_is_named_with_those_that_are(
    slide: wp.Slide, annotations: Path
) -> None:
    with pytest.raises(TissueError, match=r"no annotation of class 'Tumour'.*Stroma, Tumor"):
        read_roi(annotations, slide, slide_id="a", classes="Tumour")


def test_a_file_without_annotations_is_an_empty_region(
    slide: wp.Slide, written: Callable[..., Path]
) -> None:
    roi = read_roi(written(collection(), "e.geojson"), slide, slide_id="a", classes="Tumor")
    assert roi.is_empty
    assert len(wp.make_grid(slide, None, tile_px=50, mpp=0.5, roi=roi)) == 0


def test_removed_pen_is_remembered_and_is_no_tissue_to_others(
    slide_of: SlideOf, tmp_path: Path
) -> None:
    rgb = np.full((200, 300, 3), 243, np.uint8)
    rgb[50:150, 100:200] = (30, 160, 130)
    slide = slide_of(rgb)
    tissue = detect_tissue(slide)
    path = tmp_path / "m.geojson"
    assert json.loads(write_tissue_geojson(tissue, path))["features"] == []
    again = read_tissue_geojson(path, slide)
    np.testing.assert_array_equal(again.pen, tissue.pen)
    assert again.pen_mm2 == tissue.pen_mm2 > 0


def test_a_region_outside_the_slide_is_refused_and_a_generous_one_cut(
    slide: wp.Slide, written: Callable[..., Path]
) -> None:
    far = written(collection(feature([[[x + 5000, y] for x, y in SQUARE]])), "far.geojson")
    with pytest.raises(TissueError, match="outside the slide"):
        read_roi(far, slide, slide_id="a")
    wide = [[-900, -900], [9000, -900], [9000, 9000], [-900, 9000]]
    roi = read_roi(written(collection(feature([wide])), "w.geojson"), slide, slide_id="a")
    assert roi.area_mm2 == pytest.approx(800_000 * MPP_AREA)


def test_settings_of_regions_hold_classes_and_content(annotations: Path) -> None:
    settings = roi_settings(annotations.parent, slide_id="a", classes="Tumor")
    assert settings["classes"] == ["Tumor"]
    assert settings["sha256"] == roi_settings(annotations)["sha256"]
    assert "sha256" not in roi_settings(annotations.parent)
    with pytest.raises(ConfigError, match="does not exist"):
        roi_settings(annotations / "none")


def test_a_name_with_dots_keeps_them(
    slide_of: SlideOf, written: Callable[..., Path], tmp_path: Path
) -> None:
    slide = slide_of(np.full((800, 1000, 3), 243, np.uint8), 0.5, "TCGA-XX.1234-ab")
    written(collection(feature([SQUARE])), "masks/TCGA-XX.1234-ab.geojson")
    assert not detect_tissue(slide, str(tmp_path / "masks")).is_empty


def test_a_folder_without_masks_is_refused_before_any_slide(tmp_path):
    (tmp_path / "notes.txt").write_text("masks will come")
    with pytest.raises(ConfigError, match="No mask lies in the folder"):
        tissue_settings(str(tmp_path))
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "a.geojson").write_text("{}")
    assert tissue_settings(str(tmp_path))["method"] == "geojson"
