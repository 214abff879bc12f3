"""S4MIL: a diagonal state-space layer (Fillioux et al., MICCAI 2023; arXiv:2306.15789)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsipipe.mil.base import Aggregator, MILOutput
from wsipipe.mil.packing import Segments

__all__ = ["S4MIL"]


class DiagonalSSM(nn.Module):
    """S4D (Gu et al., 2022; arXiv:2206.11893), convolved by FFT: n log n in the length."""

    def __init__(self, dim: int, states: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        half = states // 2
        low, high = math.log(0.001), math.log(0.1)
        self.log_dt = nn.Parameter(torch.rand(dim) * (high - low) + low)
        self.c = nn.Parameter(torch.view_as_real(torch.randn(dim, half, dtype=torch.cfloat)))
        self.log_a_real = nn.Parameter(torch.full((dim, half), math.log(0.5)))
        self.a_imag = nn.Parameter(math.pi * torch.arange(half).float().repeat(dim, 1))
        self.skip = nn.Parameter(torch.randn(dim))
        self.drop = nn.Dropout(dropout)
        self.mix = nn.Linear(dim, 2 * dim)

    def kernel(self, length: int) -> Tensor:
        """(dim, length) float32: the impulse response."""
        a = -torch.exp(self.log_a_real) + 1j * self.a_imag
        step = a * torch.exp(self.log_dt)[:, None]
        c = torch.view_as_complex(self.c) * (torch.exp(step) - 1) / a
        time = torch.arange(length, device=a.device)
        parts = []
        # (dim, states, length) complex would be 2 GB for 15,000 tiles: a few channels at a time.
        rows = max(1, 2**24 // max(1, length * step.shape[1]))
        for s, w in zip(torch.split(step, rows), torch.split(c, rows), strict=True):
            parts.append(2 * torch.einsum("hn,hnl->hl", w, torch.exp(s[..., None] * time)).real)
        return torch.cat(parts)

    def forward(self, u: Tensor) -> Tensor:
        """(n, dim) -> (n, dim), one bag in the order of its tiles."""
        n = len(u)
        signal = u.T.float()
        spectrum = torch.fft.rfft(signal, n=2 * n) * torch.fft.rfft(self.kernel(n), n=2 * n)
        y = torch.fft.irfft(spectrum, n=2 * n)[:, :n] + signal * self.skip[:, None]
        y = self.drop(F.gelu(y)).T.to(u.dtype)
        return F.glu(self.mix(y), dim=-1)


class S4MIL(Aggregator):
    """Linear, norm, one S4D layer, maximum over tiles, head. The order of tiles matters."""

    order_matters = True
    duplication_invariant = False

    def __init__(
        self,
        in_dim: int,
        n_classes: int = 2,
        *,
        hidden: int = 512,
        states: int = 32,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.reduce = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(hidden)
        self.ssm = DiagonalSSM(hidden, states)
        self.head = nn.Linear(hidden, n_classes)

    def forward_packed(self, x: Tensor, bags: Segments) -> MILOutput:
        """See `Aggregator.forward_packed`."""
        h = self.norm(self.reduce(x))
        z = torch.stack([self.ssm(part).amax(dim=0) for part in bags.split(h)])
        return MILOutput(self.head(z).float())
