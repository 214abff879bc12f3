"""An encoder ready to run: card, transform and network, uint8 tiles in, float32 features out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.precision import DTYPES, Resolved, lower
from wsipipe.encoders.transform import Transform
from wsipipe.errors import EncoderError, ModelError

__all__ = ["Encoder", "PendingFeatures"]


@dataclass(frozen=True)
class PendingFeatures:
    """Features that a GPU may still be computing.

    Attributes:
        host: (B, D) float32 in host memory; valid after `result`.
    """

    host: Tensor
    _event: torch.cuda.Event | None
    _keep: tuple[Tensor, ...] = ()  # pinned input, alive until the copy is done

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def result(self) -> NDArray[np.float32]:
        """Wait, then the (B, D) float32 features."""
        if self._event is not None:
            self._event.synchronize()
        array: NDArray[np.float32] = self.host.numpy()
        return array


class Encoder(nn.Module):
    """Maps uint8 tiles to features. Made by `create_encoder`.

    Attributes:
        card: What the makers intended.
        backend: What computes, and its version.
        compiled: What `compile_encoder` kept; empty where it was not asked for.
        precision: "fp32", "bf16" or "fp16", resolved.
        weights_sha256: Of the weights file, or of the parameters where there is no file.
        revision: Commit of the hub repository, or None.
        definition: Hash of what the name does not fix (a file's text), or None.
    """

    def __init__(
        self,
        card: EncoderCard,
        network: nn.Module,
        *,
        precision: Resolved = "fp32",
        device: str | torch.device = "cpu",
        weights_sha256: str = "",
        revision: str | None = None,
        definition: str | None = None,
    ) -> None:
        super().__init__()
        self.card = card
        self.backend = f"torch {torch.__version__}"
        self.compiled = ""
        self.precision: Resolved = precision
        self.weights_sha256 = weights_sha256
        self.revision = revision
        self.definition = definition
        self.transform = Transform(card)
        self.network = lower(network, precision)
        self.eval().requires_grad_(False).to(device)

    @property
    def device(self) -> torch.device:
        """Where the encoder lies."""
        return self.transform.scale.device

    def forward(self, tiles: NDArray[np.uint8] | Tensor) -> Tensor:
        """Embed a batch.

        Args:
            tiles: (B, H, W, 3) uint8, RGB, in host memory or on the device.

        Returns:
            (B, D) float32 on the encoder's device, without gradient. On a GPU it may still be
            being computed; `start` hands it over to the host without waiting.

        Raises:
            EncoderError: The tiles are not (B, H, W, 3) uint8.
            ModelError: The network returns anything but a tensor of shape (B, card.dim).
        """
        batch = self._as_tensor(tiles)
        with torch.inference_mode():
            pixels = self.transform(batch.to(self.device, non_blocking=True))
            with self._autocast():
                features: Tensor = self.network(pixels)
            if not isinstance(features, Tensor):
                raise ModelError(
                    self.card.name,
                    f"Encoder {self.card.name} returned a {type(features).__name__}, not a tensor.",
                    "Correct what `build` returns: a module of images in, (B, dim) out.",
                )
            if features.shape != (len(batch), self.card.dim):
                raise self._wrong_shape(features.shape, len(batch))
            return features.float()

    def start(self, tiles: NDArray[np.uint8] | Tensor) -> PendingFeatures:
        """Embed a batch without waiting for a GPU.

        Args:
            tiles: As for calling the encoder. Pinned host memory makes the copy asynchronous too.

        Returns:
            A handle; `.result()` waits and gives (B, D) float32 in host memory.
        """
        batch = self._as_tensor(tiles)
        if self.device.type != "cuda":
            return PendingFeatures(self(batch).cpu(), None)
        if batch.device.type == "cpu" and not batch.is_pinned():
            batch = batch.pin_memory()
        with torch.cuda.device(self.device):
            features = self(batch)
            host = torch.empty(features.shape, dtype=torch.float32, pin_memory=True)
            host.copy_(features, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return PendingFeatures(host, event, (batch, features))

    def run_side_by_side(self, streams: int) -> None:
        """Told, before the first batch, how many threads will call `start` at the same time."""

    def facts(self) -> dict[str, Any]:
        """What is recorded beside the features, and is no part of their identity."""
        return {"backend": self.backend, **({"compiled": self.compiled} if self.compiled else {})}

    def identity(self) -> dict[str, Any]:
        """What decides the numbers, for the identity of a feature file (precision is left out)."""
        return self.card.identity(self.weights_sha256, self.revision, self.definition)

    def _wrong_shape(self, shape: Sequence[int], count: int) -> ModelError:
        return ModelError(
            self.card.name,
            f"Encoder {self.card.name} returned shape {tuple(shape)} for {count} tiles; its card "
            f"says ({count}, {self.card.dim}).",
            "Correct `dim` on the card, or what `build` returns.",
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            # A caller's own autocast must not change what is recorded as fp32.
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def _as_tensor(self, tiles: NDArray[np.uint8] | Tensor) -> Tensor:
        if isinstance(tiles, np.ndarray):
            # torch shares memory with the array and would warn that it may write to it.
            array = np.ascontiguousarray(tiles)
            batch = torch.from_numpy(array if array.flags.writeable else array.copy())
        else:
            batch = tiles
        if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != torch.uint8:
            raise EncoderError(
                self.card.name,
                f"Encoder {self.card.name} takes uint8 tiles of shape (B, H, W, 3); got "
                f"{batch.dtype} {tuple(batch.shape)}.",
                "Do not scale or normalise tiles: the encoder does it as its card says.",
            )
        return batch
