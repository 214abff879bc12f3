"""GenBio-PathFM: a DINOv3-like ViT-g/16 that sees one colour channel at a time.

R, G and B run as three one-channel images; the three class tokens are concatenated. Positions are
rotary (axial, separate axes in -1..1), computed in bf16 as in training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard

__all__ = ["GenBioPathFM", "build_genbio"]

_STORAGE_TOKENS = 4
_ROPE_DTYPE = torch.bfloat16


class _Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))
        return out


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (B, heads, N, d)
        attended = F.scaled_dot_product_attention(_rotate(query, rope), _rotate(key, rope), value)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


def _rotate(heads: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the patch tokens' pairs (i, i + d/2); class and storage tokens have no position."""
    sin, cos = rope
    prefix = heads.shape[-2] - sin.shape[-2]
    patches = heads[:, :, prefix:].to(sin.dtype)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([heads[:, :, :prefix], turned.to(heads.dtype)], dim=-2)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads)
        self.ls1 = _Scale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _SwiGLU(dim, hidden)
        self.ls2 = _Scale(dim)

    def forward(self, tokens: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), rope))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class _Rope(nn.Module):
    """Sines and cosines of the patch grid; `periods` is stored with the weights."""

    periods: Tensor

    def __init__(self, head_dim: int, base: float = 100.0) -> None:
        super().__init__()
        exponents = 2 * torch.arange(head_dim // 4, dtype=_ROPE_DTYPE) / (head_dim // 2)
        self.register_buffer("periods", base**exponents)

    def forward(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Two (rows * columns, head_dim) tables."""
        like: dict[str, Any] = {"dtype": _ROPE_DTYPE, "device": self.periods.device}
        vertical = torch.arange(0.5, rows, **like) / rows
        horizontal = torch.arange(0.5, columns, **like) / columns
        grid = torch.stack(torch.meshgrid(vertical, horizontal, indexing="ij"), dim=-1)
        centred = 2.0 * grid.flatten(0, 1) - 1.0
        periods = self.periods.to(_ROPE_DTYPE)
        angles = 2 * math.pi * centred[:, :, None] / periods
        angles = angles.flatten(1, 2).tile(2)
        return torch.sin(angles), torch.cos(angles)


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch_px, stride=patch_px)

    def forward(self, channel: Tensor) -> Tensor:
        out: Tensor = self.proj(channel)
        return out


class GenBioPathFM(nn.Module):
    """The network; module names are those of the published weights."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, patch_px: int = 16) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, _STORAGE_TOKENS, dim))
        self.patch_embed = _PatchEmbed(dim, patch_px)
        self.rope_embed = _Rope(dim // heads)
        self.blocks = nn.ModuleList(_Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3 * dim)."""
        batch = len(pixels)
        patches = self.patch_embed(pixels.flatten(0, 1).unsqueeze(1))  # (3B, C, h, w)
        rope = self.rope_embed(*patches.shape[-2:])
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1)
        tokens = torch.cat(
            [prefix.expand(3 * batch, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        for block in self.blocks:
            tokens = block(tokens, rope)
        # Only the class token's norm is needed: a norm works on each token for itself.
        features: Tensor = self.norm(tokens[:, 0])
        return features.reshape(batch, -1)


def build_genbio(card: EncoderCard) -> nn.Module:
    """GenBio-PathFM, random weights."""
    return GenBioPathFM(**card.arch_kwargs)
