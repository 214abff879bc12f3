"""The slides of a training run: which can serve, and a few of them open at a time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import SlideError
from wsipipe.slide import ReadPlan, Slide, SlideEntry, choose_level, open_slide
from wsipipe.tissue import TissueMask, detect_tissue, tissue_settings

__all__ = ["OpenSlide", "SlidePool", "UsableSlide", "WantedMpp", "allowed_mpp"]

WantedMpp = dict[float, float] | tuple[float, float] | float

_MAX_UPSAMPLE = 1.10
_TOLERANCE = 0.05


@dataclass
class UsableSlide:
    """What was found out about a slide once.

    Attributes:
        entry: Where it is.
        mpp: Its own µm per pixel.
        options: The part of the wanted mpp that it can give.
        tissue_mm2: Area of its tissue.
    """

    entry: SlideEntry
    mpp: float
    options: dict[float, float] | tuple[float, float]
    tissue_mm2: float


@dataclass
class OpenSlide:
    """A slide of the pool with its tissue.

    Attributes:
        slide: Open.
        tissue: Its mask.
        places: Flat indices of the mask's pixels that are tissue.
        plans: How each mpp is read.
    """

    slide: Slide
    tissue: TissueMask
    places: NDArray[np.int64]
    plans: dict[float, ReadPlan] = field(default_factory=dict)

    def plan(self, mpp: float) -> ReadPlan:
        """How pixels at `mpp` are read; remembered, for exact arithmetic takes its time."""
        if mpp not in self.plans:
            if len(self.plans) > 1000:  # continuous magnification
                self.plans.clear()
            self.plans[mpp] = choose_level(
                self.slide, mpp, mpp_tolerance=_TOLERANCE, max_upsample=_MAX_UPSAMPLE
            )
        return self.plans[mpp]


class SlidePool:
    """Examines slides once, opens them when asked, closes the longest unused.

    Args:
        entries: Slides, as `find_slides` gives them.
        wanted: The recipe's mpp.
        open_at_once: Slides held open.
        tissue: Tissue method, or a folder of masks.
        cache: Folder in which tissue masks are kept; None = found again at each visit.
        threads: Examine slides side by side.

    Attributes:
        units: The usable slides.
        skipped: (slide_id, reason) of the others.
    """

    def __init__(
        self,
        entries: Sequence[SlideEntry],
        wanted: WantedMpp,
        *,
        open_at_once: int,
        tissue: str,
        cache: Path | None,
        threads: Executor,
    ) -> None:
        self.wanted, self.open_at_once = wanted, open_at_once
        self.tissue, self.cache = tissue, cache
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenSlide] = OrderedDict()
        self._opening: dict[int, threading.Lock] = {}
        found = list(threads.map(self._examine, entries))
        self.units = [u for u in found if isinstance(u, UsableSlide)]
        self.skipped = [
            (e.slide_id, u) for e, u in zip(entries, found, strict=True) if isinstance(u, str)
        ]

    def _examine(self, entry: SlideEntry) -> UsableSlide | str:
        try:
            with open_slide(entry.path, mpp=entry.mpp) as slide:
                own = float(max(slide.mpp_xy))
                options = allowed_mpp(self.wanted, own)
                if not options:
                    return f"its {own:g} µm per pixel cannot give mpp {self.wanted}"
                tissue = self._find_tissue(slide, entry.slide_id)
                if tissue.is_empty:
                    return "no tissue"
                return UsableSlide(entry, own, options, tissue.area_mm2)
        except SlideError as error:
            return error.reason

    def _find_tissue(self, slide: Slide, slide_id: str) -> TissueMask:
        path = None
        if self.cache is not None:
            settings = json.dumps(tissue_settings(self.tissue, slide_id=slide_id), sort_keys=True)
            key = hashlib.sha256(f"{slide.fingerprint()} {settings}".encode()).hexdigest()[:16]
            path = self.cache / f"{slide_id.replace('/', '__')}-{key}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as stored:
                    mask = np.unpackbits(stored["bits"])[: int(np.prod(stored["shape"]))]
                    return TissueMask(
                        mask.reshape(stored["shape"]).astype(bool),
                        (Fraction(str(stored["dx"])), Fraction(str(stored["dy"]))),
                        self.tissue,
                        {},
                        slide.mpp_xy,
                    )
        found = detect_tissue(slide, self.tissue, slide_id=slide_id)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            dx, dy = (str(d) for d in found.downsample)
            bits, shape = np.packbits(found.mask), np.array(found.mask.shape)
            with temporary.open("wb") as file:
                np.savez(file, bits=bits, shape=shape, dx=np.array(dx), dy=np.array(dy))
            temporary.rename(path)
        return found

    def get(self, index: int) -> OpenSlide:
        """The open slide; opened once by whichever thread comes first."""
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
            gate = self._opening.setdefault(index, threading.Lock())
        with gate:
            with self._lock:
                if index in self._open:
                    return self._open[index]
            entry = self.units[index].entry
            slide = open_slide(entry.path, mpp=entry.mpp)
            tissue = self._find_tissue(slide, entry.slide_id)
            opened = OpenSlide(slide, tissue, np.flatnonzero(tissue.mask))
            with self._lock:
                self._open[index] = opened
                while len(self._open) > self.open_at_once:
                    self._open.popitem(last=False)[1].slide.close()
            return opened

    def close(self) -> None:
        """Close all slides."""
        for opened in self._open.values():
            opened.slide.close()
        self._open.clear()


def allowed_mpp(
    wanted: dict[float, float] | tuple[float, float] | float, own: float
) -> dict[float, float] | tuple[float, float] | None:
    """The part of a recipe's mpp that a slide of `own` mpp can give; None if nothing."""
    finest = own / _MAX_UPSAMPLE
    if isinstance(wanted, dict):
        return {m: w for m, w in wanted.items() if m >= finest and w > 0} or None
    if isinstance(wanted, tuple):
        low = max(wanted[0], finest)
        return (low, wanted[1]) if low < wanted[1] else None
    return {wanted: 1.0} if wanted >= finest else None
