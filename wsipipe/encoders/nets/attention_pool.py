"""One learned query that attends to all tokens: the image heads of CONCH and CONCH v1.5.

    q = LN(query) W_q,  k, v = LN(tokens) W_k, LN(tokens) W_v
    pooled = LN(softmax(q k^T / sqrt(d)) v W_out)

The two releases store the same arithmetic under different names, and v1 has biases.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.nets.vit import timm_model

__all__ = ["Conch", "ConchV15", "build_conch", "build_conch_v15"]


class _ConchPooler(nn.Module):
    """CONCH's pooler; `attn` keeps the published names (q_proj_weight, ..., in_proj_bias)."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(
            dim, heads, kdim=context_dim, vdim=context_dim, batch_first=True
        )
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(context_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, context_dim) to (B, dim)."""
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        pooled: Tensor = self.attn(query, keys, keys, need_weights=False)[0]
        return pooled[:, 0]


class Conch(nn.Module):
    """The image half of CONCH up to the contrastive head, without its projection.

    The projection serves zero-shot comparison with text; features for slides are taken before it.
    """

    def __init__(self, trunk: Any, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = _ConchPooler(dim, trunk.num_features, heads=8)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 448, 448) to (B, 512)."""
        pooled = self.attn_pool_contrast(self.trunk.forward_features(pixels))
        features: Tensor = self.ln_contrast(pooled)
        return features


class _ConchV15Pooler(nn.Module):
    """CONCH v1.5's pooler: linear maps without bias."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_k = nn.LayerNorm(context_dim)
        self.ln_q = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, context_dim) to (B, dim)."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        keys, values = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, keys, values))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.to_out(pooled)[:, 0]
        return out


class ConchV15(nn.Module):
    """CONCH v1.5: a ViT-L/16 on a 14 x 14 grid of positions, fed 448 px (28 x 28)."""

    def __init__(self, trunk: Any, dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = _ConchV15Pooler(dim, trunk.num_features, heads=8)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 448, 448) to (B, 768)."""
        trunk = self.trunk
        tokens = trunk.patch_embed(pixels)  # (B, h, w, C)
        height, width = tokens.shape[1:3]
        tokens = torch.cat([trunk.cls_token.expand(len(tokens), -1, -1), tokens.flatten(1, 2)], 1)
        tokens = tokens + stretch_positions(trunk.pos_embed, (height, width))
        tokens = trunk.norm(trunk.blocks(trunk.norm_pre(tokens)))
        features: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens))
        return features


def stretch_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Stretch a square grid of positions as DINO does: bicubic, factor (new + 0.1) / old.

    The 0.1 is in DINO's code against rounding down; it shifts the sampling points, so it has to be
    kept to get the makers' numbers.

    Args:
        positions: (1, 1 + n * n, C); the class token's first.
        grid: New (rows, columns).

    Returns:
        (1, 1 + rows * columns, C).
    """
    edge = int((positions.shape[1] - 1) ** 0.5)
    if grid == (edge, edge):
        return positions
    square = positions[:, 1:].float().reshape(1, edge, edge, -1).permute(0, 3, 1, 2)
    factors = ((grid[0] + 0.1) / edge, (grid[1] + 0.1) / edge)
    stretched = F.interpolate(square, scale_factor=factors, mode="bicubic")
    return torch.cat([positions[:, :1], stretched.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def build_conch(card: EncoderCard) -> nn.Module:
    """CONCH, random weights."""
    return Conch(timm_model(str(card.arch), card.arch_kwargs), card.dim)


def build_conch_v15(card: EncoderCard) -> nn.Module:
    """CONCH v1.5, random weights."""
    return ConchV15(timm_model(str(card.arch), card.arch_kwargs), card.dim)
