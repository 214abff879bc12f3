"""Adapt an encoder to labelled tiles: a linear probe, its last blocks, or LoRA (2106.09685).

LoRA's updates are merged into the weights when the encoder is exported: what comes out is a plain
timm checkpoint again.
"""

from __future__ import annotations

import copy
import re

import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.errors import ConfigError, MissingExtraError
from wsipipe.pretrain.backbone import Backbone
from wsipipe.pretrain.methods.base import At, Method
from wsipipe.pretrain.methods.supervised import label_tasks
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["Finetune"]

# timm's names of the linear layers in a block of a ViT, and of ConvNeXt and Swin.
_LORA_TARGETS = r".*\b(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)$"


class Finetune(Method):
    """Cross-entropy on labelled tiles; `loss.mode` says which parameters move."""

    needs = ("label",)

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        self.head = nn.Linear(self.student.out_dim, next(iter(label_tasks(classes).values())))
        if recipe.loss.mode != "lora":
            self._freeze()
        else:
            self._inject()

    def train(self, mode: bool = True) -> Finetune:
        """A probed encoder stays as it is: its batch norm must not follow the new tiles."""
        super().train(mode)
        if self.recipe.loss.mode == "linear":
            self.student.eval()
        return self

    def _freeze(self) -> None:
        net, mode = self.student.net, self.recipe.loss.mode
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        if mode == "blocks":
            if not hasattr(net, "blocks"):
                raise ConfigError("mode: blocks needs a network with blocks (a ViT).")
            for part in [*list(net.blocks)[-self.recipe.loss.blocks :], net.norm]:
                for parameter in part.parameters():
                    parameter.requires_grad_(True)

    def _inject(self) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise MissingExtraError("pretrain", "LoRA", ["peft"]) from None
        o = self.recipe.loss
        config = LoraConfig(
            r=o.rank, lora_alpha=o.alpha, lora_dropout=o.dropout, target_modules=_LORA_TARGETS
        )
        # The wrapper replaces layers inside `net`; kept only to merge later.
        self._wrapped = [get_peft_model(self.student.net, config)]

    def initialise(self, state: dict[str, Tensor]) -> None:
        """See `Method`; under LoRA the layers' names carry `base_layer`."""
        net = self.student.net
        ours = {_plain(k): k for k in net.state_dict() if "lora_" not in k}
        missing = sorted(set(ours) ^ set(state))
        if missing:
            raise ConfigError(f"the initial weights do not fit: {', '.join(missing[:5])}.")
        net.load_state_dict({ours[k]: v for k, v in state.items()}, strict=False)

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        features = self.student(batch.views[0])
        label = batch.labels["label"]
        known = label >= 0
        logits = self.head(features).float()
        loss = F.cross_entropy(logits[known], label[known], reduction="sum")
        right = (logits.argmax(dim=1) == label) & known
        return {
            "loss": loss / known.sum().clamp_min(1),
            "accuracy": right.sum() / known.sum().clamp_min(1),
        }

    def exported(self) -> Backbone:
        """See `Method`: with LoRA merged into a copy of the network."""
        if self.recipe.loss.mode != "lora":
            return self.student
        merged = copy.deepcopy(self._wrapped[0]).merge_and_unload()
        return Backbone(merged, self.student.pool)

    def head_state(self) -> dict[str, Tensor]:
        """See `Method`."""
        return self.head.state_dict()


def _plain(key: str) -> str:
    return re.sub(r"\.base_layer\.", ".", key)
