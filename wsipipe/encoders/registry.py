"""From a name to a recipe: catalogue, plugins, timm, the hub, folders and files.

    phikon, uni_v1                  catalogue name or alias
    timm:ARCH[?pretrained=false]    any timm architecture
    hf-hub:ORG/REPO[@REVISION]      a repository in timm's format
    path/to/folder                  config.json + safetensors
    path/to/encoder.py              CARD and build(card)
    path/to/card.yaml               a declarative card for a private checkpoint

Nothing here imports torch; what only makes sense with torch (timm's own cards) imports it late.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard
from wsipipe.errors import UnknownEncoderError, WsipipeError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GROUP", "Recipe", "find", "list_encoders", "recipes", "resolve"]

GROUP = "wsipipe.encoders"
_LOG = logging.getLogger(__name__)

# Slide-level models have their place in the catalogue's grammar but are not tile encoders.
_SLIDE_LEVEL = {
    *("madeleine", "cobra", "omniscreen", "titan", "prism", "prism2", "gigapath-slide"),
    *("chief", "feather", "care", "threads", "moozy"),
}


@dataclass(frozen=True)
class Recipe:
    """How an encoder is made.

    Attributes:
        card: What it is.
        build: Makes the network, with random weights, from the card.
        origin: "catalogue", "plugin NAME", "timm", "hub", "folder", "file" or "card".
        loads: True if published weights are to be loaded into what `build` returns; False if
            `build` returns it ready.
        folder: Where the weights lie, for local folders.
        definition: Hash of what the name alone does not fix (the text of a file, the arguments of
            an architecture); None for the catalogue.
    """

    card: EncoderCard
    build: Callable[[EncoderCard], nn.Module]
    origin: str
    loads: bool = True
    folder: Path | None = None
    definition: str | None = None


def resolve(name: str) -> EncoderCard:
    """The card of an encoder.

    Args:
        name: See the grammar above.

    Returns:
        Its card.

    Raises:
        UnknownEncoderError: No such encoder; the message suggests near names.
    """
    return find(name).card


def find(name: str) -> Recipe:
    """The recipe of an encoder; `resolve` with the means to build it."""
    if name.startswith("timm:"):
        from wsipipe.encoders.sources import from_timm

        return from_timm(name)
    if name.startswith(("hf-hub:", "hf_hub:")):
        from wsipipe.encoders.sources import from_hub

        return from_hub(name)
    known = _by_spelling().get(_spelling(name))
    if known is not None:
        return known
    path = Path(name).expanduser()
    if path.suffix == ".py":
        from wsipipe.encoders.sources import from_python_file

        return from_python_file(path)
    if path.suffix in (".yaml", ".yml"):
        from wsipipe.encoders.declarative import from_yaml

        return from_yaml(path)
    if path.is_dir():
        from wsipipe.encoders.sources import from_folder

        return from_folder(path)
    for recipe in _plugins(name):
        if _spelling(name) in _spellings(recipe.card):
            return recipe
    raise _unknown(name)


def recipes() -> list[Recipe]:
    """All recipes of the catalogue and of plugins; a broken plugin is left out, and logged."""
    taken = _by_spelling()
    others = [r for r in _plugins() if not _spellings(r.card) & taken.keys()]
    return [*_catalogue(), *others]


def list_encoders() -> list[EncoderCard]:
    """All cards of the catalogue and of installed plugins, in the catalogue's order."""
    return [recipe.card for recipe in recipes()]


@cache
def _catalogue() -> tuple[Recipe, ...]:
    from wsipipe.encoders.zoo import FAMILIES

    found = []
    for family in FAMILIES:
        module = importlib.import_module(f"wsipipe.encoders.zoo.{family}")
        cards = getattr(module, "CARDS", None) or (module.CARD,)
        loads = getattr(module, "LOADS", True)
        found += [Recipe(card, module.build, "catalogue", loads) for card in cards]
    return tuple(found)


@cache
def _by_spelling() -> dict[str, Recipe]:
    table: dict[str, Recipe] = {}
    for recipe in _catalogue():
        for spelling in _spellings(recipe.card):
            table[spelling] = recipe
    return table


def _plugins(name: str | None = None) -> Iterator[Recipe]:
    """Plugins that load; the one called `name` first, so that others need not be imported."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name != name)
    for entry in found:
        try:
            yield _from_entry_point(entry)
        # A plugin runs other people's code: whatever it raises must not take the catalogue down.
        except Exception as error:
            if entry.name == name:
                raise UnknownEncoderError(
                    entry.name,
                    f"The plugin for encoder {entry.name} ({entry.value}) does not load: "
                    f"{type(error).__name__}: {error}.",
                    "Update or uninstall the package that brings it.",
                ) from error
            _LOG.warning("encoder plugin %s (%s) is broken: %s", entry.name, entry.value, error)


def _from_entry_point(entry: EntryPoint) -> Recipe:
    card = entry.load()
    if not isinstance(card, EncoderCard):
        raise TypeError(f"{entry.value} is not an EncoderCard")
    module = importlib.import_module(entry.module)
    return Recipe(
        card,
        module.build,
        f"plugin {entry.name}",
        loads=getattr(module, "LOADS", False),
        definition=entry.dist.version if entry.dist is not None else None,
    )


def _spelling(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _spellings(card: EncoderCard) -> set[str]:
    return {_spelling(name) for name in (card.name, *card.aliases)}


def _unknown(name: str) -> WsipipeError:
    if _spelling(name) in _SLIDE_LEVEL:
        return UnknownEncoderError(
            name,
            f"{name} is a slide-level model, not a tile encoder.",
            "Extract with its tile encoder; slide-level models come after the features.",
        )
    if "/" in name or name.endswith((".py", ".yaml", ".yml")):
        return UnknownEncoderError(
            name,
            f"There is no encoder file or folder {name}.",
            "Give a folder with config.json and safetensors, a .py file with CARD and build, "
            "or hf-hub:ORG/REPO for a repository on the hub.",
        )
    spellings = {s: recipe.card.name for s, recipe in _by_spelling().items()}
    spellings |= {_spelling(entry.name): entry.name for entry in entry_points(group=GROUP)}
    near = difflib.get_close_matches(_spelling(name), spellings, n=4, cutoff=0.5)
    suggestions = list(dict.fromkeys(spellings[s] for s in near))
    return UnknownEncoderError(
        name,
        f"There is no encoder {name!r}.",
        (f"Did you mean {' or '.join(suggestions)}? " if suggestions else "")
        + "`wsipipe encoders` lists all.",
    )
