"""What all aggregators share: packed, padded and single bags go through one and the same code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.mil.packing import Segments, pack, pack_padded, rows_tensor, unpack

if TYPE_CHECKING:
    from wsipipe.mil.losses import Criterion
    from wsipipe.mil.targets import Target

__all__ = ["Aggregator", "DeepLogits", "MILOutput", "init_linear"]


@dataclass(frozen=True)
class DeepLogits:
    """Further logits that the bag's label supervises during training.

    Attributes:
        logits: (R, C).
        bag: (R,) int64, the bag each row speaks for.
        weight: Share in the loss.
    """

    logits: Tensor
    bag: Tensor
    weight: float


@dataclass(frozen=True)
class MILOutput:
    """What an aggregator says about B bags.

    Attributes:
        logits: (B, C) float32.
        attention: Weight of each tile, >= 0, summing to 1 in a bag; (B, N) with zeros at padding,
            or (T,) for a pack. None where the model has no such weights.
        instance_logits: (B, N, C) or (T, C): evidence of each tile, where the model has it.
        extras: Raw scores and the like, by name; packed.
        deep: Auxiliary logits (training).
        penalty: A regulariser that the model adds to the loss (training), or None.
    """

    logits: Tensor
    attention: Tensor | None = None
    instance_logits: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    deep: tuple[DeepLogits, ...] = ()
    penalty: Tensor | None = None


class Aggregator(nn.Module):
    """From bags of tile features to logits. A subclass writes `forward_packed`.

    Args:
        in_dim: Dimension of the features.
        n_classes: Columns of the logits (classes, or outputs of whatever kind).
    """

    #: Share of the bag's own logits in the loss; `DeepLogits.weight` holds the others.
    bag_weight: float = 1.0
    #: Does the order of tiles change the output? (Then it must be fixed and recorded.)
    order_matters: ClassVar[bool] = False
    #: Does every tile twice give the same output?
    duplication_invariant: ClassVar[bool] = True

    def __init__(self, in_dim: int, n_classes: int) -> None:
        super().__init__()
        if in_dim < 1 or n_classes < 1:
            raise ConfigError(
                f"An aggregator needs in_dim and n_classes >= 1, not {in_dim}, {n_classes}."
            )
        self.in_dim = in_dim
        self.n_classes = n_classes

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """Logits of the bags that lie end to end in `x` (T, in_dim)."""
        raise NotImplementedError

    def forward(self, features: Tensor, mask: Tensor | None = None) -> MILOutput:
        """Logits and attention of padded bags.

        Args:
            features: (B, N, in_dim), or one bag (N, in_dim). Any floating dtype.
            mask: (B, N) bool, True = real. What stands at padding has no influence, NaN included.

        Returns:
            `MILOutput` with `logits` (B, n_classes) and `attention` (B, N) or None.

        Raises:
            ConfigError: The shape does not fit, or a bag has no real row.
        """
        if features.ndim == 2:
            features = features.unsqueeze(0)
            mask = None if mask is None else mask.reshape(1, -1)
        if features.ndim != 3 or features.shape[-1] != self.in_dim:
            raise ConfigError(
                f"Features of shape {tuple(features.shape)} do not fit an aggregator for "
                f"{self.in_dim}-dimensional features.",
                "Give (B, N, D) with the D that the model was made for.",
            )
        n_bags, length = features.shape[:2]
        if mask is not None and tuple(mask.shape) != (n_bags, length):
            raise ConfigError(
                f"mask is {tuple(mask.shape)}, features are {(n_bags, length)} bags by tiles."
            )
        x, bags = pack_padded(features, mask)
        out = self.forward_packed(self.cast(x), bags)
        attention, instance = out.attention, out.instance_logits
        return replace(
            out,
            attention=None if attention is None else unpack(attention, mask, n_bags, length),
            instance_logits=None if instance is None else unpack(instance, mask, n_bags, length),
        )

    def forward_bags(self, bags: Sequence[Tensor]) -> MILOutput:
        """Logits of bags (N_b, in_dim) of any lengths; `attention` stays packed (T,)."""
        x, segments = pack(bags)
        return self.forward_packed(self.cast(x), segments)

    def forward_chunks(self, bag: Any, chunk: int = 16384) -> MILOutput:
        """One bag of any length, in bounded memory where the model allows it.

        Args:
            bag: Array or tensor (N, in_dim); may be mapped from disk.
            chunk: Rows that are in memory at a time.

        Raises:
            ConfigError: The model needs all tiles at once and they do not fit into memory.
        """
        from wsipipe.mil.bank import available_bytes

        # The features in float32 and about as much again for each of three hidden layers.
        needed = 16 * len(bag) * self.in_dim
        if self.device.type == "cpu" and needed > available_bytes():
            raise ConfigError(
                f"A bag of {len(bag):,} tiles needs about {needed / 1e9:.0f} GB at once in this "
                f"model ({type(self).__name__}), more than there is.",
                "Use one that streams (abmil, clam-sb, clam-mb, dsmil, mean, max, lse), or larger "
                "tiles.",
            )
        return self.forward_bags([rows_tensor(bag[:])])

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Refuse what the model cannot learn.

        Raises:
            ConfigError: Naming models that can.
        """

    def fit_vectors(self, vectors: Tensor, y: Tensor, criterion: Criterion, seed: int) -> bool:
        """Fit in closed form on one vector a bag, instead of by gradient.

        Args:
            vectors: (B, in_dim) float32, mean tile of each bag, standardised where asked.
            y: (B, 2) as in `BagSet`.
            criterion: What the training part taught about the target.

        Returns:
            True where the model is now fitted; False (most models): train it by gradient.
        """
        return False

    def instance_loss(self, out: MILOutput, labels: Tensor, bags: Segments) -> Tensor | None:
        """Supervision of single tiles by pseudo-labels; None where the model has none.

        Args:
            labels: (B,) int64 class of each bag, -1 = unknown.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    def cast(self, x: Tensor) -> Tensor:
        """Features in the dtype of the weights; under autocast they stay as they are."""
        if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
            return x.to(torch.get_autocast_dtype(x.device.type))
        first = next(self.parameters(), None)
        return x.float() if first is None else x.to(first.dtype)


def init_linear(module: nn.Module) -> None:
    """Kaiming-uniform weights, a tenth of that for `module.head`, and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    head = getattr(module, "head", None)
    if isinstance(head, nn.Linear):
        # The first predictions are near even: a random guess that is sure of itself costs a small
        # cohort the epochs in which it would learn.
        with torch.no_grad():
            head.weight.mul_(0.1)
