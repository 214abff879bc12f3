"""A trained fold on disk and in use: its members, and all that must fit before they may speak."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.errors import ConfigError, CorruptFileError
from wsipipe.mil.bags import BagFile
from wsipipe.mil.base import Aggregator
from wsipipe.mil.calibration import target_outputs
from wsipipe.mil.packing import rows_tensor
from wsipipe.mil.registry import create_aggregator
from wsipipe.mil.standardise import standardised

__all__ = ["Ensemble", "FoldModel", "load_fold", "name_digest", "save_fold"]

FORMAT, VERSION = "wsipipe-mil", 1


def name_digest(name: str) -> str:
    """A patient's or slide's name as a digest: overlap can be told without carrying names."""
    return hashlib.sha256(f"wsipipe|{name}".encode()).hexdigest()[:16]


@dataclass
class FoldModel:
    """The models of one fold: one an inner split, averaged.

    Attributes:
        info: Content of `model.json`.
        members: Aggregators in eval mode.
        norms: Mean and spread of the training features of each member, or None.
    """

    info: dict[str, Any]
    members: list[Aggregator]
    norms: list[tuple[Tensor, Tensor] | None]

    def to(self, device: torch.device) -> FoldModel:
        """Move in place."""
        for member in self.members:
            member.to(device)
        self.norms = [None if n is None else (n[0].to(device), n[1].to(device)) for n in self.norms]
        return self

    @torch.no_grad()
    def forward_bag(
        self, bag: Any, chunk: int = 16384
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """One bag (N, D), possibly mapped from disk, in pieces of `chunk` tiles.

        Returns:
            Logits (M, all columns), and the members' mean attention (N,) or None.
        """
        logits, attention = [], []
        for member, norm in zip(self.members, self.norms, strict=True):
            rows = bag if norm is None else _Normalised(bag, norm)
            if len(bag) <= chunk:
                device = member.device
                out = member.forward_bags([rows_tensor(rows[: len(bag)], device)])
            else:
                # Smaller pieces cost no time and a quarter of the memory.
                out = member.forward_chunks(rows, min(chunk, 4096))
            logits.append(out.logits[0].double().cpu().numpy())
            if out.attention is not None:
                attention.append(out.attention.double().cpu().numpy())
        return np.array(logits), np.mean(attention, axis=0) if attention else None

    def outputs(self, logits: NDArray[np.float64], target: int = 0) -> NDArray[np.float64]:
        """(M, B, all columns) -> what users see of one target; see `target_outputs`."""
        said = self.info["targets"][target]
        return target_outputs(said, self.info["calibration"][target], logits)

    def hazards(self, logits: NDArray[np.float64], target: int = 0) -> NDArray[np.float64]:
        """(M, B, all columns) -> (M * B, bins), of a discrete-time target."""
        said = self.info["targets"][target]
        z = logits[..., said["start"] : said["start"] + said["bins"]] + np.array(said["base"])
        values: NDArray[np.float64] = 1 / (1 + np.exp(-z.reshape(-1, said["bins"])))
        return values


class _Normalised:
    """A bag whose slices come standardised."""

    def __init__(self, bag: Any, norm: tuple[Tensor, Tensor]) -> None:
        self._bag, self._norm = bag, norm

    def __len__(self) -> int:
        return len(self._bag)

    def __getitem__(self, key: Any) -> Tensor:
        return standardised(rows_tensor(self._bag[key], self._norm[0].device), self._norm)


def save_fold(folder: Path, model: FoldModel) -> None:
    """Write `model.safetensors` and `model.json`; the latter last, it makes the fold whole."""
    from safetensors.torch import save

    from wsipipe.store.publish import make_folder, publish_bytes, publish_text

    tensors: dict[str, Tensor] = {}
    for i, (member, norm) in enumerate(zip(model.members, model.norms, strict=True)):
        for key, value in member.state_dict().items():
            tensors[f"member.{i}.{key}"] = value.detach().cpu().contiguous()
        if norm is not None:
            tensors[f"norm.{i}.mean"], tensors[f"norm.{i}.std"] = (
                n.detach().cpu().contiguous() for n in norm
            )
    make_folder(folder)
    data = save(tensors)
    info = {**model.info, "weights_sha256": hashlib.sha256(data).hexdigest()}
    model.info = info
    publish_bytes(folder / "model.safetensors", data)
    publish_text(folder / "model.json", json.dumps(info, indent=1, sort_keys=True) + "\n")


def load_fold(folder: str | Path) -> FoldModel:
    """Read a fold back.

    Raises:
        CorruptFileError: A file is missing, damaged, or does not belong to the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        info = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        data = (folder / "model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise CorruptFileError(folder, f"is not a trained model ({error}).") from error
    if info.get("format") != FORMAT or int(info.get("version", 0)) > VERSION:
        raise CorruptFileError(folder, "was not made by this version of wsipipe train.")
    if hashlib.sha256(data).hexdigest() != info["weights_sha256"]:
        raise CorruptFileError(folder, "weights are not those that model.json describes.")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise CorruptFileError(folder, f"weights cannot be read ({error}).") from error
    members: list[Aggregator] = []
    norms: list[tuple[Tensor, Tensor] | None] = []
    for i in range(int(info["members"])):
        member = create_aggregator(
            info["aggregator"],
            in_dim=int(info["in_dim"]),
            n_classes=int(info["n_outputs"]),
            **info["aggregator_settings"],
        )
        mark = f"member.{i}."
        member.load_state_dict(
            {k.removeprefix(mark): v for k, v in tensors.items() if k.startswith(mark)}
        )
        members.append(member.eval())
        mean = tensors.get(f"norm.{i}.mean")
        norms.append(None if mean is None else (mean, tensors[f"norm.{i}.std"]))
    return FoldModel(info, members, norms)


@dataclass
class Ensemble:
    """All folds of a run, speaking as one on slides that none of them has seen."""

    folds: list[FoldModel]

    @property
    def info(self) -> dict[str, Any]:
        """Of the first fold; the folds agree in all that matters here."""
        return self.folds[0].info

    @property
    def slides_together(self) -> bool:
        """Was the model trained and judged on all slides of a patient as one bag?"""
        return bool(self.info.get("slides_together"))

    def check_features(self, files: Iterable[BagFile]) -> list[str]:
        """Refuse features of another encoder, mpp, tile size or dimension.

        Returns:
            Sentences about what could not be checked.

        Raises:
            ConfigError: Naming the file and the difference.
        """
        wanted: Mapping[str, Any] = self.info["features"]
        silent: dict[str, int] = defaultdict(int)
        for file in files:
            found = {**file.settings, "dim": file.dim}
            for key, value in wanted.items():
                silent[key] += key not in found
                if key in found and found[key] != value:
                    raise ConfigError(
                        f"{file.path}: {key} is {found[key]!r}, the model knows {value!r}.",
                        "Extract the slides with the encoder, mpp and tile size of the model.",
                    )
        return [
            f"{count} feature file(s) do not say their {key}; the model knows {wanted[key]!r}: "
            "taken on trust."
            for key, count in silent.items()
            if count
        ]

    def seen(self, names: Sequence[str]) -> list[str]:
        """Those slides or patients that took part in training."""
        known = set(self.info["cohort_digests"])
        return [n for n in names if name_digest(n) in known]

    def folds_for(self, *slides: str) -> tuple[list[FoldModel], bool]:
        """The folds that may speak about slides of one patient, and whether they held them out.

        A slide of the training cohort is left to the folds that tested it; an unknown slide, or one
        that all folds learned from, is everybody's.
        """
        marks = {name_digest(s) for s in slides}
        if marks & set(self.info["cohort_digests"]):
            own = [f for f in self.folds if marks & set(f.info["test_digests"])]
            if own:
                return own, True
        return self.folds, False

    def predict(
        self, bag: Any, target: int = 0
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float64] | None]:
        """Mean output of the folds (C,), their disagreement, and mean attention (N,) or None."""
        outputs, maps = [], []
        for fold in self.folds:
            logits, attention = fold.forward_bag(bag)
            outputs.append(fold.outputs(logits[:, None], target)[0])
            if attention is not None:
                maps.append(attention)
        stacked = np.array(outputs)
        spread = float(stacked.std(axis=0).max()) if len(stacked) > 1 else 0.0
        return stacked.mean(axis=0), spread, np.mean(maps, axis=0) if maps else None


def load_ensemble(path: str | Path) -> Ensemble:
    """All trained folds below a folder: OUT of `wsipipe train`, OUT/models or one fold.

    Raises:
        ConfigError: There is none, or they belong to different runs.
    """
    path = Path(path)
    found = sorted(path.rglob("model.json"), key=lambda p: (len(p.parts), p.parent.name))
    if not found:
        raise ConfigError(f"{path}: no trained model (model.json) in it.", "Run wsipipe train.")
    folds = [load_fold(p.parent) for p in found]
    runs = {f.info["run_identity"] for f in folds}
    if len(runs) > 1:
        raise ConfigError(f"{path}: models of {len(runs)} different runs; name one of them.")
    folds.sort(key=lambda f: (f.info["repeat"], f.info["fold"]))
    return Ensemble(folds)
