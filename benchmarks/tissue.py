"""Tissue detection against masks: ours beside plain thresholds and what other tools do.

Every method sees the same slide in the same run. `trident-like` and `clam-like` are written here
from the behaviour of those tools' defaults (two-pass Otsu in squares of 512 px at 1.25x; saturation
with a median at a down-sample of 64, contours by area) for comparison only.

    python benchmarks/tissue.py [--data FOLDER] [--slide FILE.svs]

FOLDER is a folder of real slides and artefacts with masks (WSIPIPE_TEST_DATA); where it is absent
only synthetic slides are measured. --slide adds a slide of one's own to the timing.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import wsipipe as wp
from wsipipe.tissue import detect_tissue

cv2.setNumThreads(1)
Detector = Callable[[wp.Slide], np.ndarray]  # slide -> (h, w) bool over the whole slide


# --- other tools' behaviour -----------------------------------------------------------------------


def trident_like(slide: wp.Slide) -> np.ndarray:
    rgb = slide.thumbnail(8.0).pixels
    found = np.zeros(rgb.shape[:2], bool)
    for top in range(0, rgb.shape[0], 512):
        for left in range(0, rgb.shape[1], 512):
            square = np.full((512, 512, 3), 255, np.uint8)
            part = rgb[top : top + 512, left : left + 512]
            square[: part.shape[0], : part.shape[1]] = part
            mask = _two_passes(square)[: part.shape[0], : part.shape[1]]
            found[top : top + 512, left : left + 512] = mask
    return _contours(found, min_px=1000, min_hole_px=np.inf, most_holes=0)


def _two_passes(square: np.ndarray) -> np.ndarray:
    square = square.copy()
    square[(square == 0).all(axis=2)] = 255
    hsv = cv2.cvtColor(square, cv2.COLOR_RGB2HSV)
    colourless = (hsv[..., 1] <= 10) & (hsv[..., 2] >= 70)
    square[colourless | (hsv[..., 2] <= 85)] = 255
    mask = _darker_than_otsu(square)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    large = stats[:, cv2.CC_STAT_AREA] >= 60
    large[0] = False
    square[~large[labels]] = 255
    mask = _darker_than_otsu(square)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < 5000
    small[0] = False
    return mask | small[labels]


def _darker_than_otsu(rgb: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if grey.min() == grey.max():
        return np.zeros(grey.shape, bool)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    return grey <= threshold


def clam_like(slide: wp.Slide) -> np.ndarray:
    rgb = slide.thumbnail(64 * slide.mpp).pixels
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 7)
    mask = cv2.morphologyEx((saturation > 8).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((4, 4)))
    reference = (512 / 64) ** 2
    return _contours(mask > 0, min_px=100 * reference, min_hole_px=16 * reference, most_holes=8)


def _contours(
    mask: np.ndarray, *, min_px: float, min_hole_px: float, most_holes: int
) -> np.ndarray:
    """Outer contours above an area, filled but for their largest holes."""
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros(mask.shape, np.uint8)
    for index, contour in enumerate(contours):
        if tree[0, index, 3] != -1:
            continue
        holes = [h for h in range(len(contours)) if tree[0, h, 3] == index]
        holes = [contours[h] for h in sorted(holes, key=lambda h: -cv2.contourArea(contours[h]))]
        if cv2.contourArea(contour) - sum(map(cv2.contourArea, holes)) <= min_px:
            continue
        cv2.drawContours(drawn, [contour], -1, 1, cv2.FILLED)
        kept = [h for h in holes[:most_holes] if cv2.contourArea(h) > min_hole_px]
        cv2.drawContours(drawn, kept, -1, 0, cv2.FILLED)
    return drawn > 0


METHODS: dict[str, Detector] = {
    **{m: lambda s, m=m: detect_tissue(s, m).mask for m in ("auto", "otsu", "hsv", "entropy")},
    "trident-like": trident_like,
    "clam-like": clam_like,
}


# --- measures -------------------------------------------------------------------------------------


def fit(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def overlap(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    both, either = (found & truth).sum(), (found | truth).sum()
    if not either:
        return 1.0, 1.0
    return both / either, 2 * both / (found.sum() + truth.sum())


def against_masks(cases: list[tuple[str, Path, float | None, Path]]) -> None:
    print("\nIoU / Dice / CPU ms")
    print("slide".ljust(26), *(name.rjust(20) for name in METHODS))
    for name, path, mpp, truth_path in cases:
        truth = np.asarray(Image.open(truth_path)) > 0
        cells = []
        with wp.open_slide(path, mpp=mpp) as slide:
            for detect in METHODS.values():
                begun = time.process_time()
                found = detect(slide)
                ms = 1000 * (time.process_time() - begun)
                iou, dice = overlap(fit(found, truth.shape), truth)
                cells.append(f"{iou:.3f} {dice:.3f} {ms:6.0f}".rjust(20))
        print(name.ljust(26), *cells)


def against_artefacts(folder: Path) -> None:
    print("\nArtefact pixels: recognised by auto, and kept as tissue by each method; tissue lost")
    print("picture, assumed µm/px".ljust(40), "recognised".rjust(10), "lost".rjust(7), end=" ")
    print(*(name.rjust(12) for name in METHODS))
    for truth_path in sorted(folder.glob("*_mask.png")):
        path = truth_path.with_name(truth_path.name.replace("_mask", ""))
        for mpp in (8.0, 20.0):
            with wp.open_slide(path, mpp=mpp) as slide:
                ours, without = detect_tissue(slide), detect_tissue(slide, pen=False)
                truth = fit(np.asarray(Image.open(truth_path).convert("1")), ours.mask.shape)
                kept = [_kept(detect(slide), truth) for detect in METHODS.values()]
            far = cv2.distanceTransform((~truth).astype(np.uint8), cv2.DIST_L2, 5) > 800 / mpp
            lost = (without.mask & far & ~ours.mask).sum() / max(1, (without.mask & far).sum())
            found = (ours.pen & truth).sum() / truth.sum()
            print(f"{path.stem}, {mpp:g}".ljust(40), f"{found:10.3f} {lost:7.4f}", *kept)


def _kept(found: np.ndarray, truth: np.ndarray) -> str:
    """Share of the artefact that is called tissue; "none" where nothing at all is."""
    if not found.any():
        return "none".rjust(12)
    return f"{(fit(found, truth.shape) & truth).sum() / truth.sum():.3f}".rjust(12)


def emptiness(folder: Path) -> None:
    print("\nPictures without tissue: share that is called tissue (0.5 and 8 µm/px)")
    for name in ("no-tissue", "no-tissue-green-pen", "no-tissue-line", "almost-white-1"):
        cells = []
        for detect in METHODS.values():
            shares = []
            for mpp in (0.5, 8.0):
                with wp.open_slide(folder / f"{name}.png", mpp=mpp) as slide:
                    shares.append(f"{detect(slide).mean():.3f}")
            cells.append(" ".join(shares).rjust(20))
        print(name.ljust(26), *cells)


def changes(rgb: np.ndarray, mpp: float) -> Iterator[tuple[str, np.ndarray, float]]:
    height, width = rgb.shape[:2]
    yield "x2", cv2.resize(rgb, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), mpp / 2
    half = cv2.resize(rgb, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    yield "x0.5", half, mpp * 2
    yield "x0.9", np.clip(rgb * 0.9, 0, 255).astype(np.uint8), mpp
    yield "x1.1", np.clip(rgb * 1.1, 0, 255).astype(np.uint8), mpp
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=40)
    yield "jpeg 40", np.asarray(Image.open(buffer)), mpp


def stability(pictures: dict[str, tuple[np.ndarray, float]]) -> None:
    print("\nChange of area in % (resolution of the thumbnail, brightness, JPEG quality)")
    with tempfile.TemporaryDirectory() as folder:
        for name, (rgb, mpp) in pictures.items():
            for method in ("auto", "otsu", "hsv"):
                before = _area(Path(folder), rgb, mpp, method)
                cells = [
                    f"{what} {100 * (_area(Path(folder), other, m, method) / before - 1):+6.2f}"
                    for what, other, m in changes(rgb, mpp)
                ]
                print(name.ljust(26), method.ljust(6), "  ".join(cells))


def _area(folder: Path, rgb: np.ndarray, mpp: float, method: str) -> float:
    path = folder / "picture.png"
    Image.fromarray(rgb).save(path)
    with wp.open_slide(path, mpp=mpp) as slide:
        # The thumbnail is read at the picture's own resolution, whatever that is.
        return max(1e-9, detect_tissue(slide, method, mpp=mpp).area_mm2)


def speed(paths: list[Path]) -> None:
    print("\nCPU seconds, median of 3: tissue, grid of 224 px at 0.5 µm; against trident-like")
    for path in paths:
        with wp.open_slide(path) as slide:
            rounds = []
            for _ in range(3):
                times = [time.process_time()]
                tissue = detect_tissue(slide)
                times.append(time.process_time())
                grid = wp.make_grid(slide, tissue, tile_px=224, mpp=0.5)
                times.append(time.process_time())
                trident_like(slide)
                times.append(time.process_time())
                rounds.append(np.diff(times))
            found, laid, other = (statistics.median(c) for c in zip(*rounds, strict=True))
            width, height = slide.dimensions
        print(
            f"{path.name} {width} x {height}: tissue {found:.2f}, grid {laid:.2f} ({len(grid)} "
            f"tiles), trident-like tissue {other:.2f} ({other / found:.2f}x); "
            f"peak of a fresh process {_peak_mb(path):.0f} MB"
        )


_FRESH = """
import sys
import wsipipe as wp
with wp.open_slide(sys.argv[1]) as slide:
    wp.make_grid(slide, wp.detect_tissue(slide), tile_px=224, mpp=0.5)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def _peak_mb(path: Path) -> float:
    """Resident memory at its highest (VmHWM, Linux) of tissue and grid alone, imports included."""
    command = [sys.executable, "-c", _FRESH, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.environ.get("WSIPIPE_TEST_DATA")
    parser.add_argument("--data", type=Path, default=Path(default) if default else None)
    parser.add_argument("--slide", type=Path, action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases, slides = _synthetic(Path(folder))
        data = args.data
        if data is not None and (data / "slides/P2_0039_sec1.svs").exists():
            section = data / "slides/P2_0039_sec1.svs"
            mask = data / "slides/P2_0039_sec1_tissue_ds16.png"
            cases.insert(0, ("P2_0039_sec1 (real)", section, None, mask))
            slides.append(section)
        else:
            print("No real data (--data): only synthetic slides, which are too easy.")
        against_masks(cases)
        if data is not None and (data / "artefacts").is_dir():
            against_artefacts(data / "artefacts")
            emptiness(data / "artefacts")
        pictures = {}
        for path in [c[1] for c in cases[:2]]:
            with wp.open_slide(path) as slide:
                pictures[path.stem] = slide.thumbnail(8.0).pixels, 8.0
        stability(pictures)
        speed([*slides, *args.slide])


def _synthetic(folder: Path) -> tuple[list[tuple[str, Path, float | None, Path]], list[Path]]:
    """Two synthetic slides with their masks."""
    from wsipipe.synth import make_cohort

    slides = make_cohort(folder, n=2, width=8192, mpp=0.5, seed=3)
    cases = [(s.stem, s, None, folder / "truth" / "tissue" / f"{s.stem}.png") for s in slides]
    return cases, list(slides)


if __name__ == "__main__":
    main()
