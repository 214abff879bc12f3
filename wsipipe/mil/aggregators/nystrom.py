"""Nyström attention (Xiong et al., AAAI 2021; arXiv:2102.03902), the form TransMIL builds on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NystromAttention", "iterative_pinv"]


def iterative_pinv(a: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of (H, M, M) by the third-order iteration of Razavi et al.

    The start is scaled by the largest row and column sum over all heads of the one bag, so bags
    never influence each other.
    """
    z = a.transpose(-1, -2) / (a.abs().sum(dim=-1).max() * a.abs().sum(dim=-2).max())
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


class NystromAttention(nn.Module):
    """Self-attention through `landmarks` mean tokens: linear in the length of the bag.

    Args:
        varlen: Landmarks are means of even runs of the real tokens. Else (the reference) the bag is
            padded in front with zero tokens to a multiple of `landmarks`, and these take part.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        head_dim: int = 64,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.1,
        varlen: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.varlen = varlen
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.drop = nn.Dropout(dropout)
        self.residual = nn.Conv2d(
            heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False
        )

    def _landmarks(self, tokens: Tensor, count: int) -> Tensor:
        """(H, n, d) -> (H, count, d): means of consecutive runs."""
        n = tokens.shape[1]
        if n % count == 0:
            return tokens.reshape(tokens.shape[0], count, n // count, -1).mean(dim=2)
        return F.adaptive_avg_pool1d(tokens.transpose(1, 2), count).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) -> (n, dim), one bag."""
        n = x.shape[0]
        if self.varlen:
            count = min(self.landmarks, n)
        else:
            count = self.landmarks
            x = F.pad(x, (0, 0, math.ceil(n / count) * count - n, 0))
        q, k, v = (
            t.reshape(len(x), self.heads, -1).transpose(0, 1) for t in self.qkv(x).chunk(3, dim=-1)
        )
        q = q * self.scale
        q_mark, k_mark = self._landmarks(q, count), self._landmarks(k, count)
        first = torch.softmax(q @ k_mark.transpose(1, 2), dim=-1)
        middle = torch.softmax((q_mark @ k_mark.transpose(1, 2)).float(), dim=-1)
        # A softmax over the whole bag without the (M, n) matrix in memory.
        last = F.scaled_dot_product_attention(q_mark[None], k[None], v[None], scale=1.0)[0]
        inverse = iterative_pinv(middle, self.iterations).to(last.dtype)
        out = first @ (inverse @ last) + self.residual(v[None])[0]
        out = out.transpose(0, 1).reshape(len(x), -1)
        return self.drop(self.out(out))[-n:]  # type: ignore[no-any-return]
