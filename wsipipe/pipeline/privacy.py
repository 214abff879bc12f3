"""Which names of slides leave the run: their own, or pseudonyms; and which paths.

With a key, a slide is called by its pseudonym from the moment it is found: everything further
down, the names of files, attributes, records and messages, knows no other name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsipipe.config import ExtractSettings
from wsipipe.slide.discover import SlideEntry
from wsipipe.store import Pseudonymizer, TextFilter
from wsipipe.store.pseudonyms import (
    check_outside,
    check_pseudonyms,
    make_key,
    mark_pseudonyms,
    write_map,
)

__all__ = ["Privacy", "mask_id", "prepare_key"]


@dataclass(frozen=True)
class Privacy:
    """What a run hides.

    Attributes:
        texts: What every text passes before it is written or shown.
        key: Makes the pseudonyms; None where slides go by their names.
        names: Pseudonym -> name, for `--pseudonym-map`.
    """

    texts: TextFilter
    key: Pseudonymizer | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def publish(self, settings: ExtractSettings) -> None:
        """Mark the folder with the key's number; write who is who where that was asked for.

        Raises:
            ConfigError: The folder has another key.
            OutputError: They cannot be written.
        """
        if self.key is not None:
            mark_pseudonyms(settings.out, self.key)
        if settings.pseudonym_map is not None:
            write_map(settings.pseudonym_map, self.names)


def prepare_key(settings: ExtractSettings) -> None:
    """Make the key that `new_key` asks for, outside of the outputs.

    Raises:
        ConfigError: It would lie among the outputs, or cannot be made.
    """
    check_outside(settings.out, settings.pseudonymize, settings.pseudonym_map)
    if settings.new_key and settings.pseudonymize is not None:
        make_key(settings.pseudonymize)


def hide_names(
    settings: ExtractSettings, entries: Sequence[SlideEntry]
) -> tuple[list[SlideEntry], Privacy]:
    """The slides under the names that outputs may bear, and what hides the others.

    Raises:
        ConfigError: The key is missing, lies among the outputs, or is not the folder's.
    """
    check_outside(settings.out, settings.pseudonymize, settings.pseudonym_map)
    key = Pseudonymizer(settings.pseudonymize) if settings.pseudonymize is not None else None
    check_pseudonyms(settings.out, key)
    if key is None:
        return list(entries), Privacy(TextFilter(hide_paths=settings.hide_paths))
    renamed = [replace(e, slide_id=key(e.slide_id), given_id=e.slide_id) for e in entries]
    hidden = {e.slide_id: (str(e.path), e.given_id) for e in renamed}
    names = {e.slide_id: e.given_id for e in renamed}
    return renamed, Privacy(TextFilter(hidden=hidden), key, names)


def mask_id(folder: str | Path, entry: SlideEntry) -> str:
    """The id by which a folder of masks knows a slide: its own, or the pseudonym that a former
    run's masks bear."""
    under_pseudonym = Path(folder) / f"{entry.slide_id}.geojson"
    return entry.slide_id if not entry.given_id or under_pseudonym.exists() else entry.given_id
