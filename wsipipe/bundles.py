"""Weights in one file, for machines without network: a tar with checksums and the licences.

    manifest.json                        what is inside, of which commit, with size and sha256
    files/<repository>/<commit>/<file>   weights, configuration, licence texts

Only regular files that the manifest lists are taken out, and only into the hub's cache: names are
data of a stranger. Nothing is executed; the same bundle may be read twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from wsipipe._hub import link, refer
from wsipipe.errors import ConfigError, OutputError, WeightsError
from wsipipe.weights import Source, fetch, file_sha256, repo_folder

__all__ = ["BundleEntry", "BundleFile", "pull", "read_bundle", "write_bundle"]

_FORMAT = "wsipipe-weights"
_VERSION = 1
_CHUNK_BYTES = 1 << 20
_MANIFEST_LIMIT_BYTES = 16 << 20
_REPO = re.compile(r"(datasets/)?[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[\w.-]{1,64}")
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSE.pdf", "README.md")


@dataclass(frozen=True)
class BundleFile:
    """One file of a repository: its name there, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BundleEntry:
    """What one encoder needs: a repository at one commit, and its terms."""

    encoder: str
    repo: str
    revision: str | None
    commit: str
    licence: str
    page: str | None
    files: tuple[BundleFile, ...]


def pull(source: Source, *, refresh: bool = True) -> tuple[BundleEntry, list[Path]]:
    """Fetch an encoder's weights and, where the repository has them, its licence texts.

    Args:
        source: Where they are published.
        refresh: Ask the hub whether there is something newer, unless the revision is a commit.

    Returns:
        What was fetched, and the files in the cache.

    Raises:
        GatedEncoderError, WeightsError: See `wsipipe.weights.fetch`.
    """
    weights = fetch(source, refresh=refresh and source.revision is None)
    commit = str(weights.revision)
    names, paths = [_name_below(weights.path, commit)], [weights.path]
    # A repository that is named itself says in its config.json what the weights are for.
    described = ("config.json",) if source.name.startswith("hf-hub:") else ()
    for file in (*described, *_LICENCE_FILES):
        with contextlib.suppress(WeightsError):  # most repositories have one or two of these
            extra = fetch(_at(source, commit, file))
            names.append(file)
            paths.append(extra.path)
    files = tuple(
        BundleFile(name, path.stat().st_size, file_sha256(path))
        for name, path in zip(names, paths, strict=True)
    )
    entry = BundleEntry(
        encoder=source.name,
        repo=str(source.repo),
        revision=source.revision,
        commit=commit,
        licence=source.licence,
        page=source.page,
        files=files,
    )
    return entry, paths


def _at(source: Source, commit: str, file: str) -> Source:
    return Source(
        name=source.name,
        repo=source.repo,
        revision=commit,
        files=(file,),
        page=source.page,
        licence=source.licence,
        gated=source.gated,
        public=source.public,
    )


def _name_below(path: Path, commit: str) -> str:
    parts = path.parts
    return "/".join(parts[parts.index(commit) + 1 :])


def write_bundle(pulled: Sequence[tuple[BundleEntry, list[Path]]], target: Path) -> None:
    """Write a bundle; it appears under its name only when it is whole.

    Args:
        pulled: Results of `pull`.
        target: The tar file.

    Raises:
        OutputError: It cannot be written.
    """
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "encoders": [asdict(entry) for entry, _ in pulled],
    }
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(temporary, "w") as tar:
            text = json.dumps(manifest, indent=1).encode()
            info = tarfile.TarInfo("manifest.json")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
            seen: set[str] = set()
            for entry, paths in pulled:
                for file, path in zip(entry.files, paths, strict=True):
                    name = _member(entry, file)
                    if name in seen:  # two encoders of one repository
                        continue
                    seen.add(name)
                    info = tarfile.TarInfo(name)
                    info.size = file.size
                    with path.open("rb") as stream:
                        tar.addfile(info, stream)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(target, f"the bundle cannot be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _member(entry: BundleEntry, file: BundleFile) -> str:
    return f"files/{entry.repo}/{entry.commit}/{file.name}"


def read_bundle(bundle: Path) -> list[BundleEntry]:
    """Put a bundle's files into the hub's cache, each checked before it gets its name.

    Args:
        bundle: A tar file of `write_bundle`.

    Returns:
        What is now in the cache.

    Raises:
        ConfigError: It is not a bundle, or holds what a bundle does not hold.
        WeightsError: A file's checksum is wrong, or a file is missing.
    """
    if not bundle.is_file():
        raise ConfigError(f"There is no bundle {bundle}.", "Correct --from.")
    try:
        with tarfile.open(bundle, "r:") as tar:
            entries = _manifest(bundle, tar)
            wanted = {_member(entry, f): (entry, f) for entry in entries for f in entry.files}
            found = set()
            for member in tar:
                if member.name == "manifest.json":
                    continue
                if member.name not in wanted or not member.isreg():
                    raise ConfigError(
                        f"{bundle} holds {member.name!r}, which its manifest does not list as a "
                        "file.",
                        "Do not use this bundle; make it again with wsipipe pull --bundle.",
                    )
                stream = tar.extractfile(member)
                assert stream is not None  # a regular file has content
                entry, file = wanted[member.name]
                _place(bundle, entry, file, member.size, stream)
                found.add(member.name)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(
            f"{bundle} is not a whole bundle ({error}).", "Copy it again from its source."
        ) from error
    missing = sorted(set(wanted) - found)
    if missing:
        raise WeightsError(
            entries[0].encoder,
            f"{bundle} lacks {', '.join(missing)}, which its manifest lists.",
            "Copy it again from its source.",
        )
    for entry in entries:
        _refer(entry)
    return entries


def _manifest(bundle: Path, tar: tarfile.TarFile) -> list[BundleEntry]:
    first = tar.next()
    if first is None or first.name != "manifest.json" or first.size > _MANIFEST_LIMIT_BYTES:
        raise ConfigError(f"{bundle} is not a bundle: it does not start with manifest.json.")
    stream = tar.extractfile(first)
    assert stream is not None
    try:
        content: dict[str, Any] = json.loads(stream.read())
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ConfigError(
                f"{bundle}: this version of wsipipe does not know bundles of "
                f"{content['format']!r} version {content['version']!r}."
            )
        entries = [
            BundleEntry(**{**raw, "files": tuple(BundleFile(**file) for file in raw["files"])})
            for raw in content["encoders"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{bundle} is not a bundle: its manifest is wrong ({error}).") from error
    for entry in entries:
        _check_names(bundle, entry)
    return entries


def _check_names(bundle: Path, entry: BundleEntry) -> None:
    """Names become paths in the cache: nothing may lead out of it."""
    names = [entry.commit, *(file.name for file in entry.files), entry.revision or "main"]
    unsafe = [
        name
        for name in names
        if not name
        or name.startswith(("/", "-"))
        or "\\" in name
        or any(part in ("", ".", "..") for part in PurePosixPath(name).parts)
    ]
    good = (
        not unsafe
        and _REPO.fullmatch(entry.repo)
        and ".." not in entry.repo.split("/")
        and _COMMIT.fullmatch(entry.commit)
        and all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in entry.files)
    )
    if not good:
        raise ConfigError(
            f"{bundle} names files that no repository has ({', '.join(unsafe) or entry.repo}).",
            "Do not use this bundle.",
        )


def _place(
    bundle: Path, entry: BundleEntry, file: BundleFile, size: int, stream: IO[bytes]
) -> None:
    folder = repo_folder(entry.repo)
    blob = folder / "blobs" / file.sha256
    if not blob.is_file():
        blob.parent.mkdir(parents=True, exist_ok=True)
        temporary = blob.with_name(f"{blob.name}.{os.getpid()}.bundle")
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as out:
                for chunk in _chunks(stream):
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            if size != file.size or digest.hexdigest() != file.sha256:
                raise WeightsError(
                    entry.encoder,
                    f"{bundle}: {file.name} of {entry.repo} has the wrong checksum.",
                    "The bundle was damaged on its way; copy it again.",
                )
            temporary.replace(blob)
        except OSError as error:
            raise OutputError(blob, f"cannot be written ({error}).") from error
        finally:
            temporary.unlink(missing_ok=True)
    link(folder, blob, entry.commit, entry.commit, file.name)


def _refer(entry: BundleEntry) -> None:
    refer(repo_folder(entry.repo), entry.revision or "main", entry.commit)


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
