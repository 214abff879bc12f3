"""The engine against what it stands on: reading alone, the bare model, the start-up floor.

Every bar is a ratio of things measured in turn in one run, so a busy machine disturbs both sides
alike; the median over rounds is printed with the bar beside it. Absolute figures are printed too,
and are this machine's on this day.

    python benchmarks/extract.py                      about ten minutes on two cores
    python benchmarks/extract.py --only read,model    some of the sections
    python benchmarks/extract.py --full               the sizes of the bars: 32,768 px, 200 slides
    python benchmarks/extract.py --only usual         against a plain OpenSlide and DataLoader loop
    python benchmarks/extract.py --memory FILE.svs    peak memory of a whole run over a slide

Sections: start, read, pair, texture, small, model, openvino, stolen, memory, gpu, usual.
`gpu` says so and passes where there is no CUDA; `openvino` where OpenVINO is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kit.extracting import VIT, Bench, bare_rate, no_model, read_rate

# Measured elsewhere, on a faster machine: its features stage with a model that does nothing.
TRIDENT_PER_CPU_S = {0.25: 411, 0.5: 117}


def section_read(bench: Bench) -> None:
    path, null = bench.slide(32768 if bench.full else 16384), bench.null()
    for mpp, trident in TRIDENT_PER_CPU_S.items():
        ratios, scaled, per_cpu = [], [], []
        for _ in range(bench.rounds):
            alone, _ = read_rate(path, mpp)
            with no_model():
                tiles, seconds = bench.extract(path, null, mpp=mpp)
            ratios.append(tiles / seconds / alone)
            per_cpu.append(tiles / bench.cpu_s / trident)
            tiles, seconds = bench.extract(path, null, mpp=mpp)
            scaled.append(tiles / seconds / alone)
        bench.median(f"no model at {mpp} mpp, of reading alone", ratios, 0.8)
        bench.median("  with tiles scaled to floats for it", scaled, None)
        bench.median(f"  tiles per CPU-second, over TRIDENT's {trident} elsewhere", per_cpu, None)


def section_model(bench: Bench) -> None:
    path = bench.slide(16384 if bench.full else 8192)
    ratios, whole, rates = [], [], []
    for _ in range(bench.rounds):
        begun = time.perf_counter()
        tiles, seconds = bench.extract(path, VIT, mpp=0.5)
        everything = time.perf_counter() - begun
        bare = bare_rate(VIT, min(20, seconds))
        rates.append(tiles / seconds)
        ratios.append(rates[-1] / bare)
        whole.append(tiles / everything / bare)
    bench.median("ViT-S/16, of the bare model with the same threads", ratios, 0.95)
    # The bar of 0.9 is for the large slide, where making the model is little of the whole.
    bench.median("  from making the model to the last file", whole, 0.9 if bench.full else None)
    bench.median("  ViT-S/16", rates, None, "tiles/s")


def section_openvino(bench: Bench) -> None:
    if importlib.util.find_spec("openvino") is None:
        bench.note("openvino: not installed, skipped")
        return
    from wsipipe.encoders import create_encoder
    from wsipipe.processor import cpu_has_bf16

    # Long enough that compiling for each batch size of the ramp is little of the whole.
    path, engine, bare = bench.slide(8192), [], []
    for _ in range(bench.rounds):
        by = {}
        for device in ("cpu", "openvino"):
            tiles, seconds = bench.extract(path, VIT, mpp=0.5, device=device)
            by[device] = tiles / seconds, bare_rate(VIT, 10, device)
        engine.append(by["openvino"][0] / by["cpu"][0])
        bare.append(by["openvino"][1] / by["cpu"][1])
    bf16 = cpu_has_bf16()
    bench.median("ViT-S/16 by OpenVINO, of torch, end to end", engine, 1.25 if bf16 else None)
    bench.median("  the bare model by OpenVINO, of torch", bare, None)
    if not bf16:
        bench.note("  (the bar of 1.25 is for bf16, which this processor has not)")
    cosine = create_encoder(VIT, device="openvino").facts()["backend_cosine"]
    bench.say("  cosine to torch in fp32", cosine, 0.999)


def section_texture(bench: Bench) -> None:
    path = bench.slide(16384)
    rates, per_cpu = [], []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(path, "texture", mpp=0.5)
        rates.append(tiles / seconds)
        per_cpu.append(tiles / bench.cpu_s)
    bench.median("texture, end to end", rates, 150, "tiles/s")
    bench.median("  texture, per CPU-second", per_cpu, None, "tiles")


def section_small(bench: Bench) -> None:
    """Many small slides against one large one, with the same tiles altogether."""
    count = 200 if bench.full else 30
    side = 224 * 2 * 14  # 196 tiles at 0.5 mpp
    many = bench.copies(side, count)
    large_side = round((count * 196) ** 0.5) * 448 // 256 * 256
    large = bench.slide(large_side, name="large")
    ratios = []
    for _ in range(bench.rounds):
        tiles, seconds = bench.extract(many, "texture", mpp=0.5, tissue="auto")
        tiles_large, seconds_large = bench.extract(large, "texture", mpp=0.5, tissue="auto")
        ratios.append(tiles / seconds / (tiles_large / seconds_large))
    bench.median(f"{count} small slides, of one large one", ratios, 0.9)


def section_pair(bench: Bench) -> None:
    """Two encoders in one pass against two passes: of one tile size, and of two."""
    path = bench.slide(16384)
    for what, one, two in (
        ("two encoders", bench.null("one"), bench.null("two")),
        ("two tile sizes", bench.null("one"), bench.null("other", 256)),
    ):
        ratios = []
        for _ in range(bench.rounds):
            with no_model():
                together = bench.extract(path, one, two, mpp=0.5)[1]
                apart = sum(bench.extract(path, each, mpp=0.5)[1] for each in (one, two))
            ratios.append(apart / together)
        bar = 1.7 if what == "two encoders" else None
        bench.median(f"{what} in one pass, of two passes (read-bound)", ratios, bar)


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
    bench.median("one core taken by another process, of undisturbed", ratios, 0.45)


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


# Peak memory in MB after each slide, by a process of its own; a null model, so that it is the rest.
MEMORY = """
import json, re, sys
from pathlib import Path
from wsipipe.config import ExtractSettings
from wsipipe.pipeline.extract import run_extract
from wsipipe.pipeline.reporter import Reporter

def peak():
    # Not ru_maxrss: that starts with what the process had before it became this program.
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", text)[1]) / 1024

class Watch(Reporter):
    peaks = []
    def slide_over(self, *over):
        self.peaks.append(peak())

settings = ExtractSettings.of(encoders=(sys.argv[2],), out=sys.argv[3], mpp=0.5)
result = run_extract(settings, sys.argv[1], reporter=Watch())
assert not result.failed, result.reasons
print(json.dumps({"peaks": Watch.peaks, "tiles": result.tiles, "seconds": result.seconds}))
"""


def peaks(slides: Path, encoder: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as out:
        line = [sys.executable, "-c", MEMORY, str(slides), encoder, out]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def section_memory(bench: Bench) -> None:
    """Flat over many slides, and bounded on a large one."""
    many = peaks(bench.copies(224 * 2 * 14, 200 if bench.full else 40), bench.null())["peaks"]
    bench.say("peak memory after a fifth of many slides, of that after all",
              many[len(many) // 5] / many[-1], 0.9)  # fmt: skip
    large = peaks(bench.slide(32768 if bench.full else 16384), bench.null())["peaks"][-1]
    for what, got in ((f"{len(many)} small slides", many[-1]), ("one large slide", large)):
        bench.say(f"1.5 GB over the peak of a run without a model, {what}", 1536 / got, 1)
        bench.say("  peak", got, None, "MB")


def section_gpu(bench: Bench) -> None:
    import torch

    if not torch.cuda.is_available():
        bench.note("gpu: no CUDA here, skipped")
        return
    from kit.gpu import bare_gpu_rate, waited

    bench.note(f"gpu: {torch.cuda.get_device_name()}")
    path = bench.slide(32768)
    for arch in ("small_patch16_224", "base_patch16_224", "large_patch16_224",
                 "giant_patch14_dinov2.lvd142m"):  # fmt: skip
        name = f"timm:vit_{arch}?pretrained=false"
        bare = bare_gpu_rate(name)
        tiles, seconds = bench.extract(path, name, mpp=0.5, precision="bf16", tile_px=224)
        bench.say(f"ViT {arch}, of the bare model compiled", tiles / seconds / bare, 0.9)
        bench.say("  95 % busy over what it was", (1 - waited(bench.folder / "out")) / 0.95, 1)


def section_usual(bench: Bench) -> None:
    """The way most tools go: OpenSlide regions, PIL, one DataLoader a slide, a null model."""
    from kit.usual import usual_rate

    path, null = bench.slide(8192), bench.null()
    for mpp in (0.25, 0.5):
        nothing, floats = [], []
        for _ in range(bench.rounds):
            usual = usual_rate(path, mpp)
            tiles, _ = bench.extract(path, null, mpp=mpp)
            floats.append(tiles / bench.cpu_s / usual)
            with no_model():
                tiles, _ = bench.extract(path, null, mpp=mpp)
            nothing.append(tiles / bench.cpu_s / usual)
        bench.median(f"tiles per CPU-second at {mpp} mpp, over the usual loop's", floats, None)
        bench.median("  the engine alone, without floats", nothing, None)


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "start": section_start,
    "read": section_read,
    "pair": section_pair,
    "texture": section_texture,
    "small": section_small,
    "model": section_model,
    "openvino": section_openvino,
    "stolen": section_stolen,
    "memory": section_memory,
    "gpu": section_gpu,
    "usual": section_usual,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="sections, separated by commas")
    parser.add_argument("--full", action="store_true", help="the sizes of the published bars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help="peak memory of a run over this slide")
    options = parser.parse_args()
    if options.memory:
        found = peaks(options.memory, "texture")
        rate = found["tiles"] / found["seconds"]
        print(f"{found['tiles']} tiles, {rate:.0f} tiles/s, peak {found['peaks'][-1]:.0f} MB")
        return 0
    chosen = options.only.split(",") if options.only else list(SECTIONS)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.full, options.rounds)
        for name in chosen:
            SECTIONS[name](bench)
            shutil.rmtree(bench.folder / "out", ignore_errors=True)
    print(f"{bench.missed} bars missed" if bench.missed else "all bars met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
