"""How a run trains; every field goes into `metrics.json` and into the identity of its models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wsipipe.errors import ConfigError

__all__ = ["TrainSettings"]

# What all points of a grid share: who learns from whom, and the loss that they are compared by.
_OF_THE_RUN = frozenset({"class_weights", "inner", "precision", "seed", "survival_loss"})


@dataclass(frozen=True)
class TrainSettings:
    """Settings of training.

    Attributes:
        aggregator: A name of the registry; `aggregator_settings` its own arguments.
        epochs: At most so many passes over the training part.
        lr, weight_decay: AdamW's.
        batch_bags: Bags a step; 0 = a sixteenth of the training part, within 1 and 16. The risk
            set of the Cox loss is the whole training part all the same.
        warmup: Share of all steps over which the rate rises; it then falls as a cosine.
        patience: Epochs without a better inner validation loss until a model stops.
        bag_tiles: Tiles that are drawn from a bag a step; 0 = all.
        instance_dropout: Share of tiles left out at random a step.
        pack_tiles: Tiles in memory at a time; more are worked off in turn, with equal gradients.
        class_weights: "balanced", "none" or "sampler" (classes drawn equally often).
        inner: Inner validation folds; 0 = five below 250 training patients (their models are
            averaged), else one split of 20 %.
        precision: "auto", "fp32" or "bf16".
        standardize: Features by mean and spread of the training part.
        survival_loss: "cox" or "nll".
        grid: Setting -> values, all combinations tried inside the training part only.
    """

    aggregator: str = "abmil"
    aggregator_settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 40
    lr: float = 3e-4
    weight_decay: float = 1e-2
    batch_bags: int = 0
    warmup: float = 0.05
    patience: int = 10
    bag_tiles: int = 0
    instance_dropout: float = 0.0
    pack_tiles: int = 16384
    class_weights: str = "balanced"
    inner: int = 0
    precision: str = "auto"
    standardize: bool = False
    survival_loss: str = "cox"
    seed: int = 0
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if f.name in ("grid", "aggregator_settings"):
                continue
            # A whole number is a fine lr; true is no number, and 1.5 no count of epochs.
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise ConfigError(f"Training setting {f.name} is {value!r}, not {kind.__name__}.")
        checks = {
            "seed": 0 <= self.seed < 2**31,
            "epochs": self.epochs >= 1,
            "lr": self.lr > 0,
            "weight_decay": self.weight_decay >= 0,
            "batch_bags": self.batch_bags >= 0,
            "warmup": 0 <= self.warmup < 1,
            "patience": self.patience >= 1,
            "bag_tiles": self.bag_tiles >= 0,
            "instance_dropout": 0 <= self.instance_dropout < 1,
            "pack_tiles": self.pack_tiles >= 1,
            "class_weights": self.class_weights in ("balanced", "none", "sampler"),
            "inner": self.inner >= 0,
            "precision": self.precision in ("auto", "fp32", "bf16"),
            "survival_loss": self.survival_loss in ("cox", "nll"),
        }
        for name, good in checks.items():
            if not good:
                raise ConfigError(f"Training setting {name} is {getattr(self, name)!r}.")
        names = {f.name for f in fields(self)} - {"grid", "aggregator_settings"}
        for key, values in self.grid.items():
            if key in _OF_THE_RUN:
                raise ConfigError(
                    f"The grid varies '{key}', which is one for all points of a run.",
                    "Train once for each value, and see `wsipipe compare`.",
                )
            if key not in names and not key.startswith("aggregator."):
                raise ConfigError(
                    f"The grid varies '{key}', which is no setting.",
                    f"Settings: {', '.join(sorted(names))}, or aggregator.NAME.",
                )
            if not values:
                raise ConfigError(f"The grid gives no value for '{key}'.")

    def describe(self) -> dict[str, Any]:
        """As canonical JSON-able values."""
        return asdict(self)

    def with_values(self, values: dict[str, Any]) -> TrainSettings:
        """A copy with one point of the grid, and no grid."""
        own = {k: v for k, v in values.items() if not k.startswith("aggregator.")}
        inner = {k[11:]: v for k, v in values.items() if k.startswith("aggregator.")}
        merged = {**self.describe(), **own, "grid": {}}
        merged["aggregator_settings"] = {**self.aggregator_settings, **inner}
        return TrainSettings(**merged)

    @property
    def points(self) -> list[dict[str, Any]]:
        """All combinations of the grid; one empty one where there is no grid."""
        out: list[dict[str, Any]] = [{}]
        for key, values in self.grid.items():
            out = [{**point, key: value} for point in out for value in values]
        return out
