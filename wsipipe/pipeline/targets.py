"""What a run makes of each slide: one feature file for each target, and its identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.config import ExtractSettings
from wsipipe.encoders import EncoderCard, check_card, is_off_card, resolve
from wsipipe.errors import ConfigError
from wsipipe.pipeline.privacy import mask_id
from wsipipe.tissue import tissue_settings
from wsipipe.tissue.quality import QualityFilter
from wsipipe.tissue.roi import roi_settings

if TYPE_CHECKING:
    from wsipipe.slide.discover import SlideEntry

__all__ = [
    "Target",
    "find_targets",
    "identify_targets",
    "override_mpp",
    "quality_filter",
    "wanted_identity",
    "wanted_tissue",
    "wants_quality",
]

# A number for each stage's algorithm that is not already in `tissue_settings` or the encoder's
# identity: raised when the same settings would give other numbers.
VERSIONS = {"grid": 1, "read": 1}


@dataclass(frozen=True)
class Target:
    """An encoder at one resolution and tile size.

    Attributes:
        name: As the user wrote it.
        folder: Name below `features/`.
        identity: Of the encoder and its weights; filled in by `identify_targets`.
    """

    name: str
    card: EncoderCard
    mpp: float
    tile_px: int
    folder: str
    identity: dict[str, Any] = field(default_factory=dict)


def find_targets(settings: ExtractSettings) -> list[Target]:
    """Resolve the encoders of a run and hold it to their cards. Needs no torch and no weights.

    Raises:
        UnknownEncoderError, OffCardError: See `resolve` and `check_card`.
        ConfigError: A slide encoder was given, or two names mean the same folder.
    """
    targets: dict[str, Target] = {}
    for name in settings.encoders:
        card = resolve(name)
        if card.kind == "slide":
            raise ConfigError(
                f"{name} embeds whole slides from tile features, not tiles.",
                "Extract with the tile encoder it builds on.",
            )
        mpp, tile_px = check_card(card, settings.mpp, settings.tile_px, settings.allow_off_card)
        folder = card.folder
        if is_off_card(card, mpp, tile_px):
            folder = f"{folder}@{tile_px}px-{mpp:g}mpp"
        known = targets.setdefault(folder, Target(name, card, mpp, tile_px, folder))
        if known.name != name and known.card != card:
            raise ConfigError(
                f"Encoders {known.name} and {name} would both write features/{folder}.",
                "Give one of the cards another name.",
            )
    return list(targets.values())


def identify_targets(targets: Sequence[Target], settings: ExtractSettings) -> list[Target]:
    """Find (or download) the weights and put the encoders' identities in.

    Raises:
        GatedEncoderError, WeightsError: The weights cannot be had.
    """
    from dataclasses import replace

    from wsipipe.encoders import identify

    return [
        replace(target, identity=identify(target.name, weights=settings.weights))
        for target in targets
    ]


def override_mpp(settings: ExtractSettings, entry: SlideEntry) -> float | None:
    """The user's own word on a slide's level-0 mpp: the manifest's row, else --slide-mpp."""
    return entry.mpp if entry.mpp is not None else settings.slide_mpp


def wanted_identity(
    settings: ExtractSettings, target: Target, entry: SlideEntry, fingerprint: str | None
) -> dict[str, Any]:
    """Everything that decides the numbers in a feature file.

    Batch size, threads, device, precision and paths are left out: they differ between machines
    that work on one folder.

    Raises:
        TissueError: There is no mask for the slide in the given folder.
    """
    identity = {
        "encoder": target.identity,
        "mpp": target.mpp,
        "tile_px": target.tile_px,
        "overlap": settings.overlap,
        "min_tissue": settings.min_tissue,
        "mpp_tolerance": settings.mpp_tolerance,
        "max_upsample": settings.max_upsample,
        "tissue": wanted_tissue(settings, entry),
        "roi": _roi(settings, entry),
        "icc": settings.icc,
        "dtype": settings.dtype,
        "slide_mpp": override_mpp(settings, entry),
        "slide_fingerprint": fingerprint,
        "versions": VERSIONS,
    }
    # Only where asked for: a run without has the identity that it always had.
    if wants_quality(settings):
        identity["quality"] = quality_filter(settings).settings()
    return identity


def quality_filter(settings: ExtractSettings) -> QualityFilter:
    """Which tiles the run leaves out."""
    return QualityFilter.of(
        min_focus=settings.min_focus,
        min_saturation=settings.min_saturation,
        max_pen=settings.max_pen,
        max_blood=settings.max_blood,
        max_black=settings.max_black,
    )


def wants_quality(settings: ExtractSettings) -> bool:
    """Whether tiles are measured."""
    return bool(settings.quality or quality_filter(settings))


def wanted_tissue(settings: ExtractSettings, entry: SlideEntry) -> dict[str, Any]:
    """What decides the tissue of a slide; see `tissue_settings`."""
    method = settings.tissue
    if Path(method).is_dir():
        return tissue_settings(method, slide_id=mask_id(method, entry))
    return _tissue_of_all(method)


@lru_cache(maxsize=4)
def _tissue_of_all(method: str) -> dict[str, Any]:
    """The same for every slide: asked once, not once for each of ten thousand finished ones."""
    return tissue_settings(method)


def _roi(settings: ExtractSettings, entry: SlideEntry) -> dict[str, Any] | None:
    if settings.roi is None:
        return None
    classes = settings.roi_class or ()
    return roi_settings(settings.roi, slide_id=mask_id(settings.roi, entry), classes=classes)
