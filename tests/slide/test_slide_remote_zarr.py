"""Remote slides through fsspec, S3 through moto's server on loopback, and OME-Zarr."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from slidekit import reduced, tissue

import wsipipe as wp
from wsipipe.errors import SlideOpenError
from wsipipe.slide import Stage, fingerprint

fsspec = pytest.importorskip("fsspec", reason="the extra [s3] is not installed")


@pytest.fixture
def remote(slide_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/cohort/slide.svs", slide_path.read_bytes())
    yield "memory://cohort/slide.svs"
    memory.rm("/cohort", recursive=True)


def test_a_remote_slide_is_read_as_a_local_one(remote, slide_path, image):
    with wp.open_slide(remote) as far, wp.open_slide(slide_path) as near:
        assert far.reader == "tiff"
        assert "remote" in far.reader_reason
        assert far.mpp_xy == near.mpp_xy
        assert far.levels == near.levels
        assert np.array_equal(far.read(10, 20, 300, 200), image[20:220, 10:310])
        grids = [wp.make_grid(s, None, tile_px=100, mpp=0.5) for s in (far, near)]
        for (rows, tiles), (_, others) in zip(
            wp.iter_tiles(far, grids[0]), wp.iter_tiles(near, grids[1]), strict=True
        ):
            assert len(rows) == len(grids[0])
            assert np.array_equal(tiles, others)
    assert fingerprint(remote) == fingerprint(slide_path)


def test_a_remote_slide_can_be_staged(tmp_path, remote, slide_path):
    with Stage(tmp_path / "fast", 10**9) as stage:
        local = stage.fetch(remote)
        assert local.startswith(str(stage.folder))
        assert Path(local).read_bytes() == slide_path.read_bytes()


def test_a_remote_slide_that_is_not_there_says_so(remote):
    with pytest.raises(SlideOpenError, match="cannot be opened"):
        wp.open_slide("memory://cohort/none.svs")
    with pytest.raises(SlideOpenError, match="unknown kind of address"):
        wp.open_slide("gopher9://host/x.svs")


def test_tiffslide_reads_the_same_pixels(slide_path, image):
    pytest.importorskip("tiffslide")
    with wp.open_slide(slide_path, reader="tiffslide") as slide:
        assert slide.reader == "tiffslide"
        assert slide.mpp == 0.25
        assert np.array_equal(slide.read(500, 300, 500, 400), image[300:700, 500:1000])


@pytest.mark.filterwarnings("ignore")
def test_s3(slide_path, image, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    try:
        address = "http://{}:{}".format(*moto.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket="cohort")
        client.upload_file(str(slide_path), "cohort", "a/slide.svs")
        fsspec.filesystem("s3").clear_instance_cache()
        with wp.open_slide("s3://cohort/a/slide.svs") as slide:
            assert np.array_equal(slide.read(10, 20, 300, 200), image[20:220, 10:310])
            grid = wp.make_grid(slide, None, tile_px=100, mpp=0.5)
            assert sum(len(rows) for rows, _ in wp.iter_tiles(slide, grid)) == len(grid)
        with pytest.raises(SlideOpenError, match="cannot be opened"):
            wp.open_slide("s3://cohort/none.svs")
    finally:
        moto.stop()


@pytest.fixture
def web(slide_path, monkeypatch):
    """A web server on loopback that answers ranged requests."""
    web = pytest.importorskip("aiohttp.web")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    loop = asyncio.new_event_loop()
    application = web.Application()
    application.router.add_static("/", slide_path.parent)
    runner = web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/{slide_path.name}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.filterwarnings("ignore")
def test_http(web, slide_path, image):
    with wp.open_slide(web) as slide:
        assert np.array_equal(slide.read(10, 20, 300, 200), image[20:220, 10:310])
    assert fingerprint(web) == fingerprint(slide_path)
    with pytest.raises(SlideOpenError, match="cannot be opened"):
        wp.open_slide(web.replace("slide.svs", "none.svs"))


def write_zarr(path, levels, *, axes="cyx", dtype=np.uint8, version=2):
    zarr = pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    order = {"cyx": (2, 0, 1), "yxc": (0, 1, 2)}[axes[-3:]]
    scales = []
    for number, image in enumerate(levels):
        data = image.transpose(order).astype(dtype)
        data = data.reshape((1,) * (len(axes) - 3) + data.shape)
        chunk = tuple(
            128 if axis in "yx" else size for axis, size in zip(axes, data.shape, strict=True)
        )
        array = group.create_array(str(number), shape=data.shape, chunks=chunk, dtype=data.dtype)
        array[...] = data
        ratio = levels[0].shape[0] / image.shape[0]
        scale = [ratio * 0.25 if axis in "yx" else 1.0 for axis in axes]
        scales.append(
            {
                "path": str(number),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    units = {"y": {"unit": "micrometer"}, "x": {"unit": "micrometer"}}
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": [{"name": a, **units.get(a, {})} for a in axes],
         "datasets": scales}
    ]  # fmt: skip
    json.dumps(dict(group.attrs))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("axes", ["cyx", "tczyx"[:2] + "cyx"[1:], "yxc"])
@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path, image, axes, version):
    axes = "tcyx" if axes == "tcyx" else axes
    path = write_zarr(tmp_path / "a.zarr", [image, reduced(image, 2)], axes=axes, version=version)
    with wp.open_slide(path) as slide:
        assert slide.reader == "zarr"
        assert slide.mpp == 0.25
        assert len(slide.levels) == 2
        assert np.array_equal(slide.read(100, 200, 300, 250), image[200:450, 100:400])
        assert np.array_equal(slide.read_level(1, 0, 0, 500, 350), reduced(image, 2))
        assert slide.fingerprint()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("axes", ["cyx", "yxc"])
@pytest.mark.parametrize("version", [2, 3])
def test_chunks_of_a_zarr_that_were_not_written_are_background(tmp_path, image, axes, version):
    sparse = image.copy()
    sparse[128:256, 256:640] = 0  # whole chunks: the writer leaves them out
    sparse[300:310, 300:310] = 0
    path = write_zarr(tmp_path / "a.zarr", [sparse], axes=axes, version=version)
    expected = sparse.copy()
    expected[128:256, 256:640] = 255
    with wp.open_slide(path) as slide:
        assert np.array_equal(slide.read(0, 0, 1000, 700), expected)


@pytest.mark.filterwarnings("ignore")
def test_zarr_that_is_no_brightfield_image_is_refused(tmp_path):
    image = tissue(200, 200)
    path = write_zarr(tmp_path / "a.zarr", [image], dtype=np.uint16)
    with pytest.raises(SlideOpenError, match="uint16"):
        wp.open_slide(path)
    path = write_zarr(tmp_path / "b.zarr", [np.concatenate([image, image], axis=2)])
    with pytest.raises(SlideOpenError, match="6 channels"):
        wp.open_slide(path)
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(SlideOpenError, match="Zarr"):
        wp.open_slide(tmp_path / "c.zarr")
    assert not list((tmp_path / "c.zarr").iterdir())
