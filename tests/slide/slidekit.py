"""Small real slides for tests: every one is a file that other readers open too."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from imagecodecs import jpeg8_encode


def tissue(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 with structure at several scales, so that shifts show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack(
        [
            np.sin(x / 7 + y / 31) + np.sin(y / 5),
            np.sin(x / 11) + np.cos(y / 9 + x / 50),
            np.sin((x + y) / 13) + np.cos((x - y) / 8),
        ],
        axis=-1,
    )
    return np.clip(150 + 40 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def reduced(image: np.ndarray, factor: int, *, up: bool = False) -> np.ndarray:
    """Box-reduce by a whole factor; sizes are rounded down, or up by repeating the edge."""
    height, width = image.shape[:2]
    if up:
        pad = ((0, -height % factor), (0, -width % factor), (0, 0))
        image = np.pad(image, pad, mode="edge")
        height, width = image.shape[:2]
    h, w = height // factor, width // factor
    blocks = image[: h * factor, : w * factor].reshape(h, factor, w, factor, -1)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def aperio(width: int, height: int, tile: int, **facts: object) -> str:
    """An Aperio description, as OpenSlide recognises it."""
    head = f"Aperio Image Library v12.0.15 \r\n{width}x{height} [0,0 {width}x{height}] "
    return (
        head + f"({tile}x{tile}) JPEG/RGB Q=90" + "".join(f"|{k} = {v}" for k, v in facts.items())
    )


def write_pyramid(
    path: Path,
    images: list[np.ndarray],
    *,
    tile: int = 256,
    facts: dict[str, object] | None = None,
    bigtiff: bool = False,
    **options: Any,
) -> Path:
    """A tiled pyramid; with `facts` an Aperio one, otherwise a generic one."""
    kind: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (tile, tile)}
    kind |= options
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for number, image in enumerate(images):
            extra: dict[str, Any] = {}
            if facts is not None:
                extra["description"] = aperio(image.shape[1], image.shape[0], tile, **facts)
            elif number:
                extra["subfiletype"] = 1
            file.write(image, **kind, **extra)
    return path


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """One DICOM data element, explicit VR, little endian."""
    value += b"\0" * (len(value) % 2) if vr in (b"OB", b"UI") else b" " * (len(value) % 2)
    head = struct.pack("<HH", group, number) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN"):
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def sequence(group: int, number: int, *items: bytes) -> bytes:
    """A sequence of items of defined length."""
    packed = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(i)) + i for i in items)
    return element(group, number, b"SQ", packed)


def write_dicom(
    path: Path,
    image: np.ndarray,
    *,
    series: str = "1.2.3",
    tile: int = 128,
    spacing_mm: str = "0.0005\\0.0005",
    kind: bytes = b"ORIGINAL\\PRIMARY\\VOLUME\\NONE",
) -> Path:
    """A minimal whole-slide instance with JPEG frames (PS3.3 A.32.8)."""
    height, width = image.shape[:2]
    frames = []
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            part = np.full((tile, tile, 3), 255, np.uint8)
            piece = image[y : y + tile, x : x + tile]
            part[: piece.shape[0], : piece.shape[1]] = piece
            data = jpeg8_encode(part, level=95, colorspace="RGB", outcolorspace="YCBCR")
            frames.append(data + b"\0" * (len(data) % 2))
    us = lambda value: struct.pack("<H", value)  # noqa: E731
    ul = lambda value: struct.pack("<I", value)  # noqa: E731
    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.4.50")
    body = b"".join(
        [
            element(0x0008, 0x0008, b"CS", kind),
            element(0x0008, 0x0016, b"UI", b"1.2.840.10008.5.1.4.1.1.77.1.6"),
            element(0x0008, 0x0060, b"CS", b"SM"),
            element(0x0010, 0x0010, b"PN", b"SECRET^PATIENT"),
            element(0x0020, 0x000E, b"UI", series.encode()),
            element(0x0020, 0x9311, b"CS", b"TILED_FULL"),
            element(0x0028, 0x0002, b"US", us(3)),
            element(0x0028, 0x0004, b"CS", b"YBR_FULL_422"),
            element(0x0028, 0x0008, b"IS", str(len(frames)).encode()),
            element(0x0028, 0x0010, b"US", us(tile)),
            element(0x0028, 0x0011, b"US", us(tile)),
            element(0x0028, 0x0100, b"US", us(8)),
            element(0x0048, 0x0006, b"UL", ul(width)),
            element(0x0048, 0x0007, b"UL", ul(height)),
            sequence(
                0x5200,
                0x9229,
                sequence(0x0028, 0x9110, element(0x0028, 0x0030, b"DS", spacing_mm.encode())),
            ),
            struct.pack("<HH", 0x7FE0, 0x0010) + b"OB\0\0\xff\xff\xff\xff",
            b"\xfe\xff\x00\xe0" + ul(0),
            *(b"\xfe\xff\x00\xe0" + ul(len(f)) + f for f in frames),
            b"\xfe\xff\xdd\xe0" + ul(0),
        ]
    )
    head = element(2, 0, b"UL", ul(len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + head + meta + body)
    return path
