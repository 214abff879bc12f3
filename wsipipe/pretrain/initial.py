"""Start from an encoder that exists: its weights, its position embedding, its normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsipipe.errors import ConfigError
from wsipipe.pretrain.options import Arch
from wsipipe.pretrain.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from wsipipe.encoders import EncoderCard
    from wsipipe.pretrain.backbone import Backbone

__all__ = ["Start", "arch_of", "backbone_of", "start_from"]

_POOL = {"cls": "token", "mean": "avg", "cls+mean": "cls+mean", "gap": "avg", "head": "token"}


@dataclass(frozen=True)
class Start:
    """An encoder to go on from.

    Attributes:
        arch: Architecture with the catalogue's arguments.
        state: Weights of the timm model.
        card: Of the encoder.
        identity: What decides its numbers (name, revision, sha256 of the weights).
    """

    arch: Arch
    state: dict[str, Tensor]
    card: EncoderCard
    identity: dict[str, Any]

    def applied(self, recipe: Recipe, keep: frozenset[str] = frozenset()) -> Recipe:
        """The recipe with this architecture, and its normalisation unless set by the user.

        Args:
            recipe: What is to be trained.
            keep: Keys that the user has set ("views.mean", ...).
        """
        old = recipe.arch
        arch = self.arch.model_copy(
            update={
                "drop_path": old.drop_path,
                "patch_sizes": old.patch_sizes,
                "freeze_patch_embed": old.freeze_patch_embed,
                "grad_checkpointing": old.grad_checkpointing,
            }
        )
        views = recipe.views
        if not keep & {"views.mean", "views.std"}:
            views = views.model_copy(update={"mean": self.card.mean, "std": self.card.std})
        return recipe.model_copy(update={"arch": arch, "views": views})


def start_from(name: str) -> Start:
    """Weights of any catalogue name that `create_encoder` takes and that is a timm network.

    Raises:
        ConfigError: The network is not timm's, so that its tokens cannot be reached.
        EncoderError: As `create_encoder`.
    """
    from wsipipe.encoders import create_encoder

    encoder = create_encoder(name, precision="fp32")
    card = encoder.card
    trunk: Any = encoder.network
    trunk = getattr(trunk, "weights_module", trunk)
    arch = arch_of(card)
    state = {k: v for k, v in trunk.state_dict().items() if not k.startswith(("head.", "fc."))}
    _check_fit(name, arch, state)
    return Start(arch, state, card, encoder.identity())


def _check_fit(name: str, arch: Arch, state: dict[str, Tensor]) -> None:
    """Refuse networks that only resemble timm's (another patch embedding, another class)."""
    import torch

    from wsipipe.pretrain.backbone import build_backbone

    with torch.device("meta"):
        ours = build_backbone(arch, teacher=True).net.state_dict()
    odd = {k for k, v in ours.items() if k not in state or state[k].shape != v.shape}
    odd |= set(state) - set(ours)
    if odd:
        raise ConfigError(
            f"encoder {name} cannot be trained further: its network is not quite timm's "
            f"{arch.timm} ({', '.join(sorted(odd)[:3])}).",
            "Choose an encoder that is a plain timm network.",
        )


def arch_of(card: EncoderCard) -> Arch:
    """The architecture of a card, as a recipe names it.

    Raises:
        ConfigError: The network is not timm's, or its pooling is of its own kind.
    """
    pool = _POOL.get(card.pooling)
    if card.arch is None or pool is None:
        no_timm = "its network is not timm's"
        reason = no_timm if card.arch is None else f"its pooling is {card.pooling!r}"
        raise ConfigError(
            f"encoder {card.name} cannot be trained further: {reason}.",
            "Choose an encoder that is a timm network pooled by class token or mean.",
        )
    args = {k: v for k, v in card.arch_kwargs.items() if k not in ("num_classes", "global_pool")}
    if card.pooling == "head" and card.arch_kwargs.get("global_pool") == "avg":
        pool = "avg"
    return Arch.model_validate({"timm": card.arch, "args": args, "pool": pool})


def backbone_of(name: str) -> Backbone:
    """The network of an encoder, with its tokens."""
    from wsipipe.pretrain.backbone import build_backbone

    start = start_from(name)
    backbone = build_backbone(start.arch, teacher=True)
    backbone.net.load_state_dict(start.state)
    return backbone
