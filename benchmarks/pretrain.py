"""How fast pretraining reads and augments, beside what others do, on this machine.

    python benchmarks/pretrain.py SLIDE [SLIDE ...] [--seconds 5] [--json]

Everything runs on one thread and is measured in tiles per CPU-second (wall time means nothing on a
shared machine); contenders take turns within one run, so that ratios hold where absolute figures do
not. Slides should be tiled TIFFs that OpenSlide opens too. wsistream and lightly are measured where
they are installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

PX = 256
ROUNDS = 3


def tiles_per_cpu_second(work: Callable[[], int], seconds: float) -> float:
    """Repeat `work` (which returns how many tiles it made) for some CPU seconds."""
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds:
        done += work()
    return done / (time.process_time() - started)


def contest(contenders: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Best of some rounds, contenders taking turns."""
    best = dict.fromkeys(contenders, 0.0)
    for work in contenders.values():
        work()  # caches, lazy imports
    for _ in range(ROUNDS):
        for name, work in contenders.items():
            best[name] = max(best[name], tiles_per_cpu_second(work, seconds / ROUNDS))
    return best


def samplers(slides: list[str]) -> dict[str, Callable[[], int]]:
    """Random tissue tiles at the slides' own resolution: ours, wsistream's, plain openslide."""
    import openslide

    from wsipipe.pretrain.options import Sampler
    from wsipipe.pretrain.stream import SlideSource
    from wsipipe.slide import find_slides, open_slide

    with open_slide(slides[0]) as first:
        mpp = first.mpp
    entries = find_slides(slides)

    def ours(**placing: object) -> Callable[[], int]:
        settings = Sampler.model_validate({"px": PX, "mpp": mpp, **placing})
        source = SlideSource(entries, settings, workers=1)
        numbers = itertools.count()

        def work() -> int:
            return len(source.batch(next(numbers), 64, slice(0, 64)).tiles)

        return work

    handles = [openslide.OpenSlide(s) for s in slides]
    rng = np.random.default_rng(0)

    def plain() -> int:
        for k in range(64):
            handle = handles[k % len(handles)]
            x, y = (int(rng.integers(0, size - PX)) for size in handle.dimensions)
            np.asarray(handle.read_region((x, y), 0, (PX, PX)).convert("RGB"))
        return 64

    found = {
        "wsipipe": ours(),
        "wsipipe, free places": ours(snap=False),
        "wsipipe, free, share=4": ours(snap=False, share=4),
        "openslide-python": plain,
    }
    try:
        from wsistream.backends import OpenSlideBackend
        from wsistream.pipeline import PatchPipeline
        from wsistream.sampling.random import RandomSampler
        from wsistream.tissue.otsu import OtsuTissueDetector
    except ImportError:
        return found
    stream = iter(
        PatchPipeline(
            slide_paths=slides,
            backend=OpenSlideBackend(),
            tissue_detector=OtsuTissueDetector(),
            sampler=RandomSampler(patch_size=PX, target_mpp=mpp, seed=0),
            pool_size=len(slides),
            patches_per_slide=10**9,
        )
    )
    found["wsistream"] = lambda: sum(1 for _ in itertools.islice(stream, 64))
    return found


def augmenters() -> dict[str, Callable[[], int]]:
    """DINOv2's ten views of 256 px tiles: ours in batches, torchvision's and lightly's by image."""
    from PIL import Image
    from torchvision.transforms import v2

    from wsipipe.pretrain.recipe import load_recipe
    from wsipipe.pretrain.views import ViewMaker

    recipe = load_recipe("dinov2", "paper")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (32, 16, 16, 3), np.uint8)
    tiles = np.stack([np.asarray(Image.fromarray(t).resize((PX, PX))) for t in coarse])
    batch = torch.from_numpy(tiles)
    maker, generator = ViewMaker(recipe.views), torch.Generator().manual_seed(0)

    def ours() -> int:
        maker(batch, generator=generator)
        return len(batch)

    def view(px: int, area: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(px, area, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                v2.RandomSolarize(128, solarize),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(recipe.views.mean, recipe.views.std),
            ]
        )

    g, local = recipe.views.global_, recipe.views.local
    views = [view(g.px, g.area, 0.0, 0.0), view(g.px, g.area, 0.9, 0.2)]
    views += [view(local.px, local.area, 0.5, 0.0)] * local.n

    def torchvision_pil() -> int:
        for tile in tiles[:8]:
            image = Image.fromarray(tile)
            for transform in views:
                transform(image)
        return 8

    def torchvision_tensor() -> int:
        for tile in tiles[:8]:
            image = torch.from_numpy(tile).permute(2, 0, 1)
            for transform in views:
                transform(image)
        return 8

    found = {
        "wsipipe": ours,
        "torchvision, PIL": torchvision_pil,
        "torchvision, tensors": torchvision_tensor,
    }
    try:
        from lightly.transforms import DINOTransform
    except ImportError:
        return found
    transform = DINOTransform(
        global_crop_scale=g.area, local_crop_scale=local.area, n_local_views=8
    )

    def lightly() -> int:
        for tile in tiles[:8]:
            transform(Image.fromarray(tile))
        return 8

    found["lightly"] = lightly
    return found


def waiting(slides: list[str], recipe_name: str, steps: int) -> dict[str, float]:
    """Share of a GPU run's time spent waiting for data, at the recipe's paper scale."""
    import tempfile
    from pathlib import Path

    from wsipipe.pretrain.recipe import load_recipe
    from wsipipe.pretrain.stream import SlideSource
    from wsipipe.pretrain.trainer import Trainer
    from wsipipe.slide import find_slides

    changes = {
        "optim.steps": steps,
        "optim.batch": 32,
        "optim.accumulate": 1,
        "monitor.stop": False,
    }
    recipe = load_recipe(recipe_name, "paper", changes)
    workers = len(os.sched_getaffinity(0))
    source = SlideSource(find_slides(slides), recipe.sampler, workers=workers)
    with tempfile.TemporaryDirectory() as out:
        result = Trainer(recipe, source, Path(out), device="cuda:0").train()
    return {"wsipipe waits for data": result.data_wait}


def _against_peers(value: float, figures: dict[str, float]) -> str:
    peers = {n: v for n, v in figures.items() if not n.startswith("wsipipe")}
    return "".join(f"  {value / v:5.2f}x {n}" for n, v in peers.items() if v != value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU seconds a contender")
    parser.add_argument("--recipe", default="uni", help="of the run on a GPU, where there is one")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "random tiles": contest(samplers(args.slides), args.seconds),
        "ten views": contest(augmenters(), args.seconds),
    }
    if torch.cuda.is_available():
        results["training on the GPU"] = waiting(args.slides, args.recipe, args.steps)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    for title, figures in results.items():
        print(f"\n{title}" + (" (tiles per CPU-second)" if "GPU" not in title else ""))
        for name, value in figures.items():
            print(f"  {name:24}{value:9.2f}" + _against_peers(value, figures))


if __name__ == "__main__":
    main()
