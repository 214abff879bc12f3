"""Slides as they really arrive: broken, cut, mislabelled, absurd. All made from one drawn image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from imagecodecs import jpeg2k_encode, jpeg8_encode, zstd_encode
from PIL import Image

from tests.pipeline.conftest import draw

TILE = 256
IMAGE = draw(1024, 1024, 5)
QUARTER = IMAGE[256:768, 256:768]
Damage = Mapping[int, Callable[[bytes], bytes]]


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    cut = image[: height * factor, : width * factor]
    return cut.reshape(height, factor, width, factor, -1).mean((1, 3)).astype(image.dtype)


def jpeg(tile: np.ndarray) -> bytes:
    return jpeg8_encode(
        np.ascontiguousarray(tile), level=80, colorspace="RGB", outcolorspace="YCBCR",
        subsampling="420",
    )  # fmt: skip


def encoded(
    image: np.ndarray, edge: int, damage: Damage, encode: Callable[[np.ndarray], bytes] = jpeg
) -> Iterator[bytes]:
    number = 0
    for y in range(0, image.shape[0], edge):
        for x in range(0, image.shape[1], edge):
            tile = np.full((edge, edge, 3), 255, image.dtype)
            part = image[y : y + edge, x : x + edge]
            tile[: part.shape[0], : part.shape[1]] = part
            yield damage.get(number, bytes)(encode(tile))
            number += 1


def about(image: np.ndarray, said: str, codec: str = "JPEG/RGB Q=80") -> str:
    height, width = image.shape[:2]
    return f"Aperio Image Library v11.2.1 \r\n{width}x{height} ({TILE}x{TILE}) {codec}{said}"


YCBCR: dict[str, Any] = {
    "dtype": "uint8", "photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg",
    "metadata": None, "software": None,
}  # fmt: skip
USUAL = "|AppMag = 20|MPP = 0.4990"


def svs(
    path: Path,
    image: np.ndarray = IMAGE,
    said: str = USUAL,
    *,
    levels: tuple[int, ...] = (1, 4),
    damage: Damage | None = None,
    thumbnail: bool = True,
    edge: int = TILE,
    bigtiff: bool = False,
) -> bytes:
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for index, factor in enumerate(levels):
            level = image if factor == 1 else reduced(image, factor)
            hurt = (damage or {}) if index == 0 else {}
            tif.write(
                encoded(level, edge, hurt), shape=level.shape, tile=(edge, edge),
                description=about(level, said), **YCBCR,
            )  # fmt: skip
            if index == 0 and thumbnail:
                tif.write(
                    reduced(image, 8), rowsperstrip=16, compression="jpeg", photometric="rgb",
                    metadata=None, software=None, description=about(image, said) + " -> thumbnail",
                )  # fmt: skip
    return path.read_bytes()


def generic(
    path: Path, resolution: tuple[float, float] = (20040, 20040), unit: int = 3, **options: Any
) -> None:
    form = {"tile": (TILE, TILE), "compression": "deflate", "metadata": None, **options}
    with tifffile.TiffWriter(path) as tif:
        for factor in (1, 4):
            tif.write(
                QUARTER if factor == 1 else reduced(QUARTER, factor),
                resolution=(resolution[0] / factor, resolution[1] / factor),
                resolutionunit=unit, subfiletype=int(factor > 1), **form,
            )  # fmt: skip


def make_all(out: Path) -> None:
    """Write all of them below `out`."""
    out.mkdir(parents=True)
    small = svs(out / "ok_small.svs", QUARTER, levels=(1,))
    good = svs(out / "ok_pyramid.svs")
    _no_slides(out, good)
    _resolutions(out)
    _pyramids(out)
    _tiles(out)
    _contents(out)
    _kinds(out)
    _names(out, small, good)


def _no_slides(out: Path, good: bytes) -> None:
    contents = {
        "zero_byte": b"",
        "text": b"this is not a slide\n" * 50,
        "html_error": b"<!DOCTYPE html><html>404 Not Found</html>",
        "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
        + b"0" * 64
        + b"\nsize 1938955\n",
        "random": np.random.default_rng(0).bytes(65536),
        "trunc_header": good[:64],
        "trunc_30": good[: len(good) * 3 // 10],
        "trunc_90": good[: len(good) * 9 // 10],
        "trunc_last_1k": good[:-1024],
        "zero_hole": good[:60_000] + bytes(30_000) + good[90_000:],
    }
    for name, content in contents.items():
        (out / f"{name}.svs").write_bytes(content)


def _resolutions(out: Path) -> None:
    for name, said in {
        "mpp_missing": "|AppMag = 20",
        "mpp_and_mag_missing": "|Filename = x",
        "mpp_zero": "|AppMag = 20|MPP = 0",
        "mpp_text": "|AppMag = 20|MPP = n/a",
        "mpp_comma": "|AppMag = 20|MPP = 0,499",
        "mpp_in_nm": "|AppMag = 20|MPP = 499",
        "mpp_conflicts_mag": "|AppMag = 40|MPP = 0.499",
        "mpp_negative": "|AppMag = 20|MPP = -0.5",
    }.items():
        svs(out / f"{name}.svs", said=said)
    generic(out / "generic_ok.tif")
    generic(out / "generic_nonsquare_mpp.tif", (20040, 10020))
    generic(out / "generic_72dpi.tif", (72, 72), unit=2)
    generic(out / "generic_no_unit.tif", (1, 1), unit=1)


def _pyramids(out: Path) -> None:
    svs(out / "single_level.svs", levels=(1,))
    svs(out / "odd_factors.svs", levels=(1, 3, 7))
    svs(out / "level_order_reversed.svs", levels=(4, 2, 1), thumbnail=False)
    svs(out / "tile_512.svs", edge=512)
    svs(out / "bigtiff.svs", bigtiff=True)
    svs(out / "tiny_1px.svs", IMAGE[:1, :1], levels=(1,), thumbnail=False)
    strip = np.tile(IMAGE[480:544, :512], (1, 8, 1))
    svs(out / "thin_strip.svs", strip, levels=(1,), thumbnail=False)
    svs(out / "smaller_than_tile.svs", IMAGE[500:600, 500:650], levels=(1,), thumbnail=False)
    svs(out / "no_thumbnail.svs", thumbnail=False)
    white, tissue = jpeg(IMAGE[:TILE, :TILE] * 0 + 243), jpeg(QUARTER[:TILE, :TILE])
    with tifffile.TiffWriter(out / "huge_single_level_sparse.tif", bigtiff=True) as tif:
        blocks = (
            tissue if 30_100 <= k < 30_104 else white if k == 0 else b"" for k in range(313 * 313)
        )
        tif.write(blocks, shape=(80128, 80128, 3), tile=(TILE, TILE), **YCBCR)
    with tifffile.TiffWriter(out / "huge_single_level_zstd.tif", bigtiff=True) as tif:
        block = zstd_encode(np.full((512, 512, 3), 243, np.uint8))
        tif.write(
            (block for _ in range(98 * 98)), shape=(50176, 50176, 3), dtype="uint8",
            photometric="rgb", compression="zstd", tile=(512, 512), metadata=None, software=None,
        )  # fmt: skip


def _tiles(out: Path) -> None:
    for name, change in {
        "tile_zero_length": lambda b: b"",
        "tile_corrupt": lambda b: b[:40] + bytes(len(b) - 40),
        "tile_truncated": lambda b: b[: len(b) // 2],
        "tile_not_jpeg": lambda b: b"\xfe\xd8" + b[2:],
    }.items():
        svs(out / f"{name}.svs", damage={5: change})
    for code, space in ((33003, "SYCC"), (33005, "SRGB")):

        def encode(tile: np.ndarray, space: str = space) -> bytes:
            return jpeg2k_encode(
                tile, level=40, codecformat="J2K", colorspace=space, mct=space == "SRGB"
            )

        with tifffile.TiffWriter(out / f"jp2k_{code}.svs") as tif:
            tif.write(
                encoded(IMAGE, TILE, {}, encode), shape=IMAGE.shape, dtype="uint8",
                photometric="rgb", compression=code, tile=(TILE, TILE), metadata=None,
                software=None, description=about(IMAGE, USUAL, "J2K/YCC Q=70"),
            )  # fmt: skip


def _contents(out: Path) -> None:
    white = np.full_like(IMAGE, 244)
    noise = np.random.default_rng(0).normal(0, 3, IMAGE.shape)
    pen, dust = white.copy(), white.copy()
    pen[200:350, 100:950], pen[450:550, 150:750] = (30, 70, 200), (10, 120, 40)
    dust[::97, ::89] = 20
    svs(out / "all_white.svs", white)
    svs(out / "all_black.svs", white * 0)
    svs(out / "white_noise_only.svs", np.clip(white + noise, 0, 255).astype(np.uint8))
    svs(out / "pen_only.svs", pen)
    svs(out / "dust_only.svs", dust)


def _kinds(out: Path) -> None:
    gray = QUARTER.mean(2).astype(np.uint8)
    alpha = np.full((512, 512, 1), 255, np.uint8)
    alpha[:170] = 0
    rgba = np.concatenate([QUARTER, alpha], 2)
    rgba[:170, :, :3] = 0
    form: dict[str, Any] = {"tile": (TILE, TILE), "metadata": None}
    write = tifffile.imwrite
    write(out / "gray8.tif", gray, **form)
    write(out / "gray16_fluor.tif", (255 - gray).astype(np.uint16) * 200, **form)
    write(out / "rgb16.tif", QUARTER.astype(np.uint16) * 257, photometric="rgb", **form)
    write(out / "float32.tif", QUARTER.astype(np.float32) / 255, photometric="rgb", **form)
    write(
        out / "rgba_transparent.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], **form
    )
    write(out / "cmyk.tif", rgba, photometric="separated", **form)
    planes = QUARTER.transpose(2, 0, 1).copy()
    write(out / "planar_rgb.tif", planes, photometric="rgb", planarconfig="separate", **form)
    write(
        out / "fluor_5ch.ome.tif", np.stack([gray // k for k in range(1, 6)]),
        tile=(TILE, TILE), photometric="minisblack",
        metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )  # fmt: skip
    with tifffile.TiffWriter(out / "ome_subifd_pyramid.ome.tif", ome=True) as tif:
        form = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg"}
        size = {"axes": "YXS", "PhysicalSizeX": 0.499, "PhysicalSizeY": 0.499}
        tif.write(IMAGE, subifds=2, metadata=size, **form)
        for factor in (2, 4):
            tif.write(reduced(IMAGE, factor), subfiletype=1, **form)
    picture = Image.fromarray(QUARTER)
    picture.save(out / "flat.png")
    picture.save(out / "flat.jpg", quality=90)
    picture.crop((0, 0, 300, 300)).save(out / "flat.bmp")
    write(out / "untiled_strips.tif", QUARTER, metadata=None, compression="deflate")
    (out / "jpeg_named.svs").write_bytes((out / "flat.jpg").read_bytes())


ODD_NAMES = (
    "UPPER.SVS", "name with spaces.svs", "我的氣墊船 é ñ #%&.svs", "quote'and\"double.svs",
    "-dash.svs", "x" * 200 + ".svs", "no_extension", "two.dots.v1.svs", "new\nline.svs",
)  # fmt: skip


def _names(out: Path, small: bytes, good: bytes) -> None:
    for name in ODD_NAMES:
        (out / name).write_bytes(small)
    for name in ("dup/a/slide.svs", "dup/b/slide.svs"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(small)
    (out / "dup/._slide.svs").write_bytes(b"\0\5\26\7Mac OS X" + bytes(4096))
    (out / "dup/.DS_Store").write_bytes(bytes(64))
    (out / "dup/slide.svs.part").write_bytes(good[:5000])
    for name, target in {
        "loop": ".",
        "dangling.svs": "missing_target.svs",
        "self.svs": "self.svs",
        "link_ok.svs": "ok_pyramid.svs",
    }.items():
        (out / name).symlink_to(target)
    (out / "directory.svs").mkdir()
    (out / "orphan_mrxs").mkdir()
    (out / "orphan_mrxs/case.mrxs").write_bytes(bytes(16))
