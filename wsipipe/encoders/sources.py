"""Encoders that are not in the catalogue: timm, hub repositories, folders, Python files."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.registry import Recipe
from wsipipe.errors import ConfigError, UnknownEncoderError, WeightsError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_folder", "from_hub", "from_python_file", "from_timm"]

# Licences, as repositories spell them, that allow commercial use without asking.
_PERMISSIVE = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause"}


def from_timm(name: str) -> Recipe:
    """`timm:ARCH[.TAG][?pretrained=false]`.

    Raises:
        UnknownEncoderError: timm has no such architecture; near names are suggested.
    """
    import timm

    arch, _, query = name.removeprefix("timm:").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    pretrained = options.pop("pretrained", "true").lower()
    if options or pretrained not in ("true", "false"):
        raise ConfigError(
            f"Encoder {name!r}: only ?pretrained=true or ?pretrained=false may follow the name."
        )
    if not timm.is_model(arch):
        near = ", ".join(_near(arch, timm.list_models()))
        raise UnknownEncoderError(
            name,
            f"timm has no architecture {arch!r}.",
            f"Did you mean {near}?" if near else "timm.list_models() lists all.",
        )
    config = timm.get_pretrained_cfg(arch, allow_unregistered=False)
    settings = config.to_dict() if config is not None else {}
    if pretrained == "true" and not settings.get("hf_hub_id"):
        raise WeightsError(
            name,
            f"timm publishes no weights for {arch} on the hub.",
            f"Give them with --weights FILE, or use timm:{arch}?pretrained=false for a trial.",
        )
    card = _card_from_timm(name, arch, settings, {}, hub=settings.get("hf_hub_id"))
    return Recipe(card, _build, "timm", loads=pretrained == "true", definition=_definition(card))


def from_hub(name: str) -> Recipe:
    """`hf-hub:ORG/REPO[@REVISION]`, a repository with timm's config.json."""
    from wsipipe import weights

    repo, _, revision = name.partition(":")[2].partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UnknownEncoderError(
            name, f"{name!r} does not name a repository.", "Write hf-hub:ORG/REPO."
        )
    config = weights.fetch(
        weights.Source(
            name=name,
            repo=repo,
            revision=revision or None,
            files=("config.json",),
            page=f"https://huggingface.co/{repo}",
        )
    )
    # The weights must be of the commit that the configuration is of.
    return _from_config(name, config.path, hub=repo, revision=config.revision, origin="hub")


def from_folder(folder: Path) -> Recipe:
    """A local folder with timm's config.json and the weights beside it."""
    config = folder / "config.json"
    if not config.is_file():
        raise UnknownEncoderError(
            str(folder),
            f"The folder {folder} has no config.json.",
            "A checkpoint folder holds config.json (timm format) and model.safetensors.",
        )
    name = folder.resolve().name
    return _from_config(name, config, hub=None, revision=None, origin="folder", folder=folder)


def from_python_file(path: Path) -> Recipe:
    """A file with `CARD` and `build(card)`; it is run, as any Python file one names."""
    if not path.is_file():
        raise UnknownEncoderError(
            str(path),
            f"There is no file {path}.",
            "Give the path of a .py file with CARD and build.",
        )
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    module = _import_file(path, text)
    card, build = getattr(module, "CARD", None), getattr(module, "build", None)
    if not isinstance(card, EncoderCard) or not callable(build):
        raise ConfigError(
            f"{path} is not an encoder file: it needs CARD = wsipipe.EncoderCard(...) and "
            "def build(card)."
        )
    return Recipe(card, build, "file", loads=False, definition=digest)


def _definition(card: EncoderCard) -> str:
    """Hash of an architecture and its arguments."""
    text = json.dumps([card.arch, dict(card.arch_kwargs)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _import_file(path: Path, text: bytes) -> ModuleType:
    """Run `text`, the very bytes that were hashed.

    Python's own import would take compiled code from its cache by the file's size and the second
    of its last change, and so run the old code of a file that was edited in haste; and it would
    write that cache beside the user's file.
    """
    # Where the file lies is part of the name too: it may load weights from beside itself.
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + text).hexdigest()
    name = f"wsipipe_encoder_{path.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickling look modules up by name.
    sys.modules[name] = module
    try:
        exec(loader.source_to_code(text, str(path)), module.__dict__)
    # Other people's code: whatever it raises is their file's problem, told as such.
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"{path} cannot be run: {type(error).__name__}: {error}.",
            "Correct the file; `python FILE` shows where it fails.",
        ) from error
    return module


def _from_config(
    name: str,
    config: Path,
    *,
    hub: str | None,
    revision: str | None,
    origin: str,
    folder: Path | None = None,
) -> Recipe:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(name, f"{config} is not JSON: {error}.", "Download it again.") from error
    if not isinstance(settings, dict) or "architecture" not in settings:
        raise WeightsError(
            name,
            f"{config} is not in timm's format (it names no 'architecture').",
            "Use a catalogue name for such a model, or write a card: docs/add-your-encoder.md.",
        )
    import timm

    arch = settings["architecture"]
    if not isinstance(arch, str) or not timm.is_model(arch):
        raise WeightsError(
            name,
            f"{config}: the installed timm {timm.__version__} has no architecture {arch!r}.",
            "A newer timm may have it: pip install -U timm.",
        )
    try:
        card = _card_from_timm(
            name,
            arch,
            {**settings, **(settings.get("pretrained_cfg") or {})},
            dict(settings.get("model_args") or {}),
            hub=hub,
            revision=revision,
            pool=settings.get("global_pool"),
        )
    # The arguments go to timm as they stand in somebody's file; it raises whatever they provoke.
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise WeightsError(
            name,
            f"{config} describes no model that timm can make: {error}.",
            "Correct the file, or download it again.",
        ) from error
    return Recipe(card, _build, origin, folder=folder, definition=_definition(card))


def _card_from_timm(
    name: str,
    arch: str,
    settings: Mapping[str, Any],
    model_args: Mapping[str, Any],
    *,
    hub: str | None,
    revision: str | None = None,
    pool: str | None = None,
) -> EncoderCard:
    """timm's preprocessing travels with its weights; only mpp is not in it."""
    import torch

    from wsipipe.encoders.nets.vit import timm_model

    arguments = {k: v for k, v in model_args.items() if k != "num_classes"}
    if pool is not None:
        arguments.setdefault("global_pool", pool)
    pooling = "head"
    if arguments.get("global_pool") == "":
        pooling = "cls"
    with torch.device("meta"):
        model = timm_model(arch, arguments)
    # `wsipipe pretrain` writes what timm's format has no place for under a key of its own.
    own: dict[str, Any] = dict(settings.get("wsipipe") or {})
    size = settings.get("fixed_input_size") or settings.get("input_size") or (3, 224, 224)
    edge = int(size[-1] if isinstance(size, list | tuple) else 224)
    licence = str(settings.get("license") or own.get("licence") or "unknown")
    return EncoderCard(
        name=str(own.get("name", name)),
        dim=int(own.get("dim") or _output_dim(model, edge)),
        tile_px=edge,
        mpp=own.get("mpp"),
        mean=_triple(settings.get("mean"), (0.485, 0.456, 0.406)),
        std=_triple(settings.get("std"), (0.229, 0.224, 0.225)),
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        pooling=str(own.get("pooling", pooling)),
        arch=arch,
        arch_kwargs=arguments,
        layout="timm",
        drops=("head.*", "fc.*", "classifier.*", "head_dist.*"),
        hub=hub,
        revision=revision,
        licence=licence,
        commercial=licence.lower() in _PERMISSIVE,
        params=sum(p.numel() for p in model.parameters()),
    )


def _output_dim(model: nn.Module, edge: int) -> int:
    """Length of what the model returns; some have a layer between their features and the head."""
    import torch

    with torch.device("meta"):
        return int(model.eval()(torch.empty(1, 3, edge, edge)).shape[-1])


def _triple(value: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return default
    return float(value[0]), float(value[1]), float(value[2])


def _near(word: str, words: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(word, words, n=3)


def _build(card: EncoderCard) -> nn.Module:
    from wsipipe.encoders.nets.vit import build_timm

    return build_timm(card)
