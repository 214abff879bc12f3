"""Which names of slides leave the run: their own, or pseudonyms; and which paths.

With a key, a slide is called by its pseudonym from the moment it is found: everything further
down, the names of files, attributes, records and messages, knows no other name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsipipe.config import ExtractSettings
from wsipipe.errors import ConfigError
from wsipipe.slide.discover import SlideEntry, find_slides
from wsipipe.store import Pseudonymizer, TextFilter
from wsipipe.store.pseudonyms import (
    bears_pseudonyms,
    check_outside,
    check_pseudonyms,
    make_key,
    mark_pseudonyms,
    write_map,
)

__all__ = ["Privacy", "hide_names", "mask_id", "prepare_key", "slides_of_run"]


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


def slides_of_run(
    out: Path, slides: Sequence[str], key_file: Path | None = None
) -> dict[str, SlideEntry]:
    """The given slides by the ids that the files in `out` bear: their own, or pseudonyms.

    Args:
        out: Folder of the run.
        slides: As the run was given them, for ids are paths below a folder.
        key_file: The run's key, where it bears pseudonyms.

    Raises:
        ConfigError: The run bears pseudonyms and no key, or another, is given, or no slides.
    """
    key = Pseudonymizer(key_file) if key_file is not None else None
    if bears_pseudonyms(out) and (key is None or not slides):
        raise ConfigError(
            f"{out} holds slides under pseudonyms, and nothing in it says where they lie.",
            "Give the slides and the key as `extract` had them: --slides PATH --pseudonymize "
            "KEYFILE.",
        )
    if key is not None:
        check_pseudonyms(out, key)
    entries = find_slides(list(slides)) if slides else []
    return {key(e.slide_id) if key else e.slide_id: e for e in entries}


def mask_id(folder: str | Path, entry: SlideEntry) -> str:
    """The id by which a folder of masks knows a slide: its own, or the pseudonym that a former
    run's masks bear."""
    under_pseudonym = Path(folder) / f"{entry.slide_id}.geojson"
    return entry.slide_id if not entry.given_id or under_pseudonym.exists() else entry.given_id
