"""Annotated regions to stay inside of: `--roi PATH [--roi-class NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.errors import ConfigError, TissueError
from wsipipe.tissue import polygons as shapes
from wsipipe.tissue.geojson import file_sha256, fit_polygons, load_document, mask_file
from wsipipe.tissue.mask import TissueMask

if TYPE_CHECKING:
    from wsipipe.slide import Slide

__all__ = ["read_roi", "roi_settings"]

VERSION = 1


def read_roi(
    path: str | Path, slide: Slide, *, slide_id: str, classes: str | Sequence[str] = ()
) -> TissueMask:
    """Read the annotations of a slide.

    Args:
        path: GeoJSON file, or a folder of `<slide_id>.geojson`, in level-0 pixels.
        slide: The slide they belong to. What lies beyond its edge is cut off.
        slide_id: Picks the file of a folder.
        classes: Names of the classes to take, in any case; a name also takes its subclasses
            ("Tumor" takes QuPath's "Tumor: Positive"). None given: all but ignored ones ("X*").

    Returns:
        The region as a mask; `make_grid(..., roi=)` takes it. Empty where the file holds no polygon
        at all: somebody looked and marked nothing.

    Raises:
        ConfigError: `path` does not exist.
        TissueError: No file for the slide, no GeoJSON, annotations but none of these classes (a
            misspelling would empty a cohort silently), or all of it lies outside the slide.
    """
    file = _file(Path(path), slide_id)
    document = load_document(file, slide)
    found = [shape for shape in shapes.parse(document, file, slide) if not shape.ignored]
    wanted = _names(classes)
    chosen = [s.polygon for s in found if not wanted or _belongs(s.name, wanted)]
    if found and not chosen:
        there = ", ".join(sorted({s.name or "(no class)" for s in found}))
        asked = f" of class {' or '.join(repr(c) for c in wanted)}" if wanted else ""
        raise TissueError(
            slide.path,
            f"{file} has no annotation{asked}; it has: {there}.",
            "Correct --roi-class or the annotations, or leave the slide out.",
        )
    # Annotators draw generously over the edge: only what misses the slide altogether is refused.
    return fit_polygons(chosen, document, file, slide, method="roi", max_outside=1 - 1e-6)


def roi_settings(
    path: str | Path, *, slide_id: str | None = None, classes: str | Sequence[str] = ()
) -> dict[str, Any]:
    """What decides a region, for the identity: classes and, for a slide, its file's sha256.

    Raises:
        ConfigError: `path` does not exist.
        TissueError: The folder has no file for the slide.
    """
    recorded: dict[str, Any] = {"version": VERSION, "classes": sorted(_names(classes))}
    if slide_id is not None or Path(path).is_file():
        recorded["sha256"] = file_sha256(_file(Path(path), slide_id or ""))
    elif not Path(path).exists():
        raise _missing(Path(path))
    return recorded


def _file(path: Path, slide_id: str) -> Path:
    if path.is_dir():
        return mask_file(path, slide_id)
    if not path.exists():
        raise _missing(path)
    return path


def _missing(path: Path) -> ConfigError:
    return ConfigError(
        f"--roi {path} does not exist.", "Name a GeoJSON file or a folder of <slide_id>.geojson."
    )


def _names(classes: str | Sequence[str]) -> list[str]:
    return [classes] if isinstance(classes, str) else list(classes)


def _belongs(name: str, wanted: Sequence[str]) -> bool:
    own = name.casefold()
    return any(own == w.casefold() or own.startswith(f"{w.casefold()}:") for w in wanted)
