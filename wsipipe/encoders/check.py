"""Does an encoder keep its card's promises? For the authors of encoders, and for our own tests.

    from wsipipe.testing import check_encoder
    check_encoder("path/to/encoder.py")

Every check states what it found; the error lists all that failed, not only the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsipipe.encoders.encoder import Encoder

__all__ = ["check_encoder"]

Tiles: TypeAlias = NDArray[np.uint8]

# Relative to the length of the feature vector. Batched and single matrix products differ in the
# last bits of float32; a batch statistic or a random layer differs by far more.
_SAME = 1e-3


def check_encoder(encoder: str | Encoder, *, weights: str | None = None) -> list[str]:
    """Check an encoder's shape, type, determinism, batch invariance, normalisation and geometry.

    Args:
        encoder: A name as for `create_encoder`, or an encoder.
        weights: A checkpoint, when a name is given.

    Returns:
        What was checked and found right, one sentence each.

    Raises:
        AssertionError: Names every check that failed and what was found.
    """
    if isinstance(encoder, str):
        from wsipipe.encoders.create import create_encoder

        encoder = create_encoder(encoder, weights=weights, precision="fp32")
    tiles = _tiles(encoder.card.tile_px)
    passed, failed = [], []
    for check in _CHECKS:
        problem = check(encoder, tiles)
        sentence = (check.__doc__ or check.__name__).strip()
        if problem is None:
            passed.append(sentence)
        else:
            failed.append(f"{sentence} {problem}")
    if failed:
        raise AssertionError(
            f"Encoder {encoder.card.name} fails {len(failed)} of {len(_CHECKS)} checks:\n- "
            + "\n- ".join(failed)
        )
    return passed


def _tiles(tile_px: int) -> Tiles:
    """Four tiles that differ, with structure at several scales, from a fixed seed."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(60, 240, (4, 8, 8, 3))
    index = np.arange(tile_px) * 8 // tile_px
    smooth = coarse[:, index][:, :, index]
    noisy = smooth + rng.normal(0, 12, (4, tile_px, tile_px, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _differ(one: Tensor, other: Tensor) -> float:
    """Largest distance of two rows, relative to their length."""
    length = torch.linalg.vector_norm(one, dim=-1).clamp_min(1e-12)
    return float((torch.linalg.vector_norm(one - other, dim=-1) / length).max())


def _shape(encoder: Encoder, tiles: Tiles) -> str | None:
    """(B, H, W, 3) uint8 becomes (B, dim) float32."""
    features = encoder(tiles)
    wanted = (len(tiles), encoder.card.dim)
    if tuple(features.shape) != wanted or features.dtype != torch.float32:
        return f"Got {tuple(features.shape)} {features.dtype}, must be {wanted} float32."
    return None


def _finite(encoder: Encoder, tiles: Tiles) -> str | None:
    """Features are finite, for white, black and ordinary tiles."""
    extremes = np.concatenate([np.zeros_like(tiles[:1]), np.full_like(tiles[:1], 255), tiles[:1]])
    if not bool(torch.isfinite(encoder(extremes)).all()):
        return "Some are NaN or infinite."
    return None


def _inference(encoder: Encoder, tiles: Tiles) -> str | None:
    """The network is in evaluation mode and computes no gradients."""
    training = [name for name, module in encoder.named_modules() if module.training]
    if training:
        return f"In training mode: {', '.join(training[:5])}."
    return "Features carry a gradient." if encoder(tiles[:1]).requires_grad else None


def _deterministic(encoder: Encoder, tiles: Tiles) -> str | None:
    """The same tiles give the same features twice."""
    off = _differ(encoder(tiles), encoder(tiles))
    return f"They differ by {off:.1e} (dropout? a random crop?)." if off > 1e-6 else None


def _batch_invariant(encoder: Encoder, tiles: Tiles) -> str | None:
    """A tile's features do not depend on the other tiles of its batch, nor on its place."""
    together = encoder(tiles)
    alone = torch.cat([encoder(tiles[i : i + 1]) for i in range(len(tiles))])
    turned = encoder(np.ascontiguousarray(tiles[::-1])).flip(0)
    off = max(_differ(together, alone), _differ(together, turned))
    return f"They differ by {off:.1e} (a batch statistic?)." if off > _SAME else None


def _normalised(encoder: Encoder, tiles: Tiles) -> str | None:
    """The network sees (x / 255 - mean) / std as the card says, once."""
    card = encoder.card
    planes = torch.from_numpy(tiles).permute(0, 3, 1, 2).double() / 255
    if card.mean is not None and card.std is not None:
        mean = torch.tensor(card.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(card.std, dtype=torch.float64).view(1, 3, 1, 1)
        planes = (planes - mean) / std
    seen = encoder.transform(torch.from_numpy(tiles).to(encoder.device)).cpu().double()
    if card.crop_px is not None or (card.resize_px or card.tile_px) != card.tile_px:
        # Resized or cropped: compare the levels of flat tiles, which no resampling changes.
        flat = np.full_like(tiles, 128)
        level = torch.full((1, 3, 1, 1), 128 / 255, dtype=torch.float64)
        if card.mean is not None and card.std is not None:
            level = (level - mean) / std
        seen = encoder.transform(torch.from_numpy(flat).to(encoder.device)).cpu().double()
        planes = level.expand_as(seen)
    off = float((seen - planes).abs().max())
    return f"It sees values that differ by {off:.1e}." if off > 1e-4 else None


def _geometry(encoder: Encoder, tiles: Tiles) -> str | None:
    """Every quarter of the tile matters."""
    card = encoder.card
    edge = card.tile_px
    border = (edge - edge * card.input_px // (card.resize_px or edge)) // 2
    half = edge // 2
    before = encoder(tiles[:1])
    blind = []
    for name, rows, columns in (
        ("upper left", slice(border, half), slice(border, half)),
        ("upper right", slice(border, half), slice(half, edge - border)),
        ("lower left", slice(half, edge - border), slice(border, half)),
        ("lower right", slice(half, edge - border), slice(half, edge - border)),
    ):
        changed = tiles[:1].copy()
        changed[:, rows, columns] = 255 - changed[:, rows, columns]
        if _differ(before, encoder(changed)) < 1e-6:
            blind.append(name)
    return f"It does not see: {', '.join(blind)}." if blind else None


def _colour(encoder: Encoder, tiles: Tiles) -> str | None:
    """Red and blue are not the same to it (channels are RGB, none is dropped)."""
    swapped = np.ascontiguousarray(tiles[:1, :, :, ::-1])
    if _differ(encoder(tiles[:1]), encoder(swapped)) < 1e-6:
        return "Features of a tile and of its RGB-BGR swap are equal."
    return None


_CHECKS: tuple[Callable[[Encoder, Tiles], str | None], ...] = (
    _shape,
    _finite,
    _inference,
    _deterministic,
    _batch_invariant,
    _normalised,
    _geometry,
    _colour,
)
