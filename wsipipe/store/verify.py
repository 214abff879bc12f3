"""What is broken in a folder of results: every file is opened, every claim it makes is checked.

Damage is what makes a result wrong or lost; a note is worth knowing and hurts nothing (leftovers
of a killed run, two precisions in one folder).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import WsipipeError
from wsipipe.store.features import Features, read_features
from wsipipe.store.partial import find_partials
from wsipipe.store.publish import find_temporaries
from wsipipe.store.records import Records, read_record
from wsipipe.store.tables import feature_files, read_slides_csv
from wsipipe.store.verify_file import verify_features
from wsipipe.types import FloatArray, Rows

__all__ = ["Embedder", "Finding", "VerifyResult", "verify_run"]

# Embeds some rows of a bag anew from its slide: (bag, rows (k,) int64) -> (k, D) float32.
Embedder = Callable[[Features, Rows], FloatArray]

# bf16 against fp32 of one model gives more than 0.999; another model or other pixels far less.
MIN_COSINE = 0.99

# A run looks at a file's identity alone: with that unharmed the file is done, --recompute or not.
_ANEW = "Remove the file and run the same extract again, or restore it from a copy."

# Attributes of which one folder should hold one value.
_UNIFORM = ("encoder", "encoder_revision", "precision", "mpp", "tile_px", "overlap", "pooling")


@dataclass(frozen=True)
class Finding:
    """One thing found: in which file, what, and what to do."""

    severity: Literal["damage", "note"]
    path: str
    problem: str
    remedy: str = ""


@dataclass
class VerifyResult:
    """All findings, and what was looked at."""

    files: int = 0
    tiles: int = 0
    sampled: int = 0
    worst_cosine: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """True if something is wrong or lost."""
        return any(f.severity == "damage" for f in self.findings)


def verify_run(
    out: str | Path,
    *,
    quick: bool = False,
    sample: int = 0,
    embed: Embedder | None = None,
    seed: int = 0,
    progress: Callable[[Path], None] = lambda _: None,
) -> VerifyResult:
    """Check everything in the folder of a run.

    Args:
        out: Folder of the run, or any folder with feature files of this package.
        quick: Look at structure and attributes only, not at the bytes.
        sample: So many tiles of the whole run are embedded anew and compared with the stored rows.
        embed: Does that; needed for `sample`.
        seed: Which tiles are drawn.
        progress: Told each file before it is looked at.
    """
    out = Path(out)
    result = VerifyResult()
    files = feature_files(out)
    if not files and not (out / "features").exists():
        files = {("", p.stem): p for p in sorted(out.rglob("*.h5")) if not p.name.startswith(".")}
    folders: dict[str, dict[str, dict[Any, int]]] = defaultdict(lambda: defaultdict(dict))
    sound = []
    for (folder, slide_id), path in sorted(files.items()):
        progress(path)
        problems, attrs = verify_features(path, quick=quick)
        if attrs.get("slide_id") not in (None, slide_id) and folder:
            problems.append(f"it says it is slide {attrs['slide_id']!r}")
        for problem in problems:
            result.findings.append(Finding("damage", _relative(path, out), problem, _ANEW))
        if not problems:
            sound.append(path)
        result.files += 1
        result.tiles += int(attrs.get("rows", 0))
        for name in _UNIFORM:
            if name in attrs:
                counts = folders[folder][name]
                counts[attrs[name]] = counts.get(attrs[name], 0) + 1
    result.findings += _mixtures(folders)
    result.findings += _lost_files(out, files)
    result.findings += _side_files(out)
    result.findings += _leftovers(out)
    if sample and embed is not None:
        _sample(result, out, sound, sample, embed, seed)
    return result


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()


def _mixtures(folders: Mapping[str, Mapping[str, Mapping[Any, int]]]) -> Iterator[Finding]:
    for folder, attributes in sorted(folders.items()):
        for name, counts in attributes.items():
            if len(counts) > 1:
                listed = ", ".join(f"{value}: {n} files" for value, n in counts.items())
                remedy = "Fine if it is meant; --recompute with one setting makes them equal."
                if name == "precision":
                    remedy = "Machines differ; --precision with --recompute makes them equal."
                where = f"features/{folder}" if folder else "."
                yield Finding("note", where, f"mixed {name} ({listed})", remedy)


def _lost_files(out: Path, files: Mapping[tuple[str, str], Path]) -> Iterator[Finding]:
    """Files that a record or `slides.csv` calls done and that are not there."""
    claims: dict[tuple[str, str], str] = {
        (row.encoder, row.slide_id): "slides.csv"
        for row in read_slides_csv(out / "slides.csv")
        if row.status in ("done", "empty")
    }
    for record in Records(out).all():
        for encoder, made in record.results.items():
            if made.status in ("done", "empty"):
                claims[encoder, record.slide_id] = f"attempts/{record.slide_id}.json"
    for (encoder, slide_id), source in sorted(claims.items()):
        if (encoder, slide_id) not in files:
            yield Finding(
                "damage",
                f"features/{encoder}/{slide_id}.h5",
                f"{source} calls it done, but the file is not there",
                "Run the same extract again.",
            )


def _side_files(out: Path) -> Iterator[Finding]:
    remedy = "Remove it; the next run makes it anew."
    picture = "Remove it; `wsipipe tissue` over the same slides and --out makes it anew."
    for path in sorted((out / "attempts").rglob("*.json")):
        if not path.name.startswith(".") and read_record(path) is None:
            yield Finding("damage", _relative(path, out), "not a record", remedy)
    for path in sorted((out / "tissue").rglob("*.geojson")):
        if path.name.startswith("."):
            continue
        try:
            kind = json.loads(path.read_bytes()).get("type")
        except (ValueError, AttributeError, OSError):
            kind = None
        if kind != "FeatureCollection":
            yield Finding("damage", _relative(path, out), "not GeoJSON", picture)
    for path in sorted((out / "thumbnails").rglob("*.jpg")):
        if path.name.startswith("."):
            continue
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if not (data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9")):
            yield Finding("damage", _relative(path, out), "not a whole JPEG", picture)


def _leftovers(out: Path) -> Iterator[Finding]:
    for path, owner in find_temporaries(out):
        if owner.state() != "alive":
            yield Finding(
                "note",
                _relative(path, out),
                f"temporary of process {owner.pid} on {owner.host}, which no longer writes it",
                "The next run removes it.",
            )
    for path, _ in find_partials(out / ".partial"):
        yield Finding(
            "note",
            _relative(path, out),
            "rows of an unfinished slide",
            "The next run goes on from them.",
        )


def _sample(
    result: VerifyResult, out: Path, files: list[Path], count: int, embed: Embedder, seed: int
) -> None:
    """Embed tiles anew, spread over the files, and compare directions with what is stored."""
    draw = np.random.default_rng(seed)
    bags = [path for path in files if len(read_features(path, lazy=True))]
    if not bags:
        return
    chosen: dict[Path, int] = defaultdict(int)
    order = draw.permutation(len(bags))
    for i in range(count):
        chosen[bags[order[i % len(bags)]]] += 1
    for path, wanted in chosen.items():
        bag = read_features(path, lazy=True)
        good = np.flatnonzero(bag.tile_status == 0)
        rows = np.sort(draw.choice(good, min(wanted, len(good)), replace=False))
        if not len(rows):
            continue
        try:
            again = embed(bag, rows)
        except WsipipeError as error:
            result.findings.append(
                Finding("note", _relative(path, out), f"not sampled: {error.problem}", error.remedy)
            )
            continue
        stored = bag.features[rows].shape
        if np.shape(again) != stored:
            result.findings.append(
                Finding(
                    "damage",
                    _relative(path, out),
                    f"embedded anew, {stored[0]} tiles have the shape {np.shape(again)}, and "
                    f"{stored} is stored",
                    f"Another encoder made this file. {_ANEW}",
                )
            )
            continue
        cosines = _cosines(
            np.asarray(bag.features[rows], np.float64), np.asarray(again, np.float64)
        )
        worst = float(cosines.min())
        result.sampled += len(rows)
        known = 1.0 if result.worst_cosine is None else result.worst_cosine
        result.worst_cosine = min(worst, known)
        if worst < MIN_COSINE:
            result.findings.append(
                Finding(
                    "damage",
                    _relative(path, out),
                    f"embedded anew, tile {int(rows[cosines.argmin()])} has cosine {worst:.4f} to "
                    "what is stored",
                    f"The slide, the weights or the file have changed. {_ANEW}",
                )
            )


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    return cosines
