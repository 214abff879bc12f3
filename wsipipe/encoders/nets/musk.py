"""MUSK's image half: BEiT-3 large (sub-LayerNorm), optionally at two scales.

Of BEiT-3's two experts a layer only the vision expert ("A") sees images; only it is built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard

__all__ = ["Musk", "build_musk"]

# Positions 0 and 1 of the table are reserved, a habit inherited from fairseq.
_FIRST_POSITION = 2


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.inner_attn_ln = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(self.inner_attn_ln(attended))
        return out


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.ffn_layernorm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.ffn_layernorm(F.gelu(self.fc1(tokens))))
        return out


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = _Attention(dim, heads)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.ffn = _FeedForward(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens))
        out: Tensor = tokens + self.ffn(self.final_layer_norm(tokens))
        return out


class Musk(nn.Module):
    """The network.

    Args:
        multiscale: Also see the image at twice the size, as four quarters, and append the mean of
            their class tokens (the makers' `ms_aug`): dim doubles.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        image_px: int,
        patch_px: int = 16,
        *,
        multiscale: bool,
    ) -> None:
        super().__init__()
        self.multiscale = multiscale
        patches = (image_px // patch_px) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)
        self.positions = nn.Parameter(torch.zeros(patches + 1 + _FIRST_POSITION, dim))
        self.layers = nn.ModuleList(_Layer(dim, heads, hidden) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 384, 384) to (B, dim), or (B, 2 * dim) with `multiscale`."""
        coarse = self._class_token(pixels)
        if not self.multiscale:
            return coarse
        edge = pixels.shape[-1]
        # The makers enlarge the normalised image, without antialiasing.
        large = F.interpolate(pixels.float(), size=2 * edge, mode="bicubic")
        quarters = torch.cat(
            [half.chunk(2, dim=3)[i] for half in large.chunk(2, dim=2) for i in (0, 1)]
        )
        fine = self._class_token(quarters).reshape(4, len(pixels), -1).mean(0)
        return torch.cat([coarse, fine], dim=-1)

    def _class_token(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = tokens + self.positions[_FIRST_POSITION:]
        for layer in self.layers:
            tokens = layer(tokens)
        out: Tensor = self.layer_norm(tokens[:, 0])
        return out


def build_musk(card: EncoderCard) -> nn.Module:
    """MUSK, random weights."""
    return Musk(**card.arch_kwargs, multiscale=card.pooling == "cls+fine-cls")
