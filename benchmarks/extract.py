"""The engine against what it stands on: reading alone, the bare model, the start-up floor.

Every bar is a ratio of things measured in turn in one run, so a busy machine disturbs both sides
alike; the median over rounds is printed with the bar beside it. Absolute figures are printed too,
and are this machine's on this day.

    python benchmarks/extract.py                      about ten minutes on two cores
    python benchmarks/extract.py --only read,model    some of the sections
    python benchmarks/extract.py --large              32,768 px slides, 200 small slides
    python benchmarks/extract.py --memory FILE.svs    peak memory of a whole run over a slide

Sections: read, model, texture, small, pair, stolen, start.
Other tools' figures for comparison are in docs; they are not run from here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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

CARD = wsipipe.EncoderCard(name="{name}", dim=8, tile_px=224, mpp=None, mean=None, std=None)


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

    def __init__(self, folder: Path, large: bool, rounds: int) -> None:
        self.folder, self.large = folder, large
        self.lines: list[str] = []
        self.missed = 0
        self.rounds = rounds
        self.cpu_s = 0.0  # of the latest run, from its first slide on

    def slide(self, side: int, mpp: float = 0.25, name: str = "slide") -> Path:
        path = self.folder / f"{name}-{side}.svs"
        if not path.exists():
            write_slide(path, side, mpp)
        return path

    def null(self, name: str = "null") -> str:
        path = self.folder / f"{name}.py"
        path.write_text(NULL.format(name=name))
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
        line = f"{what:<66} {got:8.2f} {unit}{verdict}"
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


def section_read(bench: Bench) -> None:
    """The figures of TRIDENT are its features stage with a null model, without scaling, too."""
    path, null = bench.slide(32768 if bench.large else 16384), bench.null()
    for mpp, trident in ((0.25, 411), (0.5, 117)):
        ratios, scaled, per_cpu = [], [], []
        for _ in range(bench.rounds):
            alone, _ = read_rate(path, mpp)
            with no_model():
                tiles, seconds = bench.extract(path, null, mpp=mpp)
            ratios.append(tiles / seconds / alone)
            per_cpu.append(tiles / bench.cpu_s)
            tiles, seconds = bench.extract(path, null, mpp=mpp)
            scaled.append(tiles / seconds / alone)
        bar = 0.8 if mpp == 0.25 else None
        bench.say(f"no model at {mpp} mpp, of reading alone", statistics.median(ratios), bar)
        bench.say("  with tiles scaled to floats for it", statistics.median(scaled), None)
        over = statistics.median(per_cpu) / trident
        bench.say(f"  tiles per CPU-second, over TRIDENT's {trident} elsewhere", over, None)


def bare_rate(name: str, seconds: float, precision: str = "auto") -> float:
    """The model alone on tiles in memory, with the streams and threads of a run."""
    from wsipipe.encoders import create_encoder

    encoder = create_encoder(name, precision=precision)
    threads = share_threads(available_cpus(), on_cpu=True)
    prepare_torch(threads.intra)
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


def section_model(bench: Bench) -> None:
    path = bench.slide(16384 if bench.large else 8192)
    ratios, rates = [], []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(path, VIT, mpp=0.5)
        rates.append(tiles / seconds)
        ratios.append(rates[-1] / bare_rate(VIT, min(20, seconds)))
    bench.say("ViT-S/16, of the bare model with the same threads", statistics.median(ratios), 0.85)
    bench.say("  ViT-S/16", statistics.median(rates), None, "tiles/s")


def section_texture(bench: Bench) -> None:
    path = bench.slide(16384)
    rates, per_cpu = [], []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(path, "texture", mpp=0.5)
        rates.append(tiles / seconds)
        per_cpu.append(tiles / bench.cpu_s)
    bench.say("texture, end to end", statistics.median(rates), 150, "tiles/s")
    bench.say("  texture, per CPU-second", statistics.median(per_cpu), None, "tiles")


def section_small(bench: Bench) -> None:
    """Many small slides against one large one, with the same tiles altogether."""
    count = 200 if bench.large else 30
    side = 224 * 2 * 14  # 196 tiles at 0.5 mpp
    one = bench.slide(side, name="small")
    many = bench.folder / "many"
    many.mkdir(exist_ok=True)
    for number in range(count):
        if not (many / f"s{number:03d}.svs").exists():
            shutil.copy(one, many / f"s{number:03d}.svs")
    large_side = round((count * 196) ** 0.5) * 448 // 256 * 256
    large = bench.slide(large_side, name="large")
    ratios = []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(many, "texture", mpp=0.5, tissue="auto")
        tiles_large, seconds_large = bench.extract(large, "texture", mpp=0.5, tissue="auto")
        ratios.append(tiles / seconds / (tiles_large / seconds_large))
    bench.say(f"{count} small slides, of one large one", statistics.median(ratios), 0.9)


def section_pair(bench: Bench) -> None:
    path, ratios = bench.slide(16384), []
    one, two = bench.null("one"), bench.null("two")
    for _ in range(bench.rounds):
        together = bench.extract(path, one, two, mpp=0.5)[1]
        apart = bench.extract(path, one, mpp=0.5)[1] + bench.extract(path, two, mpp=0.5)[1]
        ratios.append(apart / together)
    bench.say(
        "two encoders in one pass, of two passes (read-bound)", statistics.median(ratios), 1.7
    )


def section_stolen(bench: Bench) -> None:
    path, ratios = bench.slide(8192), []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(path, VIT, mpp=0.5)
        thief = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            tiles_less, seconds_less = bench.extract(path, VIT, mpp=0.5)
        finally:
            thief.kill()
            thief.wait()
        ratios.append(tiles_less / seconds_less / (tiles / seconds))
    bench.say("one core taken by another process, of undisturbed", statistics.median(ratios), 0.45)


def section_start(bench: Bench) -> None:
    def seconds(*code: str) -> float:
        best = 9.0
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run([sys.executable, *code], check=True, capture_output=True)
            best = min(best, time.perf_counter() - begun)
        return best

    bench.say("import wsipipe, under 0.5 s: 0.5 over it", 0.5 / seconds("-c", "import wsipipe"), 1)
    helped = seconds("-m", "wsipipe", "--help")
    bench.say("wsipipe --help, under 0.5 s: 0.5 over it", 0.5 / helped, 1)


def memory(slide: Path) -> None:
    """Peak memory of a process that extracts one slide with the embedded encoder."""
    code = (
        "import resource, sys, wsipipe as wp\n"
        "result = wp.extract(sys.argv[1], encoder='texture', out=sys.argv[2])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "print(f'{result.tiles} tiles, {result.tiles / result.seconds:.0f} tiles/s, "
        "peak {peak:.0f} MB')"
    )
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-c", code, str(slide), out], check=True)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "start": section_start,
    "read": section_read,
    "pair": section_pair,
    "texture": section_texture,
    "small": section_small,
    "model": section_model,
    "stolen": section_stolen,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("--large", action="store_true", help="the sizes of the published bars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help="peak memory of a run over this slide")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
        return 0
    chosen = options.only.split(",") if options.only else list(SECTIONS)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.large, options.rounds)
        for name in chosen:
            SECTIONS[name](bench)
    print(f"{bench.missed} bars missed" if bench.missed else "all bars met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
