"""The hub's protocol, for `wsipipe.weights`: metadata, resumed download, cache layout."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from wsipipe.errors import GatedEncoderError, OutputError, WeightsError
from wsipipe.weights import Source, endpoint, file_sha256, hub_cache

__all__ = ["download", "link", "refer"]

_METADATA_TIMEOUT_S = 10.0
# Of the disk, not of the network.
_CACHE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM}


def download(source: Source, folder: Path) -> Path:
    """Download the first of `source.files` that the repository has, into the hub's cache.

    Args:
        source: What to fetch; `repo` is not None.
        folder: The repository's folder in the cache.

    Returns:
        The file under `snapshots/<commit>/`.

    Raises:
        GatedEncoderError, WeightsError: As `wsipipe.weights.fetch`.
    """
    from huggingface_hub.errors import EntryNotFoundError

    for file in source.files:
        try:
            return _download_one(source, folder, file)
        except EntryNotFoundError:
            continue
    raise WeightsError(
        source.name,
        f"Encoder {source.name}: {endpoint()}/{source.repo} has none of {', '.join(source.files)}.",
        "Give the file with --weights FILE.",
    )


def _download_one(source: Source, folder: Path, file: str) -> Path:
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(library_name="wsipipe")
    try:
        metadata = _metadata(source, file)
        etag, commit, size = metadata.etag, metadata.commit_hash, metadata.size
        if etag is None or commit is None:
            raise WeightsError(
                source.name,
                f"Encoder {source.name}: {endpoint()} does not answer as a hub does.",
                "Check HF_ENDPOINT, or the proxy in between.",
            )
        if urlsplit(metadata.location).netloc != urlsplit(endpoint()).netloc:
            # Storage behind a signed address must not see the user's token.
            headers.pop("authorization", None)
        blob = folder / "blobs" / etag
        with _lock(hub_cache() / ".locks" / folder.name / f"{etag}.lock"):
            if not blob.is_file():
                _resume(metadata.location, blob, headers, size)
                _verify(source, blob, etag)
    except EntryNotFoundError:
        raise
    except _network_errors() as error:
        raise _explain(source, error) from error
    return link(folder, blob, commit, source.revision or "main", file)


def _metadata(source: Source, file: str) -> Any:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repo, kind = source.repo or "", "model"
    if repo.startswith("datasets/"):
        repo, kind = repo.removeprefix("datasets/"), "dataset"
    url = hf_hub_url(
        repo, file, repo_type=kind, revision=source.revision or "main", endpoint=endpoint()
    )
    # No retries: an unreachable network is told in seconds, not after a minute of waiting.
    return get_hf_file_metadata(url, timeout=_METADATA_TIMEOUT_S, library_name="wsipipe")


def _resume(url: str, blob: Path, headers: dict[str, str], size: int | None) -> None:
    """Fetch `url` into `blob`, going on from what an earlier attempt left."""
    from huggingface_hub.file_download import http_get

    partial = blob.with_name(f"{blob.name}.incomplete")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as stream:
        have = stream.tell()
        if size is not None and have > size:
            have = 0
            stream.truncate(0)
        http_get(url, _as_binary(stream), resume_size=have, headers=headers, expected_size=size)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(blob)


def _as_binary(stream: Any) -> BinaryIO:
    return stream  # type: ignore[no-any-return]


def _verify(source: Source, blob: Path, etag: str) -> None:
    promised = source.sha256 or (etag if len(etag) == 64 else None)
    if promised is None:
        return
    digest = file_sha256(blob)
    if digest != promised:
        blob.unlink()
        raise WeightsError(
            source.name,
            f"Encoder {source.name}: the download has the wrong checksum (sha256 {digest}, "
            f"expected {promised}); it was deleted.",
            "Try again; if it stays wrong, the mirror or proxy in between changes files.",
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One download a file at a time, over processes; the lock dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        # Some network file systems have no locks: two may then download, and the checksum decides.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def link(folder: Path, blob: Path, commit: str, revision: str, file: str) -> Path:
    """Give a blob its name in a commit's snapshot; remember what the revision points at.

    Returns:
        The file under `snapshots/<commit>/`.
    """
    pointer = folder / "snapshots" / commit / file
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        temporary.replace(pointer)
    refer(folder, revision, commit)
    return pointer


def refer(folder: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch, a tag or a short revision means."""
    if revision == commit:
        return
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f".{ref.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(commit, encoding="utf-8")
    temporary.replace(ref)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its HTTP library changed over its versions."""
    errors: list[type[Exception]] = [OSError]
    for library in ("httpx2", "httpx"):
        try:
            errors.append(importlib.import_module(library).HTTPError)
        except ImportError:
            continue
    return tuple(errors)


def _explain(source: Source, error: Exception) -> Exception:
    """Turn the client's error into ours: what happened, and what to do now."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and error.errno in _CACHE_ERRNOS:
        return OutputError(
            hub_cache(),
            f"the cache of weights cannot be written ({error.strerror}).",
            "Free space, or name another folder with HF_HUB_CACHE.",
        )
    name = f"Encoder {source.name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = isinstance(error, GatedRepoError | RepositoryNotFoundError) or status in (401, 403)
    if isinstance(error, GatedRepoError) or (refused and source.gated):
        return GatedEncoderError(
            source.name,
            f"{name}: its makers ask you to accept their terms first (licence: {source.licence}).",
            f"Accept them at {source.page}, then log in with `hf auth login` (or set HF_TOKEN), "
            "and run the same command again.",
        )
    if refused:
        return WeightsError(
            source.name,
            f"{name}: {endpoint()} has no repository {source.repo}, or you may not see it.",
            "Correct the name; for a private repository log in with `hf auth login` or HF_TOKEN.",
        )
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(
            source.name,
            f"{name}: {source.repo} has no revision {source.revision}.",
            "Its makers removed what the card pins. Give a file with --weights FILE, or another "
            f"revision with hf-hub:{source.repo}@REVISION.",
        )
    if isinstance(error, HfHubHTTPError) and not isinstance(error, OfflineModeIsEnabled):
        problem = f"{endpoint()} answered {status}"
    else:
        problem = f"{endpoint()} cannot be reached ({type(error).__name__}: {error})"
    return WeightsError(
        source.name,
        f"{name}: weights are not in the cache ({hub_cache()}), and {problem}.",
        f"Check the network or HF_ENDPOINT. Without network: wsipipe pull {source.name} --bundle "
        "FILE.tar elsewhere and wsipipe pull --from FILE.tar here; or --weights FILE.",
    )
