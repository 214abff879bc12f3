"""`--compile`: torch.compile and channels-last, each kept only where it is the same and faster.

Both are tried on the encoder's own device with a full batch. Compiling takes from half a minute to
several, so it is asked for, never done unasked: it pays for cohorts, not for a slide.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.encoder import Encoder

__all__ = ["compile_encoder", "least_cosine", "noise_tiles"]

# Between features of one tile before and after: the order of sums may differ, and no more.
LEAST_COSINE: Final = 0.9999
_GAIN: Final = 1.03  # less is noise
_TIMED: Final = 5


def compile_encoder(encoder: Encoder, batch: int) -> str:
    """Try both on an encoder, in place.

    Args:
        batch: Tiles in the batches to come.

    Returns:
        What was kept, for the record: "channels-last", "compiled", both, or "nothing".
    """
    kept = []
    for name, change in (("channels-last", _channels_last), ("compiled", _compiled)):
        if _pays(encoder, change, noise_tiles(encoder.card, batch)):
            kept.append(name)
    encoder.compiled = ", ".join(kept) or "nothing"
    return encoder.compiled


def _channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)


def _compiled(network: nn.Module) -> nn.Module:
    # Dynamic: the last batch of a run is smaller, and must not compile a second time.
    compiled: nn.Module = torch.compile(network, dynamic=True)  # type: ignore[assignment]
    return compiled


def _pays(
    encoder: Encoder, change: Callable[[nn.Module], nn.Module], tiles: NDArray[np.uint8]
) -> bool:
    usual = encoder.network
    expected, before = _timed(encoder, tiles)
    try:
        # Compilers warn of what they cannot fuse; whether it pays is measured here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder.network = change(usual)
            found, after = _timed(encoder, tiles)
    # No C compiler, an operation it does not know: the compiler's errors are RuntimeErrors.
    except (RuntimeError, ImportError, OSError):
        found, after = expected, before
    if least_cosine(expected, found) >= LEAST_COSINE and before / after >= _GAIN:
        return True
    encoder.network = usual.to(memory_format=torch.contiguous_format)
    return False


def _timed(encoder: Encoder, tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Features, and the least of the seconds that a batch takes once warm."""
    features = encoder.start(tiles).result()
    seconds = []
    for _ in range(_TIMED):
        begun = time.perf_counter()
        encoder.start(tiles).result()
        seconds.append(time.perf_counter() - begun)
    return features, min(seconds)


def noise_tiles(card: EncoderCard, count: int) -> NDArray[np.uint8]:
    """Tiles of coloured noise in grains of 8 px: networks answer to them as to tissue, variedly."""
    rng = np.random.default_rng(0)
    grains = -(-card.tile_px // 8)
    coarse = rng.integers(60, 256, (count, grains, grains, 3), np.uint8)
    px = card.tile_px
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :px, :px])


def least_cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Least cosine between rows of two (N, D) arrays."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(lengths, 1e-30)).min())
