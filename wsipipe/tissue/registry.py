"""Which detectors there are: the classical ones, networks by name or folder, and plugins.

A plugin is one entry of the group `wsipipe.tissue` in another package's pyproject.toml,
`name = "package.module:DETECTOR"`: an object with `mpp`, `settings()` and a call, see `Detector`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from wsipipe.errors import ConfigError
from wsipipe.tissue.cards import TISSUE_CARDS, TissueCard, card_of_folder
from wsipipe.tissue.settings import CLASSICAL
from wsipipe.types import BoolArray, TileArray

__all__ = ["GROUP", "Detector", "find_card", "find_plugin", "licence_line", "method_names"]

GROUP = "wsipipe.tissue"


@runtime_checkable
class Detector(Protocol):
    """What a plugin provides.

    Attributes:
        mpp: Resolution of the thumbnail that it wants, µm per pixel.
    """

    mpp: float

    def settings(self) -> dict[str, Any]:
        """Everything that decides its masks (parameters, version, hash of weights); JSON-able."""

    def __call__(self, rgb: TileArray, mpp_xy: tuple[float, float]) -> BoolArray:
        """Find tissue in a picture.

        Args:
            rgb: (h, w, 3) uint8.
            mpp_xy: µm per pixel of the picture.

        Returns:
            (h, w) bool.
        """


def find_card(method: str) -> TissueCard | None:
    """The network that a name or a checkpoint folder stands for; None where it is none."""
    if method in TISSUE_CARDS:
        return TISSUE_CARDS[method]
    return card_of_folder(Path(method)) if Path(method).is_dir() else None


def find_plugin(method: str) -> Detector | None:
    """The plugin of this name; None where there is none.

    Raises:
        ConfigError: It is there and cannot be used.
    """
    found = list(entry_points(group=GROUP, name=method))
    if not found:
        return None
    try:
        detector = found[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"Tissue plugin {method} ({found[0].value}) cannot be loaded: {error}.",
            "Repair or uninstall the package that brings it.",
        ) from error
    if not isinstance(detector, Detector):
        raise ConfigError(
            f"Tissue plugin {method} ({found[0].value}) has no mpp, settings() and call.",
            "See wsipipe.tissue.registry.Detector.",
        )
    return detector


def licence_line(method: str) -> str | None:
    """One sentence on the terms of a network's weights; None for methods without weights."""
    card = find_card(method.partition("?")[0])
    if card is None:
        return None
    terms = {True: "commercial use permitted", False: "no commercial use", None: ""}
    said = "; ".join(filter(None, [card.licence, terms[card.commercial], card.page or ""]))
    return f"Tissue network {card.name}: licence of the weights: {said}"


def method_names() -> list[str]:
    """All names that `--tissue` takes, besides folders."""
    plugins = sorted({entry.name for entry in entry_points(group=GROUP)})
    return [*CLASSICAL, "none", *TISSUE_CARDS, *plugins]
