"""One synthetic slide, and whole cohorts of them with patients, sites and labels."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import ConfigError
from wsipipe.store.publish import make_folder, publish_text, remove_stale_temporaries
from wsipipe.synth.truth import NORMAL, TUMOUR_LABEL, SlideTruth

VERSION = 1
MAX_SIDE_PX = 200_000
MIN_SIDE_PX = 64
LABEL_COLUMNS = (
    "slide_id", "label", "patient_id", "site", "tumour_fraction", "tissue_mm2", "tumour_mm2",
    "width", "height", "mpp", "seed",
)  # fmt: skip


def make_slide(
    path: str | Path,
    *,
    width: int = 4096,
    height: int | None = None,
    mpp: float = 0.5,
    seed: int = 0,
    label: str = TUMOUR_LABEL,
    tumour_fraction: float = 0.25,
    pieces: int = 2,
    artefacts: Sequence[str] = (),
    stain_seed: int | None = None,
    codec: str = "jpeg",
    quality: int = 85,
    name_mpp: bool = True,
    workers: int | None = None,
    truth: str | Path | None = None,
) -> SlideTruth:
    """Write a synthetic H&E-like slide: a pyramidal TIFF with an Aperio description.

    The same arguments give the same bytes on the same versions of the libraries. Memory depends on
    the width alone (about 0.5 GB at 60,000 px).

    Args:
        path: File to write, for example `slide.svs`; its folder is made.
        width: Level-0 pixels.
        height: Level-0 pixels; as the width when None.
        mpp: µm per level-0 pixel.
        seed: Integer >= 0 that decides everything that is random.
        label: "tumour" or "normal".
        tumour_fraction: Share of the tissue that is tumour, on a slide with this label.
        pieces: Number of pieces of tissue.
        artefacts: Any of "pen", "fold", "blur".
        stain_seed: Decides the stain and the scanner's colours; `seed` when None. Slides of one
            laboratory share it.
        codec: "jpeg", "jp2k", "lzw" or "deflate".
        quality: Of JPEG and JPEG 2000, 1 to 100.
        name_mpp: False leaves resolution and magnification out of the file.
        workers: Threads; the number of usable cores when None.
        truth: Folder for the masks (see `SlideTruth.save`); they are not written when None.

    Returns:
        Label, masks and areas.

    Raises:
        ConfigError: An argument is out of range.
        OutputError: The file cannot be written.
    """
    from wsipipe.synth.paint import Painter
    from wsipipe.synth.scene import draw_scene, draw_stain
    from wsipipe.synth.truth import measure
    from wsipipe.synth.writer import write_slide

    path = Path(path)
    height = width if height is None else height
    _check_picture(width, height, mpp, codec, artefacts, workers)
    _require(0 <= seed < 2**63, f"seed is {seed}", "an integer from 0 on")
    _require(label in (TUMOUR_LABEL, NORMAL), f"label is {label!r}", "tumour or normal")
    _require(0 < tumour_fraction <= 0.9, f"tumour fraction is {tumour_fraction}", "0 to 0.9")
    _require(1 <= pieces <= 50, f"pieces is {pieces}", "1 to 50")
    _require(1 <= quality <= 100, f"quality is {quality}", "1 to 100")
    tumour_fraction = tumour_fraction if label == TUMOUR_LABEL else 0.0
    artefacts = tuple(sorted(set(artefacts)))
    stain_seed = seed if stain_seed is None else stain_seed
    scene = draw_scene(
        width, height, mpp, seed, tumour_fraction=tumour_fraction, pieces=pieces,
        artefacts=artefacts, stain=draw_stain(np.random.default_rng((stain_seed, 7))),
    )  # fmt: skip
    settings: dict[str, Any] = {
        "version": VERSION, "width": width, "height": height, "mpp": mpp, "seed": seed,
        "stain_seed": stain_seed, "codec": codec, "quality": quality, "name_mpp": name_mpp,
        "tumour_fraction": tumour_fraction, "pieces": pieces, "artefacts": list(artefacts),
    }  # fmt: skip
    write_slide(
        path, Painter(scene), codec=codec, quality=quality, name_mpp=name_mpp,
        workers=workers or usable_cores(),
    )  # fmt: skip
    result = measure(scene, path, settings)
    if truth is not None:
        result.save(Path(truth), path.stem)
    return result


def make_cohort(
    out: str | Path,
    *,
    n: int = 3,
    width: int = 4096,
    height: int | None = None,
    mpp: float = 0.5,
    seed: int = 0,
    labels: bool = True,
    tumour_fraction: tuple[float, float] = (0.05, 0.4),
    slides_per_patient: int = 1,
    sites: int = 2,
    artefacts: Sequence[str] = (),
    codec: str = "jpeg",
    name_mpp: bool = True,
    workers: int | None = None,
    progress: Callable[[str, bool], None] | None = None,
) -> list[Path]:
    """Write `n` slides, `labels.csv` and `truth/`; slides that are there already are kept.

    Args:
        out: Folder; slides are `slide-0001.svs` and so on, of seed 7 `slide-7-0001.svs`.
        n: Number of slides.
        width: Level-0 pixels.
        height: Level-0 pixels; as the width when None.
        mpp: µm per level-0 pixel.
        seed: Decides everything. What slide k looks like, but for label and site, does not depend
            on `n`.
        labels: Half of the patients have tumour and half have none, at every site. False: all have
            tumour.
        tumour_fraction: Smallest and largest share of tumour in the tissue.
        slides_per_patient: Consecutive slides that share a patient, and with it label and site.
        sites: Number of sites. Slides of one site share a stain.
        artefacts: Any of "pen", "fold", "blur"; each slide gets all of them.
        codec: As `make_slide`.
        name_mpp: As `make_slide`.
        workers: As `make_slide`.
        progress: Called with (slide id, whether it was made now) after each slide.

    Returns:
        Paths of the slides.

    Raises:
        ConfigError: An argument is out of range, or the folder holds somebody else's slides.
        OutputError: The folder cannot be written.
    """
    _require(1 <= n <= 1_000_000, f"number of slides is {n}", "1 or more")
    _require(0 <= seed < 2**31, f"seed is {seed}", "an integer from 0 on")
    _require(slides_per_patient >= 1, f"slides per patient is {slides_per_patient}", "1 or more")
    _require(1 <= sites <= 26, f"number of sites is {sites}", "1 to 26")
    height = width if height is None else height
    _check_picture(width, height, mpp, codec, artefacts, workers)
    low, high = tumour_fraction
    _require(0 < low <= high <= 0.9, f"tumour fraction is {low} to {high}", "within 0 to 0.9")
    out = Path(out)
    patients = -(-n // slides_per_patient)
    with_tumour, at_site = _draw_patients(patients, sites, labels, seed)
    _refuse_foreign(out)
    make_folder(out)
    remove_stale_temporaries(out)
    # Slides of two cohorts must not pass for the same slide or patient.
    series = f"{seed}-" if seed else ""
    rows, paths = [], []
    for index in range(n):
        patient = index // slides_per_patient
        rng = np.random.default_rng((seed, index))
        slide_id = f"slide-{series}{index + 1:04d}"
        path = out / f"{slide_id}.svs"
        site = at_site[patient]
        asked: dict[str, Any] = {
            "width": width, "height": height, "mpp": mpp,
            "seed": int(rng.integers(2**31)),
            "label": TUMOUR_LABEL if patient in with_tumour else NORMAL,
            "tumour_fraction": round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 4),
            "pieces": int(rng.integers(1, 4)), "artefacts": tuple(sorted(set(artefacts))),
            "stain_seed": 1000 * (seed + 1) + site, "codec": codec, "name_mpp": name_mpp,
        }  # fmt: skip
        summary = _finished(out / "truth", slide_id, path, asked)
        missing = summary is None
        if summary is None:
            make_slide(path, workers=workers, truth=out / "truth", **asked)
            summary = json.loads((out / "truth" / f"{slide_id}.json").read_text("utf-8"))
        if progress is not None:
            progress(slide_id, missing)
        summary |= {
            "patient_id": f"patient-{series}{patient + 1:04d}",
            "site": f"site-{chr(65 + site)}",
        }
        rows.append(summary)
        paths.append(path)
    _write_labels(out / "labels.csv", rows)
    return paths


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require(holds: bool, problem: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"synth: {problem}.", f"Allowed: {allowed}.")


def _check_picture(
    width: int, height: int, mpp: float, codec: str, artefacts: Sequence[str], workers: int | None
) -> None:
    """Refuse what no slide can be, before anything is written."""
    from wsipipe.synth.scene import ARTEFACTS
    from wsipipe.synth.writer import CODECS

    for name, side in (("width", width), ("height", height)):
        _require(
            MIN_SIDE_PX <= side <= MAX_SIDE_PX,
            f"{name} is {side} px", f"{MIN_SIDE_PX} to {MAX_SIDE_PX}",
        )  # fmt: skip
    _require(math.isfinite(mpp) and 0.05 <= mpp <= 20, f"mpp is {mpp}", "0.05 to 20 µm/px")
    _require(codec in CODECS, f"codec is {codec!r}", ", ".join(CODECS))
    for name in artefacts:
        _require(name in ARTEFACTS, f"artefact is {name!r}", ", ".join(ARTEFACTS))
    _require(workers is None or workers >= 1, f"workers is {workers}", "1 or more")


def _draw_patients(
    patients: int, sites: int, labels: bool, seed: int
) -> tuple[set[int], dict[int, int]]:
    """Who has tumour (half of them, rounded up, by lot), and each patient's site.

    Either half is spread evenly over the sites: a site must not give the label away.
    """
    order = np.random.default_rng((seed, 5)).permutation(patients).tolist()
    half = -(-patients // 2) if labels else patients
    groups = (order[:half], order[half:])
    return set(groups[0]), {p: k % sites for group in groups for k, p in enumerate(group)}


def _refuse_foreign(out: Path) -> None:
    """Never replace a slide or a table that somebody else made."""
    from wsipipe.synth.writer import MARK

    # A table with columns that somebody added is theirs.
    ours = {"labels.csv": ",".join(LABEL_COLUMNS) + "\n", "slide-*.svs": MARK}
    for pattern, sign in ours.items():
        for path in sorted(out.glob(pattern)) if out.is_dir() else ():
            try:
                with path.open("rb") as handle:
                    known = sign.encode() in handle.read(8192)
            except OSError as error:
                raise ConfigError(f"synth: {path} cannot be read ({error.strerror}).") from error
            if not known:
                raise ConfigError(
                    f"synth: {path} was not made by this command and would be replaced.",
                    "Choose another folder.",
                )


def _finished(
    truth: Path, slide_id: str, path: Path, asked: dict[str, Any]
) -> dict[str, Any] | None:
    """The summary of a slide that was made of the same settings, or None."""
    try:
        summary = json.loads((truth / f"{slide_id}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    settings = summary.get("settings", {})
    wanted = {k: v for k, v in asked.items() if k != "label"} | {"version": VERSION}
    wanted["artefacts"] = list(asked["artefacts"])
    if asked["label"] == NORMAL:
        wanted["tumour_fraction"] = 0.0
    same = all(settings.get(k) == v for k, v in wanted.items())
    return summary if same and path.is_file() else None


def _write_labels(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, LABEL_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish_text(path, text.getvalue())
