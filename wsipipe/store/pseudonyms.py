"""Slide ids as keyed hashes: who has the key file can repeat them, nobody can undo them.

The key lies outside the output folder, and so does the list of who is who, where one is kept.
`pseudonyms.json` in the output holds the key's number, so that one folder never mixes two keys,
nor pseudonyms and names.
"""

from __future__ import annotations

import csv
import hmac
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wsipipe.errors import ConfigError
from wsipipe.store.publish import publish_text, publishing

__all__ = [
    "Pseudonymizer",
    "bears_pseudonyms",
    "check_outside",
    "check_pseudonyms",
    "mark_pseudonyms",
    "write_map",
]

MARK = "pseudonyms.json"
# Folders whose files bear the names of slides.
_NAMED = ("attempts", "features", "thumbnails", "tiles", "tissue")
_KEY_BYTES = 32
_LEAST_BYTES = 16


class Pseudonymizer:
    """Replaces slide ids by keyed hashes (HMAC-SHA256).

    Args:
        key_file: At least 16 bytes, kept outside the output folder.

    Raises:
        ConfigError: The key is missing or too short.
    """

    def __init__(self, key_file: str | Path) -> None:
        remedy = "Add --new-key to have one made, once; then keep it well."
        try:
            self._key = Path(key_file).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{key_file}: the key file cannot be read ({error.strerror}).", remedy
            ) from error
        if len(self._key) < _LEAST_BYTES:
            raise ConfigError(
                f"{key_file}: a key of {len(self._key)} bytes is too short "
                f"({_LEAST_BYTES} are the least).",
                remedy,
            )

    @property
    def key_id(self) -> str:
        """A number by which keys are told apart; says nothing about the key."""
        return hmac.new(self._key, b"wsipipe key number", "sha256").hexdigest()[:16]

    def __call__(self, slide_id: str) -> str:
        """The pseudonym: `p` and 20 hex digits of HMAC-SHA256 (80 bits: no collisions in practice).

        The whole id is hashed, folders included, so nothing of a name remains.
        """
        digest = hmac.new(self._key, slide_id.encode(errors="surrogateescape"), "sha256")
        return f"p{digest.hexdigest()[:20]}"


def make_key(key_file: str | Path) -> None:
    """Write a random key that only its owner may read; one that is there stays as it is.

    Raises:
        ConfigError: It cannot be written.
    """
    path = Path(key_file)
    # By link, so that of several processes that start together one makes the key of all.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists():
            return
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key file cannot be made ({error.strerror}).", "Choose another place."
        ) from error


def check_outside(out: Path, *files: Path | None) -> None:
    """Refuse a key or a list of names that would lie among the outputs.

    Raises:
        ConfigError: One does.
    """
    for file in files:
        if file is not None and file.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"{file} lies in the output folder {out}: whoever gets the outputs would get it.",
                "Keep it elsewhere, where only those who may know the names can read it.",
            )


def bears_pseudonyms(out: Path) -> bool:
    """Whether the slides in `out` go by pseudonyms."""
    return _stored_key(out) is not None


def check_pseudonyms(out: Path, pseudonyms: Pseudonymizer | None) -> None:
    """Hold a run to what `out` has been: under names, or under the pseudonyms of one key.

    Raises:
        ConfigError: It was something else.
    """
    stored = _stored_key(out)
    if pseudonyms is None:
        if stored is not None:
            raise ConfigError(
                f"{out} holds slides under pseudonyms (key {stored}).",
                "`extract --pseudonymize KEYFILE` goes on there; all else needs another --out.",
            )
    elif stored is None:
        if any((out / name).is_dir() for name in _NAMED):
            raise ConfigError(
                f"{out} holds slides under their own names.",
                "Pseudonyms need a new --out: names would stay in the old one.",
            )
    elif stored != pseudonyms.key_id:
        raise ConfigError(
            f"{out} was made with another key (number {stored}; this one's is "
            f"{pseudonyms.key_id}).",
            "Use the former key file, or another --out.",
        )


def mark_pseudonyms(out: Path, pseudonyms: Pseudonymizer) -> None:
    """Record the key's number, before the first slide.

    Raises:
        ConfigError: A process that started at the same time has another key.
    """
    if _stored_key(out) is None:
        publish_text(out / MARK, json.dumps({"version": 1, "key": pseudonyms.key_id}) + "\n")
    check_pseudonyms(out, pseudonyms)


def _stored_key(out: Path) -> str | None:
    try:
        return str(json.loads((out / MARK).read_text(encoding="utf-8"))["key"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out / MARK} is damaged.", "Choose another --out; this one's key is not known."
        ) from error


def write_map(path: Path, names: Mapping[str, str]) -> None:
    """Write who is who (pseudonym -> name) as CSV, for its owner's eyes only; former rows stay.

    Raises:
        OutputError: It cannot be written.
    """
    known = {line[1]: line[0] for line in _rows(path)} | dict(names)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("slide_id", "pseudonym"))
    writer.writerows(sorted((name, pseudonym) for pseudonym, name in known.items()))
    with publishing(path, mode=0o600) as file:
        file.write(buffer.getvalue().encode("utf-8", errors="surrogateescape"))


def _rows(path: Path) -> Iterable[Sequence[str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return []
    return [row for row in list(csv.reader(io.StringIO(text)))[1:] if len(row) == 2]
