"""A synthetic slide is a real slide, and what is said of it is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide
from PIL import Image
from scipy import ndimage
from shapely.geometry import shape

from wsipipe.errors import ConfigError, OutputError
from wsipipe.synth import SlideTruth, make_slide


def read(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        region = slide.read_region((0, 0), level, slide.level_dimensions[level])
        return np.asarray(region.convert("RGB"))


def test_openslide_and_tiffslide_open_it_as_an_aperio_slide(tumour_slide: SlideTruth) -> None:
    with (
        openslide.OpenSlide(tumour_slide.path) as slide,
        tiffslide.TiffSlide(tumour_slide.path) as other,
    ):
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 1.0
        assert slide.level_dimensions == ((2304, 2100), (576, 525))
        assert slide.level_downsamples == (1.0, 4.0)
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert other.level_dimensions == slide.level_dimensions
        assert other.properties["tiffslide.mpp-x"] == 1.0
        mine = np.asarray(slide.read_region((300, 400), 0, (256, 256)).convert("RGB"))
        theirs = np.asarray(other.read_region((300, 400), 0, (256, 256)).convert("RGB"))
    assert np.abs(mine.astype(int) - theirs).max() <= 2


def test_reduced_level_is_the_area_average_of_level_0(tmp_path: Path) -> None:
    make_slide(tmp_path / "a.svs", width=2304, height=2100, mpp=2.0, codec="lzw")
    fine, coarse = read(tmp_path / "a.svs").astype(float), read(tmp_path / "a.svs", 1)
    average = fine.reshape(525, 4, 576, 4, 3).mean(axis=(1, 3))
    # Rounded, and empty glass is reduced without its grain.
    assert np.abs(average - coarse).max() <= 2.0
    assert np.abs(average - coarse).mean() < 0.5


def test_tissue_is_coloured_and_glass_is_not(tumour_slide: SlideTruth) -> None:
    pixels = np.asarray(
        Image.fromarray(read(tumour_slide.path)).resize(
            tumour_slide.tissue.shape[::-1], Image.Resampling.BOX
        )
    ).astype(int)
    colour = pixels.max(axis=-1) - pixels.min(axis=-1)
    inside, outside = colour[tumour_slide.tissue], colour[~tumour_slide.tissue]
    assert (outside > 12).mean() < 0.02
    assert np.median(inside) > 30


def test_tumour_is_darker_than_other_tissue(tumour_slide: SlideTruth) -> None:
    pixels = np.asarray(
        Image.fromarray(read(tumour_slide.path)).resize(
            tumour_slide.tissue.shape[::-1], Image.Resampling.BOX
        )
    ).astype(float)
    other = tumour_slide.tissue & ~tumour_slide.tumour
    red = pixels[..., 0]
    assert np.median(red[tumour_slide.tumour]) < np.median(red[other]) - 20


def test_masks_polygons_and_areas_agree(tumour_slide: SlideTruth) -> None:
    folder = tumour_slide.path.parent / "truth"
    summary = json.loads((folder / "a.json").read_text())
    scale = summary["mask_downsample"]
    for name in ("tissue", "tumour"):
        mask = np.asarray(Image.open(folder / name / "a.png")) > 0
        assert np.array_equal(mask, tumour_slide.masks[name])
        features = json.loads((folder / name / "a.geojson").read_text())["features"]
        area_px = sum(shape(feature["geometry"]).area for feature in features)
        assert area_px == mask.sum() * scale**2
        assert summary[f"{name}_mm2"] == pytest.approx(area_px * 1e-6, rel=1e-4)
    assert not (tumour_slide.tumour & ~tumour_slide.tissue).any()
    assert tumour_slide.tumour_fraction == pytest.approx(0.25, abs=0.03)


def test_fraction_is_the_share_of_a_box(tumour_slide: SlideTruth) -> None:
    whole = [0, 0, tumour_slide.width, tumour_slide.height]
    rows, columns = np.nonzero(tumour_slide.tumour)
    d = tumour_slide.downsample
    pixel = [columns[0] * d, rows[0] * d, columns[0] * d + d, rows[0] * d + d]
    measured = tumour_slide.fraction("tumour", [whole, pixel, [-50, -50, -10, -10]])
    assert measured[0] == pytest.approx(tumour_slide.tumour.mean(), abs=0.01)
    assert measured[1:].tolist() == [1.0, 0.0]


def test_same_seed_same_bytes_in_another_process_with_other_threads(tmp_path: Path) -> None:
    code = (
        "from wsipipe.synth import make_slide; import sys;"
        "make_slide(sys.argv[1], width=700, mpp=2.0, seed=4, workers=int(sys.argv[2]))"
    )
    for name, workers in (("one/a.svs", "1"), ("two/a.svs", "3")):
        target = str(tmp_path / name)
        subprocess.run([sys.executable, "-c", code, target, workers], check=True)
    one, two = ((tmp_path / name).read_bytes() for name in ("one/a.svs", "two/a.svs"))
    assert one == two
    make_slide(tmp_path / "a.svs", width=700, mpp=2.0, seed=5)
    assert (tmp_path / "a.svs").read_bytes() != one


@pytest.mark.parametrize(
    ("codec", "compression"),
    [("jp2k", "APERIO_JP2000_RGB"), ("lzw", "LZW"), ("deflate", "ADOBE_DEFLATE")],
)
def test_codecs_show_the_same_picture(tmp_path: Path, codec: str, compression: str) -> None:
    make_slide(tmp_path / "jpeg.svs", width=600, mpp=2.0, seed=1)
    make_slide(tmp_path / "other.svs", width=600, mpp=2.0, seed=1, codec=codec)
    with tifffile.TiffFile(tmp_path / "other.svs") as file:
        assert file.pages[0].compression.name == compression
    difference = read(tmp_path / "other.svs").astype(int) - read(tmp_path / "jpeg.svs")
    assert np.abs(difference).mean() < 6
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1


def test_no_mpp_leaves_the_resolution_out(tmp_path: Path) -> None:
    make_slide(tmp_path / "a.svs", width=300, mpp=2.0, name_mpp=False)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert "openslide.objective-power" not in slide.properties


def test_normal_slide_has_no_tumour(tmp_path: Path) -> None:
    truth = make_slide(tmp_path / "a.svs", width=600, mpp=2.0, label="normal")
    assert truth.label == "normal"
    assert truth.tumour_mm2 == 0
    assert truth.tissue_mm2 > 0.1
    assert truth.geojson("tumour")["features"] == []


def test_artefacts_lie_where_the_masks_say(tmp_path: Path) -> None:
    plain = make_slide(tmp_path / "plain.svs", width=1400, mpp=2.0, seed=2, codec="lzw")
    names = ("pen", "fold", "blur")
    marked = make_slide(
        tmp_path / "marked.svs", width=1400, mpp=2.0, seed=2, codec="lzw", artefacts=names
    )
    assert set(marked.masks) == {"tissue", "tumour", *names}
    assert np.array_equal(plain.tissue, marked.tissue)
    changed = np.abs(read(marked.path).astype(int) - read(plain.path)).max(axis=-1) > 3
    h, w = marked.tissue.shape
    d = marked.downsample
    grown = np.pad(changed, ((0, h * d - 1400), (0, w * d - 1400))).reshape(h, d, w, d)
    touched = grown.any(axis=(1, 3))
    said = marked.masks["pen"] | marked.masks["fold"] | marked.masks["blur"]
    assert not (touched & ~ndimage.binary_dilation(said, np.ones((3, 3)))).any()
    for name in ("pen", "fold"):
        where = marked.masks[name] & (marked.tissue | (name == "pen"))
        assert touched[where].mean() > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0},
        {"width": -5},
        {"width": 10**7},
        {"width": 512, "height": 3},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"mpp": -0.5},
        {"seed": -1},
        {"label": "cancer"},
        {"tumour_fraction": 0.0},
        {"tumour_fraction": 2.0},
        {"pieces": 0},
        {"codec": "webp"},
        {"quality": 0},
        {"artefacts": ("coffee",)},
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="Allowed"):
        make_slide(tmp_path / "deep" / "a.svs", **settings)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_an_output_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        make_slide(tmp_path / "file" / "a.svs", width=300, mpp=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [(64, 64), (257, 255), (3000, 100), (100, 3000)])
def test_any_size_opens(tmp_path: Path, size: tuple[int, int]) -> None:
    truth = make_slide(tmp_path / "a.svs", width=size[0], height=size[1], mpp=4.0)
    with openslide.OpenSlide(truth.path) as slide:
        assert slide.dimensions == size
        assert np.asarray(slide.read_region((0, 0), 0, size))[..., 3].min() == 255
        for level, dimensions in enumerate(slide.level_dimensions):
            slide.read_region((0, 0), level, dimensions)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from wsipipe.synth import make_slide;"
        "make_slide(sys.argv[1], width=int(sys.argv[2]), mpp=0.5);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / "a.svs"), str(side)],
                check=True, capture_output=True, text=True,
            ).stdout
        )
        for side in (2000, 30000)
    ]  # fmt: skip
    # 30,000 px squared are 2.7 GB of pixels.
    assert peak[1] - peak[0] < 250_000
