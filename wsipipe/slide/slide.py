"""A slide: size, resolution, and pixels at any resolution, the same for every format."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from wsipipe.errors import MissingMppError, ReadError, ResolutionError
from wsipipe.slide.arguments import as_whole, check_level, check_mpp, check_ratios
from wsipipe.slide.blocks import fill_region, repeat_edge
from wsipipe.slide.files import fingerprint, is_url, slide_files
from wsipipe.slide.forgiving import ForgivingLevel
from wsipipe.slide.icc import to_srgb
from wsipipe.slide.in_use import InUse
from wsipipe.slide.levels import exact_levels, round_half_up
from wsipipe.slide.mpp import MppResult, resolve_mpp
from wsipipe.slide.reader import CutBlockError, Reader
from wsipipe.slide.resample import resample_from
from wsipipe.slide.thumbnail import ThumbnailImage, reduce_level
from wsipipe.types import Bounds, Level, Rgb, TileArray, exact

__all__ = ["ReadPlan", "Slide", "ThumbnailImage", "choose_level"]

_MAX_READ_PIXELS: Final = 2**28


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How pixels of a target resolution come from a level.

    Attributes:
        level: Level that is read.
        mode: "native" (its own pixels), "area" (averaged) or "interpolate" (slide is coarser).
        scale: Level-0 pixels per output pixel (x, y), exact.
    """

    level: int
    mode: str
    scale: tuple[Fraction, Fraction]


class Slide:
    """An open slide. Reads are safe from many threads at once; use it as a context manager.

    Attributes:
        path: The file, folder or URL.
        reader: "tiff", "openslide", "dicom", "tiffslide", "zarr" or "image".
        reader_reason: Why this reader and not the fastest one; "" where there is nothing to say.
        vendor: Lower-case name of the format's maker, or None.
        levels: Finest first, with exact down-samples.
        dimensions: (width, height) of level 0.
        bounds: The scanned part, where the format has one.
        background: Colour given to what was not scanned.
        mpp_source: Where the pixel size came from; "none" where nobody says.
        mpp_notes: Sentences about values set aside, disagreements and guesses.
        properties: Allow-listed facts without personal data.
        icc_profile: The embedded colour profile, or None.
        icc: "none" or "srgb": whether the profile is applied.
    """

    def __init__(
        self,
        path: str | Path,
        reader: Reader,
        *,
        mpp: float | None = None,
        reader_reason: str = "",
        second: Callable[[], Reader | None] | None = None,
        icc: str = "none",
    ) -> None:
        self.path = path
        self._reader = reader
        self._second_factory = second
        self._second: Reader | None = None
        self._second_tried = False
        self._lock = threading.Lock()
        self._in_use = InUse(self._release)
        info = reader.info
        self.reader = reader.name
        self.reader_reason = reader_reason
        self.vendor = info.vendor
        self.levels = exact_levels(info.level_sizes)
        self.block_sizes = info.block_sizes
        self.dimensions = (self.levels[0].width, self.levels[0].height)
        self.bounds: Bounds | None = info.bounds
        self.background: Rgb = info.background
        self.properties = dict(info.properties)
        self.icc_profile = info.icc_profile
        self.icc = icc
        self._recolour = to_srgb(path, info.icc_profile) if icc == "srgb" else None
        self._mpp: MppResult = resolve_mpp(info.claims, mpp)
        self.mpp_source = self._mpp.source
        self.mpp_notes = self._mpp.notes
        if self._mpp.xy is not None:
            for axis, value in zip("xy", self._mpp.xy, strict=True):
                self.properties[f"openslide.mpp-{axis}"] = repr(float(value))
        self._fingerprint: str | None = None

    # -- resolution -------------------------------------------------------------------------

    @property
    def mpp_xy(self) -> tuple[Fraction, Fraction]:
        """µm per level-0 pixel (x, y), exact.

        Raises:
            MissingMppError: No source says it.
        """
        if self._mpp.xy is None:
            detail = f" ({'; '.join(self.mpp_notes)})" if self.mpp_notes else ""
            raise MissingMppError(self.path, f"the slide does not say its resolution (mpp){detail}")
        return self._mpp.xy

    @property
    def mpp(self) -> float:
        """µm per level-0 pixel; the mean of both axes where pixels are not square.

        Raises:
            MissingMppError: No source says it.
        """
        x, y = self.mpp_xy
        return float((x + y) / 2)

    # -- pixels -----------------------------------------------------------------------------

    def read(
        self,
        x: int,
        y: int,
        width: int,
        height: int,
        mpp: float | None = None,
        *,
        mpp_tolerance: float = 0.05,
        max_upsample: float = 1.10,
    ) -> TileArray:
        """Read a region at a physical resolution.

        Args:
            x, y: Top-left corner in level-0 pixels.
            width, height: Size in output pixels.
            mpp: Resolution of the output; None reads level 0 as it is.
            mpp_tolerance: A level within this relative distance of `mpp` gives its own pixels,
                from the nearest whole pixel of that level.
            max_upsample: How much coarser than `mpp` the slide may be.

        Returns:
            (height, width, 3) uint8 RGB; what lies outside the slide is background.

        Raises:
            ConfigError: An argument makes no sense.
            MissingMppError: `mpp` is given and the slide's own is unknown.
            ResolutionError: The slide is coarser than `mpp` by more than `max_upsample`.
            ReadError: Pixels cannot be decoded.
        """
        if mpp is None:
            return self.read_level(0, x, y, width, height)
        check_mpp(mpp)
        check_ratios(mpp_tolerance, max_upsample)
        x, y, width, height = as_whole(x=x, y=y, width=width, height=height)
        self._check_size(width, height)
        plan = choose_level(self, mpp, mpp_tolerance=mpp_tolerance, max_upsample=max_upsample)
        level = self.levels[plan.level]
        start = (Fraction(x) / level.downsample[0], Fraction(y) / level.downsample[1])
        if plan.mode == "native":
            left, top = (round_half_up(value) for value in start)
            return self.read_level(plan.level, left, top, width, height)
        return self._read_scaled(plan, start, width, height)

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> TileArray:
        """Read a level's own pixels.

        Args:
            level: Index into `levels`.
            x, y, width, height: In pixels of that level.

        Returns:
            (height, width, 3) uint8 RGB; outside and unscanned parts are background.

        Raises:
            ConfigError: There is no such level, or a number is not whole.
            ReadError: Pixels cannot be decoded, or the slide is closed.
        """
        check_level(level, len(self.levels))
        x, y, width, height = as_whole(x=x, y=y, width=width, height=height)
        self._check_size(width, height)
        out = np.empty((height, width, 3), np.uint8)
        self.fill_level(level, x, y, out)
        return out

    def fill_level(self, level: int, x: int, y: int, out: TileArray) -> None:
        """Like `read_level`, into an array of one's own: (h, w, 3) uint8."""
        full = self.levels[level]
        fill_region(
            out,
            (x, y),
            lambda col, row: self.read_block(level, col, row),
            self.block_sizes[level],
            (full.width, full.height),
            self.background,
        )

    def read_block(
        self, level: int, col: int, row: int, out: TileArray | None = None
    ) -> TileArray | None:
        """One compressed block, retried once through a second reader; None where unscanned.

        Args:
            level, col, row: Which block.
            out: Where to decode a full block to, if the reader can (see `Reader.read_block`).

        Raises:
            ReadError: No reader can decode it.
        """
        if not self._in_use.enter():
            raise ReadError(self.path, "the slide is closed", "Open it again.")
        try:
            block = self._reader.read_block(level, col, row, out)
        except CutBlockError:
            raise
        except ReadError as first:
            block = self._read_block_again(level, col, row, first)
        finally:
            self._in_use.leave()
        if block is not None and self._recolour is not None:
            block = self._recolour(block)
        return block

    def thumbnail(self, mpp: float) -> ThumbnailImage:
        """The whole slide at about `mpp`, block by block: memory does not grow with the slide.

        Args:
            mpp: Target µm per pixel; a slide that is coarser gives level 0 as it is.

        Returns:
            Pixels and the exact down-sample.

        Raises:
            ConfigError: `mpp` is no resolution.
            MissingMppError: The slide's resolution is unknown.
            ReadError: More than half of every fitting level cannot be decoded; fewer bad blocks
                are background, and counted.
        """
        check_mpp(mpp)
        target = exact(mpp)
        scale = tuple(max(Fraction(1), target / own) for own in self.mpp_xy)
        return self.thumbnail_scaled((scale[0], scale[1]))

    def thumbnail_scaled(self, scale: tuple[Fraction, Fraction]) -> ThumbnailImage:
        """The whole slide at `scale` level-0 pixels per pixel (x, y), exact; needs no mpp."""
        fitting = [
            level
            for level in self.levels
            if level.downsample[0] <= scale[0] and level.downsample[1] <= scale[1]
        ]
        width, height = (
            -(-size // ratio) for size, ratio in zip(self.dimensions, scale, strict=True)
        )
        for level in reversed(fitting):
            source = ForgivingLevel(self, level)
            try:
                pixels = reduce_level(
                    level,
                    self.block_sizes[level.index],
                    (scale[0] / level.downsample[0], scale[1] / level.downsample[1]),
                    (int(width), int(height)),
                    source.read,
                    self.background,
                )
            except ReadError:
                # A coarse level has few blocks: the next finer one may be sound.
                if level is fitting[0]:
                    raise
            else:
                return ThumbnailImage(pixels, scale, level.index, source.bad)
        raise AssertionError("level 0 always fits")

    def _read_scaled(
        self, plan: ReadPlan, start: tuple[Fraction, Fraction], width: int, height: int
    ) -> TileArray:
        """Resample from a level. `start` is in its pixels; footprints may leave the slide."""
        level = self.levels[plan.level]
        step = (plan.scale[0] / level.downsample[0], plan.scale[1] / level.downsample[1])
        size = (level.width, level.height)
        margin = 1 if plan.mode == "interpolate" else 0
        end_x, end_y = (
            int(-(-full // ratio)) + margin
            for full, ratio in zip(self.dimensions, level.downsample, strict=True)
        )

        def fetch(x: int, y: int, width: int, height: int) -> TileArray:
            source = self.read_level(plan.level, x, y, width, height)
            repeat_edge(source, (x, y), size, (-margin, -margin), (end_x, end_y))
            return source

        return resample_from(fetch, start, step, (width, height))

    def _read_block_again(
        self, level: int, col: int, row: int, first: ReadError
    ) -> TileArray | None:
        """A bad tile once more: through the other reader, or the same one with a fresh handle."""
        with self._lock:
            if not self._second_tried:
                self._second_tried = True
                self._second = self._second_factory() if self._second_factory else None
            second = self._second
        if second is None:
            self._reader.refresh()
            return self._reader.read_block(level, col, row)
        block_w, block_h = self.block_sizes[level]
        size = self._reader.info.level_sizes[level]
        if size not in second.info.level_sizes:
            raise first
        there = second.info.level_sizes.index(size)
        corner = (col * block_w, row * block_h)
        out = np.empty(
            (min(block_h, size[1] - corner[1]), min(block_w, size[0] - corner[0]), 3), np.uint8
        )
        try:
            fill_region(
                out,
                corner,
                lambda c, r: second.read_block(there, c, r),
                second.info.block_sizes[there],
                size,
                self.background,
            )
        except ReadError as again:
            raise first from again
        return out

    def _check_size(self, width: int, height: int) -> None:
        if width < 0 or height < 0 or width * height > _MAX_READ_PIXELS:
            raise ReadError(
                self.path,
                f"a region of {width} x {height} pixels cannot be read at once",
                "Read it in parts.",
            )

    # -- the file ---------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """Every file of the slide, sorted; none for a URL."""
        if is_url(self.path):
            return []
        return slide_files(Path(self.path))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the size, first and last 64 KiB of every file of the slide."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.path)
        return self._fingerprint

    def close(self) -> None:
        """Release the files. Nothing can be read afterwards; closing twice is no error.

        Where threads are still reading, the last of them releases the files: OpenSlide's memory
        must not go away beneath them.
        """
        self._in_use.close()

    def _release(self) -> None:
        self._reader.close()
        if self._second is not None:
            self._second.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.dimensions
        return f"<Slide {self.path} {width}x{height} {self.reader}>"


def choose_level(
    slide: Slide, mpp: float | Fraction, *, mpp_tolerance: float, max_upsample: float
) -> ReadPlan:
    """Which level gives pixels at `mpp`, and how. All in exact arithmetic.

    Raises:
        MissingMppError: The slide's resolution is unknown.
        ResolutionError: The slide is coarser than `mpp` by more than `max_upsample`.
    """
    target = exact(mpp)
    own = slide.mpp_xy
    tolerance = exact(mpp_tolerance)
    nearest: tuple[Fraction, Level] | None = None
    coarsest: Level | None = None
    for level in slide.levels:
        at_level = tuple(m * d for m, d in zip(own, level.downsample, strict=True))
        distance = max(abs(value / target - 1) for value in at_level)
        if distance <= tolerance and (nearest is None or distance < nearest[0]):
            nearest = (distance, level)
        if all(value <= target for value in at_level):
            coarsest = level
    if nearest is not None:
        return ReadPlan(nearest[1].index, "native", nearest[1].downsample)
    scale = (target / own[0], target / own[1])
    if coarsest is not None:
        return ReadPlan(coarsest.index, "area", scale)
    if max(own) / target > exact(max_upsample):
        raise ResolutionError(
            slide.path,
            f"the slide has {float(max(own)):g} µm per pixel, coarser than the {float(target):g} "
            "asked for",
        )
    return ReadPlan(0, "interpolate", scale)
