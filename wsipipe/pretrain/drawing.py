"""What a batch will hold (slides, magnifications, random numbers for places), before any pixel.

Everything follows from (seed, number of the draw): every process computes the same joined draw and
reads only its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError
from wsipipe.pretrain.options import Sampler
from wsipipe.pretrain.placing import CANDIDATES
from wsipipe.pretrain.pool import UsableSlide
from wsipipe.pretrain.source import permuted_rows

__all__ = ["Anchors", "Draw", "balanced_places", "draw_mpp", "draw_tiles"]


@dataclass(frozen=True)
class Anchors:
    """Places of known kind, for balanced sampling.

    Attributes:
        slide: (A,) int64, index of the slide.
        xy: (A, 2) float64, tile centres in level-0 pixels.
        cluster: (A,) int64.
    """

    slide: NDArray[np.int64]
    xy: NDArray[np.float64]
    cluster: NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """The joined draw of n rows, each of `sampler.share` tiles.

    Attributes:
        slides: (n,) int64.
        mpp: (n,) float64.
        seeds: (n,) int64, for what only shows when pixels are read (a tile that is refused).
        places: (n, CANDIDATES, 5) uniform numbers for each row's first tile.
        more: (n, share − 1, CANDIDATES, 2) uniform numbers for the tiles beside it.
        centres: (n, 2) level-0 pixels to stay near, or None.
    """

    slides: NDArray[np.int64]
    mpp: NDArray[np.float64]
    seeds: NDArray[np.int64]
    places: NDArray[np.float64]
    more: NDArray[np.float64]
    centres: NDArray[np.float64] | None


def draw_tiles(
    number: int,
    n: int,
    units: Sequence[UsableSlide],
    sampler: Sampler,
    anchors: Anchors | None,
    seed: int,
) -> Draw:
    """Draw `number` of `n` rows; a pure function of its arguments.

    Raises:
        ConfigError: `balance: clusters` without anchors.
    """
    rng = np.random.default_rng([seed, number])
    turn = number * sampler.share // sampler.reuse
    pool = np.unique(permuted_rows(turn, min(sampler.pool, len(units)), len(units), seed))
    centres = None
    if sampler.balance == "clusters":
        slides, centres = balanced_places(anchors, pool, n, rng)
    if centres is None:
        weights = [1.0 if sampler.balance == "slides" else units[s].tissue_mm2 for s in pool]
        slides = _draw_slides(pool, np.array(weights), n, sampler.slides_per_batch, rng)
    mpp = np.array([draw_mpp(units[s], rng) for s in slides])
    seeds, places = rng.integers(0, 2**63, n), rng.random((n, CANDIDATES, 5))
    more = rng.random((n, sampler.share - 1, CANDIDATES, 2))
    return Draw(slides, mpp, seeds, places, more, centres)


def _draw_slides(
    pool: NDArray[np.int64],
    weights: NDArray[np.float64],
    n: int,
    distinct: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Slides by weight, with at least `distinct` different ones where there are."""
    weights = weights / weights.sum()
    drawn = rng.choice(pool, n, p=weights)
    distinct = min(distinct, len(pool), n)
    drawn[:distinct] = rng.choice(pool, distinct, replace=False, p=weights)
    return rng.permutation(drawn)


def balanced_places(
    anchors: Anchors | None, pool: NDArray[np.int64], n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Slides and centres of n tiles, every cluster that the pool has with the same share.

    Centres are None where no anchor lies in the pool: the caller then draws by tissue.

    Raises:
        ConfigError: There are no anchors at all.
    """
    if anchors is None:
        raise ConfigError(
            "balance: clusters needs clusters of tiles.", "Give them with --clusters FILE.csv."
        )
    here = np.flatnonzero(np.isin(anchors.slide, pool))
    if not len(here):
        return pool, None
    kinds = np.unique(anchors.cluster[here])
    wanted = rng.choice(kinds, n)
    chosen = np.empty(n, np.int64)
    for kind in kinds:
        rows = np.flatnonzero(wanted == kind)
        chosen[rows] = rng.choice(here[anchors.cluster[here] == kind], len(rows))
    return anchors.slide[chosen], anchors.xy[chosen]


def draw_mpp(unit: UsableSlide, rng: np.random.Generator) -> float:
    """One of the resolutions that this slide can give."""
    if isinstance(unit.options, tuple):
        low, high = np.log(unit.options)
        return float(np.exp(rng.uniform(low, high)))
    values = list(unit.options)
    weights = np.array(list(unit.options.values()))
    return float(rng.choice(values, p=weights / weights.sum()))
