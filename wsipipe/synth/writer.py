"""A pyramidal TIFF as Aperio's scanners write it, streamed: a row of tiles in memory at a time.

Level 0 is painted and written row by row. Each row is reduced by area averaging at once, the
reduced rows are reduced again, and their compressed tiles wait in a temporary file until the level
before them is complete. Memory therefore depends on the width of the slide alone.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageDraw

from wsipipe.store.publish import publishing
from wsipipe.synth.paint import Painter, Pixels

TILE_PX = 256
CODECS = ("jpeg", "jp2k", "lzw", "deflate")
_REDUCTION = 4
# A slide gets one more level as long as its smallest is longer than this.
_SMALLEST_PX = 2048
_CHUNK_TILES = 8
_CLASSIC_TIFF_BYTES = 3_500_000_000
_APERIO_JP2K_RGB = 33005
# In the description of every slide: what tells them from real ones.
MARK = "Synthetic = wsipipe synth"


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """(width, height) of all levels, as Aperio reduces them: by 4, rounded down."""
    sizes = [(width, height)]
    while max(sizes[-1]) > _SMALLEST_PX:
        w, h = sizes[-1]
        sizes.append((max(w // _REDUCTION, 1), max(h // _REDUCTION, 1)))
    return sizes


def write_slide(
    path: Path, painter: Painter, *, codec: str, quality: int, name_mpp: bool, workers: int
) -> None:
    """Write the painter's scene; `path` appears only when it is whole.

    Raises:
        OutputError: It cannot be written.
    """
    with publishing(path) as file, tempfile.TemporaryFile(dir=path.parent) as spool:
        _Writer(painter, codec, quality, name_mpp, spool).write(file.path, workers)


class _Writer:
    def __init__(
        self, painter: Painter, codec: str, quality: int, name_mpp: bool, spool: IO[bytes]
    ) -> None:
        self.painter, self.scene = painter, painter.scene
        self.codec, self.quality, self.name_mpp = codec, quality, name_mpp
        self.encode = _encoder(codec, quality)
        self.sizes = level_sizes(self.scene.width, self.scene.height)
        self.background = np.array(self.scene.stain.background, np.uint8)
        self.spool = spool
        self.levels = [_Level(w, h, self.background) for w, h in self.sizes]
        self.blank: dict[tuple[int, int], bytes] = {}

    def write(self, path: Path, workers: int) -> None:
        scene = self.scene
        # Most that a pixel of tissue was seen to take, in bytes.
        lossless = self.codec in ("lzw", "deflate")
        raw = scene.width * scene.height * (3.2 if lossless else 0.6 if self.quality <= 90 else 2)
        with tifffile.TiffWriter(path, bigtiff=raw > _CLASSIC_TIFF_BYTES) as tif:
            self._write_level(tif, 0, self._level0(workers))
            thumbnail = self._thumbnail()
            flat: dict[str, Any] = {
                "compression": "jpeg", "photometric": "rgb", "metadata": None, "software": False,
            }  # fmt: skip
            size = f"{scene.width}x{scene.height} -> {thumbnail.shape[1]}x{thumbnail.shape[0]}"
            tif.write(
                thumbnail, rowsperstrip=16,
                description=f"{_ORIGIN}{size} - {self._tail()}", **flat,
            )  # fmt: skip
            for index in range(1, len(self.sizes)):
                self._write_level(tif, index, self._spooled(index))
            label, macro = _label(scene.seed), _macro(thumbnail, scene.seed)
            tif.write(
                label, subfiletype=1,
                description=f"{_ORIGIN}label {label.shape[1]}x{label.shape[0]}",
                **(flat | {"compression": "lzw"}),
            )  # fmt: skip
            tif.write(
                macro, subfiletype=9, rowsperstrip=16,
                description=f"{_ORIGIN}macro {macro.shape[1]}x{macro.shape[0]}", **flat,
            )  # fmt: skip

    def _write_level(self, tif: tifffile.TiffWriter, index: int, tiles: Iterator[bytes]) -> None:
        (w0, h0), (w, h) = self.sizes[0], self.sizes[index]
        described = f"{w0}x{h0} [0,0 {w0}x{h0}] ({TILE_PX}x{TILE_PX})"
        if index:
            described += f" -> {w}x{h}"
        kind = {"jpeg": f"JPEG/YCC Q={self.quality}", "jp2k": f"J2K/KDU Q={self.quality}"}
        described += f" {kind.get(self.codec, self.codec.upper())}"
        codecs: dict[str, dict[str, Any]] = {
            "jpeg": {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (2, 2)},
            "jp2k": {"compression": _APERIO_JP2K_RGB, "photometric": "rgb"},
            "lzw": {"compression": "lzw", "photometric": "rgb"},
            "deflate": {"compression": "zlib", "photometric": "rgb"},
        }
        tif.write(
            tiles, shape=(h, w, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX), metadata=None,
            software=False, description=_ORIGIN + described + self._tail(),
            **codecs[self.codec],
        )  # fmt: skip

    def _tail(self) -> str:
        mpp = self.scene.mpp
        power = f"|AppMag = {10 / mpp:.3g}|MPP = {mpp:.6g}" if self.name_mpp else ""
        return f"{power}|{MARK}, seed {self.scene.seed}"

    def _level0(self, workers: int) -> Iterator[bytes]:
        """Compressed tiles in row-major order; also fills the reduced levels."""
        tiles_x = -(-self.scene.width // TILE_PX)
        tiles_y = -(-self.scene.height // TILE_PX)
        jobs = [
            (ty, tx, min(_CHUNK_TILES, tiles_x - tx))
            for ty in range(tiles_y)
            for tx in range(0, tiles_x, _CHUNK_TILES)
        ]
        waiting: deque[Future[tuple[list[bytes], Pixels]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="synth") as pool:
            pending = iter(jobs)
            for job in jobs[: 2 * workers + 2]:
                waiting.append(pool.submit(self._chunk, *job))
                next(pending)
            strip: list[Pixels] = []
            for ty, tx, count in jobs:
                tiles, reduced = waiting.popleft().result()
                following = next(pending, None)
                if following is not None:
                    waiting.append(pool.submit(self._chunk, *following))
                strip.append(reduced)
                if tx + count == tiles_x:
                    self._push(1, np.concatenate(strip, axis=1))
                    strip = []
                    if ty + 1 == tiles_y:
                        # Before the last tile is handed out: the taker asks for no more.
                        for index in range(1, len(self.levels)):
                            self._flush(index)
                yield from tiles

    def _chunk(self, ty: int, tx: int, count: int) -> tuple[list[bytes], Pixels]:
        """Compressed tiles of a run of level-0 tiles, and their pixels reduced by 4."""
        y, x, t = ty * TILE_PX, tx * TILE_PX, TILE_PX
        side = t // _REDUCTION
        if self.painter.is_blank(y, x, t, count * t):
            reduced = np.broadcast_to(self.background, (side, count * side, 3))
            return [self._blank(ty, tx + i) for i in range(count)], reduced
        pixels = self.painter.window(y, x, t, count * t)
        tiles = [
            self._blank(ty, tx + i)
            if self.painter.is_blank(y, x + i * t, t, t)
            else self.encode(np.ascontiguousarray(pixels[:, i * t : (i + 1) * t]))
            for i in range(count)
        ]
        size = (count * side, side)
        return tiles, np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)

    def _blank(self, ty: int, tx: int) -> bytes:
        """Empty glass; the grain repeats, so that few such tiles are ever compressed."""
        key = (ty % 4, tx % 4)
        if key not in self.blank:
            window = self.painter.window(ty * TILE_PX, tx * TILE_PX, TILE_PX, TILE_PX)
            self.blank[key] = self.encode(window)
        return self.blank[key]

    def _push(self, index: int, rows: Pixels) -> None:
        """Hand pixel rows to a reduced level; whole rows of tiles go to the spool."""
        if index >= len(self.levels):
            self._keep_smallest(rows)
            return
        level = self.levels[index]
        level.rows.append(rows)
        level.held += rows.shape[0]
        if level.held >= TILE_PX:
            self._emit(index)

    def _flush(self, index: int) -> None:
        if self.levels[index].held:
            self._emit(index)

    def _emit(self, index: int) -> None:
        """Compress one row of tiles of a reduced level, and reduce it for the next."""
        level = self.levels[index]
        band = np.concatenate(level.rows, axis=0)
        level.rows, level.held = [], 0
        real = min(band.shape[0], level.height - level.written)
        if real <= 0:
            return
        padded_width = -(-level.width // TILE_PX) * TILE_PX
        canvas = np.empty((TILE_PX, padded_width, 3), np.uint8)
        canvas[:] = self.background
        width = min(level.width, band.shape[1])
        canvas[:real, :width] = band[:real, :width]
        level.written += real
        for x in range(0, padded_width, TILE_PX):
            data = self.encode(np.ascontiguousarray(canvas[:, x : x + TILE_PX]))
            level.tiles.append((self.spool.seek(0, os.SEEK_END), len(data)))
            self.spool.write(data)
        if index + 1 < len(self.levels):
            whole = real if level.written >= level.height else TILE_PX
            h, w = -(-whole // _REDUCTION), -(-width // _REDUCTION)
            source = canvas[: h * _REDUCTION, : w * _REDUCTION]
            small = cv2.resize(source, (w, h), interpolation=cv2.INTER_AREA)
            self._push(index + 1, np.asarray(small, np.uint8))
        else:
            level.kept.append(canvas[:real, :width].copy())

    def _keep_smallest(self, rows: Pixels) -> None:
        """A slide of one level: its thumbnail is all that is wanted."""
        self.levels[0].kept.append(rows)

    def _spooled(self, index: int) -> Iterator[bytes]:
        for offset, size in self.levels[index].tiles:
            self.spool.seek(offset)
            yield self.spool.read(size)

    def _thumbnail(self) -> Pixels:
        picture = np.concatenate(self.levels[-1].kept, axis=0)
        factor = min(1.0, 1024 / max(picture.shape[:2]))
        size = tuple(max(1, round(n * factor)) for n in picture.shape[1::-1])
        return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


class _Level:
    """What is known of one level while it grows."""

    def __init__(self, width: int, height: int, background: Pixels) -> None:
        self.width, self.height, self.background = width, height, background
        self.rows: list[Pixels] = []
        self.held = 0
        self.written = 0
        self.tiles: list[tuple[int, int]] = []
        self.kept: list[Pixels] = []


_ORIGIN = "Aperio Image Library v12.0.15 \r\n"


def _encoder(codec: str, quality: int) -> Callable[[Pixels], bytes]:
    """The function that compresses one tile."""
    if codec == "jpeg":
        return lambda tile: bytes(
            imagecodecs.jpeg8_encode(
                tile, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
            )
        )
    if codec == "jp2k":
        # `level` is the peak signal-to-noise ratio in dB; 40 looks like quality 90.
        return lambda tile: bytes(
            imagecodecs.jpeg2k_encode(
                tile, level=20 + quality // 4, codecformat="j2k", colorspace="SRGB", mct=True
            )
        )
    if codec == "lzw":
        return lambda tile: bytes(imagecodecs.lzw_encode(tile.tobytes()))
    return lambda tile: bytes(imagecodecs.zlib_encode(tile.tobytes(), level=6))


def _label(seed: int) -> Pixels:
    """A paper label such as real slides carry, with an invented name that must never leak."""
    image = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(image).text((40, 180), f"SYNTHETIC {seed}\nDOE, JANE 1970-01-01", fill="black")
    return np.asarray(image, np.uint8)


def _macro(thumbnail: Pixels, seed: int) -> Pixels:
    """The photograph of the whole glass, label on the left."""
    image = Image.new("RGB", (1200, 400), (225, 225, 228))
    image.paste(Image.fromarray(_label(seed)), (0, 0))
    tissue = Image.fromarray(thumbnail)
    tissue.thumbnail((760, 380))
    image.paste(tissue, (420, 10))
    return np.asarray(image, np.uint8)
