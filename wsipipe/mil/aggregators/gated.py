"""Gated attention pooling of many tiles on a CPU: blocks that stay in cache, nothing kept twice.

The same mathematics as the plain modules of `abmil.py`, with its own derivative. What it saves:
float32 copies of whole bags (a block is converted when it is multiplied), activations beyond h and
the gate, and fresh memory for every intermediate (the page faults of 15,000 x 1,024 float32 cost
as much as a tenth of the arithmetic). Matrix products are left to the BLAS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsipipe.mil.packing import Segments

__all__ = ["gated_pool"]

# 1,024 rows x 1,024 float32 = 4 MB: converted, multiplied and forgotten within the last cache.
_BLOCK = 1024


def gated_pool(
    x: Tensor, bags: Segments, reduce: tuple[Tensor, Tensor | None], gate: tuple[Tensor, Tensor],
    score: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = ReLU(W x + b); s = w (tanh(V h) * sigm(U h)) + c; z = sum_n softmax_n(s) h_n.

    Args:
        x: (T, D) of any floating dtype, needs no gradient.
        reduce: W (H, D), b (H,) or None.
        gate: V above U (2A, H), their biases (2A,).
        score: w (K, A), c (K,).

    Returns:
        z (B, K, H) and s (T, K), float32.
    """
    weight, bias = reduce
    if bias is None:
        bias = weight.new_zeros(len(weight))
    z, scores = _GatedPool.apply(x, bags, weight, bias, *gate, *score)
    return z, scores


def _blocks(x: Tensor) -> Any:
    """(first, last + 1, rows as float32); the rows are overwritten by the next block."""
    rows = len(x)
    room = None if x.dtype == torch.float32 else torch.empty(min(_BLOCK, rows), x.shape[1])
    for start in range(0, rows, _BLOCK):
        part = x[start : start + _BLOCK]
        yield start, start + len(part), part if room is None else room[: len(part)].copy_(part)


class _GatedPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bags: Segments, weight: Tensor, bias: Tensor, gate: Tensor,
        gate_bias: Tensor, score: Tensor, score_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows, width = len(x), score.shape[1]
        h, vu = torch.empty(rows, len(weight)), torch.empty(rows, 2 * width)
        scores = torch.empty(rows, len(score))
        product = torch.empty(min(_BLOCK, rows), width)
        for i, j, part in _blocks(x):
            torch.addmm(bias, part, weight.t(), out=h[i:j]).relu_()
            both = torch.addmm(gate_bias, h[i:j], gate.t(), out=vu[i:j])
            both[:, :width].tanh_()
            both[:, width:].sigmoid_()
            a = torch.mul(both[:, :width], both[:, width:], out=product[: j - i])
            torch.addmm(score_bias, a, score.t(), out=scores[i:j])
        attention = bags.softmax(scores)
        z = bags.weighted_sum(attention, h)
        ctx.bags = bags
        ctx.save_for_backward(x, weight, gate, score, h, vu, attention)
        return z, scores

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        dz, ds_outer = grads
        x, weight, gate, score, h, vu, attention = ctx.saved_tensors
        width = score.shape[1]
        # Through the softmax: ds = a (da - sum a da), bag by bag.
        ds = torch.empty_like(attention)
        for (i, j), dzb in zip(ctx.bags.borders, dz, strict=True):
            da, a = h[i:j] @ dzb.t(), attention[i:j]
            ds[i:j] = a * (da - (a * da).sum(dim=0))
        if ds_outer is not None:
            ds += ds_outer
        d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        d_gate, d_gate_bias = torch.zeros_like(gate), gate.new_zeros(len(gate))
        d_score = torch.zeros_like(score)
        rows = min(_BLOCK, len(x))
        room_vu, room_h = torch.empty(rows, 2 * width), torch.empty(rows, h.shape[1])
        borders = ctx.bags.borders
        for i, j, part in _blocks(x):
            v, u, hb, dsb = vu[i:j, :width], vu[i:j, width:], h[i:j], ds[i:j]
            dvu = room_vu[: j - i]
            d_score.addmm_(dsb.t(), v * u)
            dg = dsb @ score
            dv = torch.mul(dg, u, out=dvu[:, :width])
            du = torch.mul(dv, v, out=dvu[:, width:])
            dv -= du * v  # u (1 - v^2)
            du -= du * u  # v u (1 - u)
            d_gate.addmm_(dvu.t(), hb)
            d_gate_bias += dvu.sum(dim=0)
            dh = torch.mm(dvu, gate, out=room_h[: j - i])
            for (first, last), dzb in zip(borders, dz, strict=True):
                lo, hi = max(first, i), min(last, j)
                if lo < hi:
                    dh[lo - i : hi - i].addmm_(attention[lo:hi], dzb)
            torch.ops.aten.threshold_backward.grad_input(dh, hb, 0, grad_input=dh)
            d_weight.addmm_(dh.t(), part)
            d_bias += dh.sum(dim=0)
        return None, None, d_weight, d_bias, d_gate, d_gate_bias, d_score, ds.sum(dim=0)
