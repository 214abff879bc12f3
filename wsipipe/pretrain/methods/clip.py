"""CLIP (2103.00020): tiles and their captions meet in one space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsipipe.pretrain.losses import clip_loss
from wsipipe.pretrain.methods.base import At, Method
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["Clip", "TextTower"]

_VOCABULARY = 49408  # of open_clip's byte-pair tokenizer


class TextTower(nn.Module):
    """Causal transformer over tokens; the answer stands at the end-of-text token.

    Args:
        width, layers, heads, context: Of the transformer.
        out: Width of the answer.
    """

    def __init__(self, width: int, layers: int, heads: int, context: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Parameter(torch.empty(context, width).normal_(std=0.01))
        nn.init.normal_(self.embed.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 -> (B, out)."""
        tokens = tokens[:, : len(self.positions)]
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device)
        x = self.norm(self.blocks(x, mask=mask, is_causal=True))
        # The end-of-text token has the highest number.
        answer: Tensor = self.project(x[torch.arange(len(x), device=x.device), tokens.argmax(1)])
        return answer


class Clip(Method):
    """Image encoder and text tower, symmetric cross-entropy with a learned scale."""

    needs = ("text",)

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        o = recipe.loss
        self.project = nn.Linear(self.student.out_dim, o.out, bias=False)
        self.text = TextTower(o.text_width, o.text_layers, o.text_heads, o.context, o.out)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / o.temp)))

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        image = self.project(self.student(batch.views[0])).float()
        text = self.text(batch.labels["text"]).float()
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        return {"loss": clip_loss(image, text, scale), "scale": scale.detach()}
