"""Heatmaps put each number where its tile lies; QuPath's GeoJSON and the TIFF are well formed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsipipe.errors import ConfigError
from wsipipe.report.heatmap import (
    TileMap,
    draw_heatmap,
    heatmap_geojson,
    paint,
    tile_gallery,
    to_scale,
    write_heatmap_tiff,
)


def _map(coords, values, tile=100.0, size=(400, 300), mpp=0.5) -> TileMap:
    return TileMap(
        np.array(coords, dtype=float), np.array(values, dtype=float), tile, size, mpp, "s1"
    )


def test_each_pixel_shows_its_tile_and_nothing_elsewhere():
    tiles = _map([(0, 0), (200, 100)], [1.0, 2.0])
    heat = paint(tiles, tiles.values, 10)
    assert heat.shape == (30, 40)
    assert (heat[:10, :10] == 1).all()
    assert (heat[10:20, 20:30] == 2).all()
    assert np.isfinite(heat).sum() == 200


def test_overlaps_are_averaged():
    tiles = _map([(0, 0), (50, 0)], [1.0, 3.0])
    heat = paint(tiles, tiles.values, 10)
    np.testing.assert_array_equal(heat[0, :15], [1] * 5 + [2] * 5 + [3] * 5)


def test_tiles_of_fractional_size_leave_no_seams():
    edge = 100.7
    coords = [(i * edge, 0) for i in range(30)]
    tiles = _map(coords, np.arange(30), edge, (3100, 101))
    heat = paint(tiles, tiles.values, 7.3)
    assert np.isfinite(heat[0, : int(30 * edge / 7.3)]).all()


def test_tiles_smaller_than_a_pixel_still_show():
    tiles = _map([(395, 295)], [5.0], tile=2)
    assert np.nansum(paint(tiles, tiles.values, 50)) == 5


def test_scales_say_order_or_size():
    values = np.array([0.1, 0.2, 0.2, 10.0])
    np.testing.assert_allclose(to_scale(values, "percentile"), [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(to_scale(values, "absolute"), (values - 0.1) / 9.9)
    assert to_scale(np.array([3.0]), "percentile") == 1
    with pytest.raises(ConfigError, match="percentile or absolute"):
        to_scale(values, "log")


def test_the_picture_lies_over_the_slide_with_bars_and_words():
    tiles = _map([(0, 0), (100, 0)], [0.0, 1.0], size=(400, 400))
    background = np.full((40, 40, 3), 200, np.uint8)
    plain = np.asarray(
        Image.open(io.BytesIO(draw_heatmap(tiles, background=background, alpha=0.5)))
    )
    assert plain.shape[0] > 400  # a footer
    assert plain.shape[1] > 400  # a colour bar
    assert (plain[300, 300] == 200).all()  # no tile: the slide itself
    low, high = plain[50, 50].astype(int), plain[50, 150].astype(int)
    # inferno: black to pale yellow, half over grey 200
    np.testing.assert_allclose(low, [100, 100, 102], atol=3)
    np.testing.assert_allclose(high, [226, 228, 182], atol=3)


def test_geojson_is_what_qupath_reads():
    tiles = _map([(0, 0), (100.5, 0)], [0.25, 0.75], tile=100)
    document = json.loads(heatmap_geojson(tiles))
    assert document["type"] == "FeatureCollection"
    first, second = document["features"]
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["measurements"]["attention"] == 0.25
    ring = second["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [100.5, 0]
    assert ring[2] == [200.5, 100]
    assert len(first["properties"]["classification"]["color"]) == 3
    assert first["id"] != second["id"]
    assert heatmap_geojson(tiles) == heatmap_geojson(tiles)


def test_the_tiff_is_a_pyramid_of_known_resolution(tmp_path):
    tiles = _map([(i * 1000, 0) for i in range(20)], np.arange(20), 1000, (20000, 15000))
    write_heatmap_tiff(tiles, tmp_path / "s.tif", mpp=5)
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        levels = tiff.series[0].levels
        assert levels[0].shape == (1500, 2000, 3)
        assert [level.shape[1] for level in levels] == [2000, 1000, 500]
        page = tiff.pages[0]
        assert page.is_tiled
        per_cm = page.tags["XResolution"].value
        assert 10000 / (per_cm[0] / per_cm[1]) == pytest.approx(5, rel=1e-3)
    with pytest.raises(ConfigError, match="mpp"):
        write_heatmap_tiff(_map([(0, 0)], [1], mpp=None), tmp_path / "x.tif", mpp=5)


def test_a_gallery_holds_all_tiles():
    pictures = [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(10)]
    sheet = Image.open(io.BytesIO(tile_gallery(pictures, np.arange(10.0), columns=5, tile_px=64)))
    assert sheet.size == (5 * 68, 2 * 86)
    assert sheet.getpixel((3 * 68 + 30, 30)) == (60, 60, 60)


def test_numbers_without_their_tiles_are_refused():
    with pytest.raises(ConfigError, match="one for each tile"):
        _map([(0, 0)], [1.0, 2.0])
