"""The card of an encoder: everything that decides which numbers a tile becomes.

A card is data. It imports no torch, so the whole catalogue can be listed in milliseconds. What the
makers intended is said here once; the networks (`nets/`), the weights (`wsipipe.weights`) and the
transform obey it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from wsipipe.errors import ConfigError, OffCardError
from wsipipe.types import exact

__all__ = [
    "EncoderCard",
    "Interpolation",
    "Kind",
    "Precision",
    "SpeedClass",
    "check_card",
    "is_off_card",
]

Kind: TypeAlias = Literal["tile", "multimodal", "slide"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
Public: TypeAlias = Literal["yes", "gated", "none"]
SpeedClass: TypeAlias = Literal["embedded", "fast", "medium", "slow", "giant", "unknown"]
Rgb01: TypeAlias = tuple[float, float, float]

# Millions of parameters up to which a class reaches. A ViT-S/16 is fast, a ViT-B/16 medium, a
# ViT-L slow, everything beyond that giant (a ViT-g/14 needs some 60 times a ViT-S/16's arithmetic).
_SPEED_CLASSES: tuple[tuple[float, SpeedClass], ...] = (
    (1, "embedded"),
    (30, "fast"),
    (120, "medium"),
    (400, "slow"),
)


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """What the makers of an encoder intended.

    `mean` and `std` are of pixels scaled to 0..1, in RGB order; None for both means that the
    network takes plain 0..1 pixels. Only the first six fields have no default.

    Attributes:
        name: Canonical name. Another pooling of the same weights is another name.
        dim: Length of the feature vector of one tile.
        tile_px: Tile edge in pixels at `mpp`.
        mpp: µm per pixel the makers name; None where they name none (then `--mpp` must be given).
        mean, std: Normalisation, or None for none.
        aliases: Other tools' spellings.
        kind: "tile", "multimodal" (the image half of an image-text model) or "slide".
        pooling: How tokens become one vector, in words the networks understand.
        alternatives: Other poolings of the same weights, pooling -> (name of that card).
        resize_px: Shortest edge after resizing; None = `tile_px`, so that a tile of the card's own
            size is never resampled.
        crop_px: Centre crop after resizing; None = `resize_px`.
        any_size: The network takes tiles of any size: nothing is resized or cropped.
        interpolation: Of that resize.
        precision: What "auto" means for this encoder; "auto" = bf16 where the hardware has it.
        arch, arch_kwargs: timm architecture and arguments, for families that are plain timm.
        layout: Name of the layout of the published weights (see `wsipipe.encoders.remap`).
        unwrap: Keys to descend through in the published file, outermost first, where present.
        strip: Prefixes to take off the published key names, where present.
        drops: Patterns (fnmatch) of published keys that are not needed. All others must fit.
        hub, revision: Repository on the hub and the pinned commit (None = the commit that was
            current when it was first downloaded; it is recorded with the features).
        file: Names of the weights in the repository, in order of preference.
        url: Where the file is published if not on the hub; fetched by hand, given by `--weights`.
        sha256: Of the published file, where known.
        page: Web page with the terms; the hub's page by default.
        licence, commercial, gated: Terms. `commercial` is True only where the licence allows it
            without asking.
        public: "yes", "gated" (after accepting terms) or "none" (bring your own checkpoint).
        params: Parameter count, exact, of what is loaded; None where the architecture is unknown.
        paper: Where the encoder is described.
        notes: Traps, each one sentence.
        unverified: What nobody could check without the weights.
    """

    name: str
    dim: int
    tile_px: int
    mpp: float | None
    mean: Rgb01 | None
    std: Rgb01 | None
    aliases: tuple[str, ...] = ()
    kind: Kind = "tile"
    pooling: str = "build"
    alternatives: Mapping[str, str] = field(default_factory=dict, hash=False)
    resize_px: int | None = None
    crop_px: int | None = None
    any_size: bool = False
    interpolation: Interpolation = "bilinear"
    precision: Precision = "auto"
    arch: str | None = None
    arch_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layout: str = "same"
    unwrap: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    hub: str | None = None
    revision: str | None = None
    file: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    url: str | None = None
    sha256: str | None = None
    page: str | None = None
    licence: str = "unknown"
    commercial: bool = False
    gated: bool = False
    public: Public = "yes"
    params: int | None = None
    paper: str | None = None
    notes: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(v) for v in value))
        for name in ("aliases", "unwrap", "strip", "drops", "notes", "unverified", "file"):
            value = getattr(self, name)
            as_tuple = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, name, as_tuple)
        self._check()

    def _check(self) -> None:
        problems = []
        if not self.folder:
            problems.append(f"name {self.name!r} has no letter or digit to name a folder with")
        if self.dim < 1 or self.tile_px < 1:
            problems.append("dim and tile_px must be positive")
        if self.mpp is not None and not 0.05 <= self.mpp <= 20:
            problems.append(f"mpp {self.mpp} is outside 0.05 to 20 µm per pixel")
        if (self.mean is None) != (self.std is None):
            problems.append("mean and std must both be given, or both be None")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
                problems.append("mean and std must be three numbers each, std above 0")
            elif max(self.mean) > 1:
                problems.append("mean and std are of pixels scaled to 0..1, not 0..255")
        if problems:
            raise ConfigError(f"Encoder card {self.name!r}: {'; '.join(problems)}.")

    @property
    def input_px(self) -> int:
        """Edge of what the network sees, in pixels."""
        return self.crop_px or self.resize_px or self.tile_px

    @property
    def speed(self) -> SpeedClass:
        """How heavy the network is, in one word."""
        if self.params is None:
            return "unknown"
        millions = self.params / 1e6
        return next((word for limit, word in _SPEED_CLASSES if millions <= limit), "giant")

    @property
    def folder(self) -> str:
        """The name as a folder name: `timm:a?pretrained=false` -> `timm-a-pretrained-false`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")

    @property
    def terms_page(self) -> str | None:
        """Web page with the licence, and with the form to accept where there is one."""
        if self.page is None and self.hub is not None:
            return f"https://huggingface.co/{self.hub}"
        return self.page

    def identity(
        self, weights_sha256: str, revision: str | None, definition: str | None
    ) -> dict[str, Any]:
        """What decides the features of a tile; JSON-able."""
        return {
            "encoder": self.name,
            "definition": definition,
            "revision": revision,
            "weights_sha256": weights_sha256,
            "pooling": self.pooling,
            "dim": self.dim,
            "transform": self.transform_identity(),
        }

    def transform_identity(self) -> dict[str, Any]:
        """What the transform does to the numbers, as canonical JSON-able values."""
        return {
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "resize_px": None if self.any_size else self.resize_px or self.tile_px,
            "crop_px": None if self.any_size else self.input_px,
            "interpolation": self.interpolation,
        }


def check_card(
    card: EncoderCard, mpp: float | None, tile_px: int | None, allow_off_card: bool = False
) -> tuple[float, int]:
    """Decide the resolution and tile size of a run, holding it to the card.

    Args:
        card: The encoder.
        mpp: Asked for, in µm per pixel; None = the card's.
        tile_px: Asked for, in pixels; None = the card's.
        allow_off_card: Other values than the card's were asked for on purpose.

    Returns:
        (mpp, tile_px) to use.

    Raises:
        OffCardError: The card names no mpp and none was given; or a value is off the card without
            `allow_off_card`.
    """
    if mpp is None and card.mpp is None:
        raise OffCardError(
            card.name,
            f"Encoder {card.name}: its makers name no resolution, so there is no default.",
            "Give the resolution with --mpp (0.5 is usual for 20x).",
        )
    use_mpp = mpp if mpp is not None else card.mpp
    assert use_mpp is not None
    use_px = tile_px if tile_px is not None else card.tile_px
    off = []
    if card.mpp is not None and exact(use_mpp) != exact(card.mpp):
        off.append(f"{use_mpp:g} µm/px instead of {card.mpp:g}")
    if use_px != card.tile_px:
        off.append(f"tiles of {use_px} px instead of {card.tile_px}")
    if off and not allow_off_card:
        raise OffCardError(
            card.name,
            f"Encoder {card.name} was made for {_card_words(card)}; asked for: {', '.join(off)}.",
            "Leave --mpp and --tile-px out, or add --allow-off-card if this is meant.",
        )
    return float(use_mpp), int(use_px)


def is_off_card(card: EncoderCard, mpp: float, tile_px: int) -> bool:
    """Whether features of this mpp and tile size belong into a folder of their own."""
    return tile_px != card.tile_px or (card.mpp is not None and exact(mpp) != exact(card.mpp))


def _card_words(card: EncoderCard) -> str:
    resolution = "any resolution" if card.mpp is None else f"{card.mpp:g} µm/px"
    return f"tiles of {card.tile_px} px at {resolution}"
