"""TRIDENT's job folder.

    <mag>x_<px>px_<overlap>px_overlap/patches/<slide>_patches.h5    coords (N, 2) int64, attributes
    <mag>x_<px>px_<overlap>px_overlap/features_<enc>/<slide>.h5     features (N, D), coords
    contours_geojson/<slide>.geojson                                level-0 pixels
    wsi_states/<slide>__<hash>.json                                 sizes, mpp, state of each task

`coords` are level-0 pixels of the top-left corner. Their attributes have no mpp; it comes from
`wsi_states` or from the user. Layout: mahmoodlab/TRIDENT, `trident/IO.py` and `Processor.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsipipe.errors import ConfigError
from wsipipe.store.features import FeatureFile, read_features
from wsipipe.store.layouts._common import (
    Bag,
    SlideFacts,
    Wanted,
    flat_names,
    foreign_file,
    publish_h5,
)
from wsipipe.store.progress import RunStatus
from wsipipe.store.publish import publish_file
from wsipipe.store.tables import SlideRow

__all__ = ["export", "is_trident_job", "read", "trident_status"]

_COORDS_FOLDER = re.compile(r"^(?P<mag>[\d.]+)x_(?P<px>\d+)px_(?P<overlap>\d+)px_overlap$")


def export(bags: list[Bag], dest: Path) -> list[Path]:
    """Write `bags` as a job folder; slides lie flat, by base name where that is unique."""
    names = flat_names(bag.slide_id for bag in bags)
    written: list[Path] = []
    for bag in bags:
        name, known = names[bag.slide_id], bag.content.coords_attrs
        folder = dest / (
            f"{known['target_magnification']:g}x_{known['patch_size']}px_"
            f"{known['overlap']}px_overlap"
        )
        # TRIDENT writes its own folder here; a path of this machine is nobody's business.
        coords_attributes = {**known, "name": name, "savetodir": ""}
        coords = {"coords": bag.content.coords}
        patches = folder / "patches" / f"{name}_patches.h5"
        if patches not in written:
            written.append(publish_h5(patches, coords, {"coords": coords_attributes}))
        written.append(
            publish_h5(
                folder / f"features_{bag.encoder}" / f"{name}.h5",
                {"features": bag.content.features, **coords},
                {
                    "features": {"name": name, "savetodir": "", "encoder": bag.encoder},
                    "coords": coords_attributes,
                },
            )
        )
        contour = dest / "contours_geojson" / f"{name}.geojson"
        if bag.tissue is not None and contour not in written:
            written.append(publish_file(bag.tissue, contour))
    return written


def read(job: Path, wanted: Wanted) -> Iterator[tuple[str, FeatureFile]]:
    """All features of a job folder (or of one of its coords folders)."""
    states = _states(job if (job / "wsi_states").is_dir() else job.parent)
    for folder in _coords_folders(job):
        for features in sorted(folder.glob("features_*")):
            encoder = features.name.removeprefix("features_")
            for path in sorted(features.glob("*.h5")):
                yield encoder, _read_one(path, wanted.encoder or encoder, states, wanted)


def _coords_folders(job: Path) -> list[Path]:
    if _COORDS_FOLDER.match(job.name):
        return [job]
    found = [p for p in job.iterdir() if p.is_dir() and _COORDS_FOLDER.match(p.name)]
    return sorted(found) if job.is_dir() else []


def _states(job: Path) -> dict[str, dict[str, Any]]:
    """Slide name -> what `wsi_states` says on it."""
    found = {}
    for path in sorted((job / "wsi_states").glob("*.json")):
        try:
            state = json.loads(path.read_bytes())
            found[str(state["slide"]["name"]).removesuffix(str(state["slide"].get("ext", "")))] = (
                state
            )
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _recorded(state: dict[str, Any], known: dict[str, Any]) -> SlideFacts:
    mpp = state.get("meta", {}).get("mpp")
    return SlideFacts(
        mpp=float(mpp) if isinstance(mpp, int | float) and math.isfinite(mpp) else 0.0,
        mpp_source="trident",
        width=int(known.get("level0_width", 0)),
        height=int(known.get("level0_height", 0)),
    )


def _read_one(
    path: Path, encoder: str, states: dict[str, dict[str, Any]], wanted: Wanted
) -> FeatureFile:
    bag = read_features(path)
    known = bag.coords_attrs
    missing = [
        n for n in ("patch_size", "patch_size_level0", "target_magnification") if n not in known
    ]
    if missing:
        raise ConfigError(f"{path}: attributes of coords are missing: {', '.join(missing)}.")
    facts = wanted.facts_of(path.stem, _recorded(states.get(path.stem, {}), known))
    if not facts.width:
        recorded = _recorded({}, known)
        facts = SlideFacts(
            facts.mpp, facts.mpp_source, recorded.width, recorded.height, facts.fingerprint
        )
    magnification = float(known.get("level0_magnification") or 0)
    if magnification and not 0.6 < facts.mpp * magnification / 10 < 1.7:
        raise ConfigError(
            f"{path.stem}: {facts.mpp:g} µm a pixel does not fit the {magnification:g}x that the "
            "file records.",
            "Correct the mpp that was given; 40x is about 0.25, 20x about 0.5.",
        )
    return foreign_file(
        source="trident",
        slide_id=path.stem,
        features=np.asarray(bag.features),
        coords=bag.coords,
        facts=facts,
        encoder=encoder,
        tile_px=int(known["patch_size"]),
        tile_px0=float(known["patch_size_level0"]),
        # What was asked for; the true resolution of each slide is in mpp_effective.
        mpp=10 / float(known["target_magnification"]),
        overlap_px=int(known.get("overlap", 0)),
    )


def is_trident_job(folder: Path) -> bool:
    """True for a job folder of TRIDENT."""
    return (
        folder.is_dir()
        and not (folder / "run.yaml").exists()
        and ((folder / "wsi_states").is_dir() or any(_coords_folders(folder)))
    )


def trident_status(job: Path) -> RunStatus:
    """The state of a TRIDENT job: its features, its locks, what its `wsi_states` call failed."""
    states = _states(job)
    rows: dict[tuple[str, str], SlideRow] = {}
    running = []
    for folder in _coords_folders(job):
        for features in sorted(folder.glob("features_*")):
            encoder = f"{folder.name}/{features.name.removeprefix('features_')}"
            for path in sorted(features.glob("*.h5")):
                rows[path.stem, encoder] = _row(path, encoder, states.get(path.stem, {}))
            for lock in sorted(features.glob("*.h5.lock")):
                running.append(
                    {"slide_id": lock.name.removesuffix(".h5.lock"), "process": "elsewhere"}
                    | {"host": "", "pid": 0, "started_utc": ""}
                )
    failures = []
    for name, state in states.items():
        for task, entry in state.get("tasks", {}).items():
            kind, _, encoder = str(task).partition(":")
            status = str(entry.get("status", "")).lower()
            if status in ("failed", "error"):
                failures.append(
                    {"slide_id": name, "path": "", "stage": kind, "remedy": ""}
                    | {"error": str(entry.get("message") or entry.get("reason") or status)}
                )
            if kind == "patch_features" and not any(s == name for s, _ in rows):
                rows[name, encoder] = SlideRow(
                    slide_id=name,
                    path="",
                    encoder=encoder,
                    status="failed" if status in ("failed", "error") else "pending",
                )
    return RunStatus(job, [rows[key] for key in sorted(rows)], failures, running)


def _row(path: Path, encoder: str, state: dict[str, Any]) -> SlideRow:
    bag = read_features(path, lazy=True)
    return SlideRow(
        slide_id=path.stem,
        path="",
        encoder=encoder,
        status="done" if len(bag) else "empty",
        mpp=_recorded(state, {}).mpp or None,
        width=bag.coords_attrs.get("level0_width"),
        height=bag.coords_attrs.get("level0_height"),
        tiles=len(bag),
    )
