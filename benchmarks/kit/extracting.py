"""What the sections of `extract.py` stand on: slides, encoders, runs, and the things they are held
against."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import imagecodecs
import numpy as np
import tifffile
from read import TILE, texture

import wsipipe as wp
from wsipipe.config import ExtractSettings
from wsipipe.embed import iter_tiles
from wsipipe.embed.forward import prepare_torch
from wsipipe.embed.resources import available_cpus, share_threads
from wsipipe.pipeline.account import Account
from wsipipe.pipeline.extract import run_extract

# A model that does nothing but to take floats: its tiles are scaled and made planes first.
NULL = """
import torch
import wsipipe

CARD = wsipipe.EncoderCard(
    name="{name}", dim=8, tile_px={tile_px}, mpp=None, mean=None, std=None
)


class Null(torch.nn.Module):
    def forward(self, x):
        return x[:, :, 0, 0].repeat(1, 3)[:, :8]


def build(card):
    return Null()
"""
VIT = "timm:vit_small_patch16_224?pretrained=false"


def write_slide(path: Path, side: int, mpp: float) -> None:
    """An Aperio-like pyramid (1:1, 1:4, 1:16) of 64 different tissue-like tiles, in any order."""
    big = texture(TILE * 8, 7)
    parts = [
        np.ascontiguousarray(big[y : y + TILE, x : x + TILE])
        for y in range(0, TILE * 8, TILE)
        for x in range(0, TILE * 8, TILE)
    ]
    how = {"level": 80, "colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
    data = [imagecodecs.jpeg8_encode(part, **how) for part in parts]
    rng = np.random.default_rng(1)
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level, size in enumerate((side, side // 4, side // 16)):
            count = (-(-size // TILE)) ** 2
            tif.write(
                (data[i] for i in rng.integers(0, len(data), count)),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=1 if level else 0,
                description=f"Aperio Image Library v12\r\n{side}x{side} |AppMag = 40|MPP = {mpp}",
                metadata=None,
                software=None,
            )


class Bench:
    """Slides, encoders and a folder to write to."""

    def __init__(self, folder: Path, full: bool, rounds: int) -> None:
        self.folder, self.full = folder, full
        self.lines: list[str] = []
        self.missed = 0
        self.rounds = rounds
        self.cpu_s = 0.0  # of the latest run, from its first slide on

    def slide(self, side: int, mpp: float = 0.25, name: str = "slide") -> Path:
        path = self.folder / f"{name}-{side}.svs"
        if not path.exists():
            write_slide(path, side, mpp)
        return path

    def copies(self, side: int, count: int) -> Path:
        """A folder of `count` copies of one slide."""
        one = self.slide(side, name="small")
        many = self.folder / "many"
        many.mkdir(exist_ok=True)
        for number in range(count):
            path = many / f"s{number:03d}.svs"
            if not path.exists():
                shutil.copy(one, path)
        return many

    def null(self, name: str = "null", tile_px: int = 224) -> str:
        path = self.folder / f"{name}.py"
        path.write_text(NULL.format(name=name, tile_px=tile_px))
        return str(path)

    def extract(self, slides: object, *encoders: str, **settings: object) -> tuple[int, float]:
        """(tiles embedded, seconds) of a run into a fresh folder; encoders are made before."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        given = {"mpp": 0.25, "tissue": "none", "allow_off_card": True, **settings}
        chosen = ExtractSettings.of(encoders=encoders, out=out, **given)
        with first_slide() as begun:
            result = run_extract(chosen, slides)  # type: ignore[arg-type]
            seconds = time.perf_counter() - begun[0][0]
            self.cpu_s = cpu_s() - begun[0][1]
        assert not result.failed, result.reasons
        return result.tiles, seconds

    def say(self, what: str, got: float, bar: float | None, unit: str = "") -> None:
        verdict = ""
        if bar is not None:
            met = got >= bar
            self.missed += not met
            verdict = f"   bar {bar:g}  {'met' if met else 'MISSED'}"
        self.note(f"{what:<66} {got:8.2f} {unit}{verdict}")

    def median(self, what: str, got: Sequence[float], bar: float | None, unit: str = "") -> None:
        self.say(what, statistics.median(got), bar, unit)

    def note(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)


@contextlib.contextmanager
def first_slide() -> Iterator[list[tuple[float, float]]]:
    """The moment at which the first slide is taken up: everything before is start-up."""
    times: list[tuple[float, float]] = []
    usual = Account.began

    def began(self: Account, task: object) -> None:
        times.append((time.perf_counter(), cpu_s()))
        usual(self, task)  # type: ignore[arg-type]

    Account.began = began  # type: ignore[method-assign,assignment]
    try:
        yield times
    finally:
        Account.began = usual  # type: ignore[method-assign]


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def read_rate(path: Path, mpp: float) -> tuple[float, float]:
    """Tiles/s of reading alone: by the clock, and by CPU time."""
    with wp.open_slide(path) as slide:
        grid = wp.make_grid(slide, None, tile_px=224, mpp=mpp)
        begun, cpu = time.perf_counter(), cpu_s()
        for _ in iter_tiles(slide, grid, workers=available_cpus()):
            pass
        return len(grid) / (time.perf_counter() - begun), len(grid) / (cpu_s() - cpu)


@contextlib.contextmanager
def no_model() -> Iterator[None]:
    """Encoders answer without looking: what is left of a run is the engine."""
    from wsipipe.encoders import Encoder

    class Answer:
        def __init__(self, count: int, dim: int) -> None:
            self.rows = np.zeros((count, dim), np.float32)

        def result(self) -> np.ndarray:
            return self.rows

    usual = Encoder.start
    Encoder.start = lambda self, tiles: Answer(len(tiles), self.card.dim)  # type: ignore
    try:
        yield
    finally:
        Encoder.start = usual  # type: ignore[method-assign]


def bare_rate(name: str, seconds: float, device: str = "cpu") -> float:
    """The model alone on tiles in memory, with the streams and threads of a run."""
    from wsipipe.encoders import create_encoder

    encoder = create_encoder(name, device=device)
    threads = share_threads(available_cpus(), on_cpu=True)
    prepare_torch(threads.intra)
    encoder.run_side_by_side(threads.streams)
    tiles = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    encoder.start(tiles).result()
    counts = [0] * threads.streams
    until = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < until:
            encoder.start(tiles).result()
            counts[index] += len(tiles)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads.streams)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begun)
