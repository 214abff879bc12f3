"""Checkpoints: from the hub's cache, the hub, a folder or a file; pinned, checked, never unpickled.

The hub's own cache layout (`blobs/`, `snapshots/<commit>/`, `refs/`) is kept, so that other tools
share what is downloaded, and mounted read-only caches work. What lies in the cache is used without
asking the hub: a run never changes because a repository did; `wsipipe pull` refreshes.

huggingface_hub 2.x starts over when a download's process dies; weights are gigabytes, so the bytes
are fetched here (through its client) into one `.incomplete` file under a lock, and go on from where
they stopped. HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsipipe.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Located",
    "Source",
    "cached",
    "check_fit",
    "fetch",
    "file_sha256",
    "hub_cache",
    "in_folder",
    "local_file",
    "read_state",
    "repo_folder",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """Where weights are published, and on what terms.

    Attributes:
        name: Whose weights, for messages.
        repo: Hub repository, or None.
        revision: Commit, tag or branch; None = the cached commit of `main`, else the current one.
        files: Names in the repository, in order of preference.
        url: Where they lie if not on the hub.
        sha256: Of the file, where known.
        page, licence, gated, public: Terms, see `EncoderCard`.
    """

    name: str
    repo: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    url: str | None = None
    sha256: str | None = None
    page: str | None = None
    licence: str = "unknown"
    gated: bool = False
    public: str = "yes"


@dataclass(frozen=True)
class Located:
    """A file of weights on this machine.

    Attributes:
        path: The file.
        sha256: Of its bytes.
        revision: Commit of the hub repository, or None.
    """

    path: Path
    sha256: str
    revision: str | None = None


# --- places -------------------------------------------------------------------------------------


def hub_cache() -> Path:
    """Folder of the hub's cache, as huggingface_hub chooses it; the environment is read now."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"


def offline() -> bool:
    """Whether the user forbade the network."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def endpoint() -> str:
    """Address of the hub or of its mirror."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def repo_folder(repo: str) -> Path:
    """A repository's folder in the hub's cache, as huggingface_hub names it."""
    kind = "models"
    if repo.startswith("datasets/"):
        kind, repo = "datasets", repo.removeprefix("datasets/")
    return hub_cache() / "--".join([kind, *repo.split("/")])


def cached(source: Source) -> Path | None:
    """The file in the hub's cache, without asking the hub; None if it is not there."""
    if source.repo is None:
        return None
    folder = repo_folder(source.repo)
    commits = [c for c in (_ref(folder, source.revision or "main"), source.revision) if c]
    for commit in commits:
        for file in source.files:
            path = folder / "snapshots" / commit / file
            if path.is_file():
                return path
    return None


def _ref(folder: Path, revision: str) -> str | None:
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


# --- finding ------------------------------------------------------------------------------------


def local_file(path: str | Path, name: str) -> Located:
    """A checkpoint of the user's own.

    Raises:
        WeightsError: There is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(
            name, f"Encoder {name}: there is no weights file {file}.", "Correct --weights."
        )
    return Located(file, file_sha256(file))


def in_folder(folder: Path, files: tuple[str, ...], name: str) -> Located:
    """The first of `files` that a local checkpoint folder holds.

    Raises:
        WeightsError: It holds none of them.
    """
    for file in files:
        if (folder / file).is_file():
            return Located(folder / file, file_sha256(folder / file))
    raise WeightsError(
        name,
        f"The folder {folder} holds none of {', '.join(files)}.",
        "Put the weights beside config.json, as safetensors.",
    )


def fetch(source: Source, *, refresh: bool = False) -> Located:
    """Weights from the cache, else from the hub; checked.

    Args:
        source: What to fetch.
        refresh: Ask the hub even if the cache has it.

    Returns:
        The file, its hash and the commit it is of.

    Raises:
        GatedEncoderError: Terms have to be accepted, or one has to log in.
        WeightsError: Not published, no network, no such file, or a wrong checksum.
    """
    if source.repo is None:
        raise _not_on_hub(source)
    path = None if refresh else cached(source)
    if path is None:
        if offline():
            raise WeightsError(
                source.name,
                f"Encoder {source.name}: weights are not in the cache ({hub_cache()}), and "
                "HF_HUB_OFFLINE forbids the network.",
                _how_to_carry(source),
            )
        from wsipipe import _hub

        path = _hub.download(source, repo_folder(source.repo))
    return _checked(source, path)


def _checked(source: Source, path: Path) -> Located:
    digest = file_sha256(path)
    blob = path.resolve().name
    promised = source.sha256 or (blob if _SHA256.fullmatch(blob) else None)
    if promised is not None and digest != promised:
        raise WeightsError(
            source.name,
            f"Encoder {source.name}: {path} has the wrong checksum (sha256 {digest}, expected "
            f"{promised}).",
            f"Delete {path.resolve()} and run `wsipipe pull {source.name}` again.",
        )
    commit = path.parent.name
    for parent in path.parents:
        if parent.parent.name == "snapshots":
            commit = parent.name
    return Located(path, digest, commit)


def _how_to_carry(source: Source) -> str:
    return (
        f"On a machine with network: wsipipe pull {source.name} --bundle FILE.tar; here: wsipipe "
        "pull --from FILE.tar. Or give a file with --weights FILE."
    )


def _not_on_hub(source: Source) -> WeightsError:
    if source.public == "none":
        return WeightsError(
            source.name,
            f"Encoder {source.name}: its makers have not published the weights ({source.licence}).",
            "Whoever has a checkpoint gives it with --weights FILE.",
        )
    where = source.url or source.page or "its makers' page"
    check = f" (sha256 {source.sha256})" if source.sha256 else ""
    return WeightsError(
        source.name,
        f"Encoder {source.name}: its weights are not on the hub; licence: {source.licence}.",
        f"Download them from {where}{check} and give the file with --weights FILE.",
    )


# --- hashing ------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """sha256 of a file, remembered by path, size and mtime: 4.5 GB are read once, not per run."""
    real = path.resolve()
    stat = real.stat()
    key = f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}"
    note = _memo_folder() / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        known = note.read_text(encoding="ascii").strip()
        if _SHA256.fullmatch(known):
            return known
    with real.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A cache only: a read-only home directory costs time, not correctness.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(note)
    return digest


def _memo_folder() -> Path:
    base = os.environ.get("WSIPIPE_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "wsipipe"
    )
    return Path(base).expanduser() / "sha256"


# --- reading ------------------------------------------------------------------------------------


def read_state(path: Path, name: str, unwrap: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read a checkpoint without running any code from it.

    Args:
        path: safetensors, else what `torch.load(weights_only=True)` reads.
        name: Whose weights, for messages.
        unwrap: Keys to descend through, outermost first, each only where it is present.

    Returns:
        Published key -> tensor, memory-mapped where the format allows.

    Raises:
        WeightsError: The file is damaged, or holds more than tensors.
    """
    content = _read_safetensors(path, name) if _is_safetensors(path) else _read_torch(path, name)
    for key in unwrap:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    import torch

    state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise WeightsError(
            name,
            f"Encoder {name}: {path} holds no tensors at its top (it holds "
            f"{', '.join(map(str, list(content)[:8]))}).",
            "Give a file that holds a state dict.",
        )
    return state


def _is_safetensors(path: Path) -> bool:
    # Blobs of the hub's cache have no suffix once resolved, and users rename files: look inside.
    # safetensors: a little-endian header length, then a JSON object.
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(path: Path, name: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            name, f"Encoder {name}: {path} is damaged: {error}.", "Download it again."
        ) from error


def _read_torch(path: Path, name: str) -> dict[str, Any]:
    import pickle
    import warnings
    import zipfile

    import torch
    from safetensors import SafetensorError

    try:
        # Only archives of torch >= 1.6 can be memory-mapped.
        with warnings.catch_warnings():
            # torch warns of foreign pickles, and asks to report them, before it refuses them.
            warnings.simplefilter("ignore")
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        # torch's own words advise to unpickle; only the name of what it met is of use here.
        met = re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE)
        if met is None:
            raise WeightsError(
                name,
                f"Encoder {name}: {path} cannot be read as weights: it is neither safetensors nor "
                "a checkpoint of torch.",
                "Download it again, or give another file.",
            ) from error
        raise WeightsError(
            name,
            f"Encoder {name}: {path} is not a plain state dict (it holds {met[1]}). Files that "
            "hold Python objects can run code when they are read, so they are refused.",
            "Convert it once: python -m wsipipe.encoders.convert pickled IN OUT.safetensors "
            "(it runs nothing from the file).",
        ) from error
    # torch hands files called .safetensors on to safetensors, whatever is in them.
    except (RuntimeError, EOFError, OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            name,
            f"Encoder {name}: {path} cannot be read as weights: {error}.",
            "Download it again, or give another file.",
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            name,
            f"Encoder {name}: {path} holds a {type(content).__name__}, not a state dict.",
            "Give a file that holds a state dict.",
        )
    return content


def check_fit(name: str, target: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit to the last key and shape.

    Args:
        name: Whose weights.
        target: The network that will take them.
        state: Key -> tensor, already under the names of `target`.

    Raises:
        WeightsError: Lists missing and unexpected keys, and shapes that differ.
    """
    wanted = target.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, must be {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({_listed(keys)})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            name,
            f"Encoder {name}: the weights do not fit: {'; '.join(problems)}.",
            "Is this the checkpoint of this encoder? A private checkpoint of another layout needs "
            "a card of its own: docs/add-your-encoder.md.",
        )


def _listed(keys: list[str], most: int = 12) -> str:
    more = f", and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
