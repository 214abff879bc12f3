"""Folds in which no site is on both sides (Howard et al., Nature Communications 2021), solved by
HiGHS through `scipy.optimize.milp`: no commercial solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError

__all__ = ["SiteFolds", "largest_deviation", "site_preserved_folds"]

# The search ends after so many nodes, fewer where a node is dear (11 s for 66 sites in 5 folds),
# not after a time: the same command must lay the same folds on a slower or busier machine.
_NODES, _WORK = 14_000, 1_050_000_000


@dataclass(frozen=True)
class SiteFolds:
    """A division of patients by site.

    Attributes:
        fold_of: (P,) fold of each patient.
        deviation: Largest relative distance of a class count in a fold from an equal share. One
            large site can make it large: it is reported, never hidden.
        optimal: Did the solver prove that no division is better?
    """

    fold_of: NDArray[np.int64]
    deviation: float
    optimal: bool


def largest_deviation(fold_of: NDArray[np.int64], layer: NDArray[np.int64], folds: int) -> float:
    """Largest relative distance of a class count in a fold from an equal share; 0 = all equal."""
    classes = np.unique(layer[layer >= 0])
    got = np.array([np.bincount(fold_of[layer == c], minlength=folds) for c in classes])
    return float(np.abs(got * folds / got.sum(axis=1, keepdims=True) - 1).max())


def site_preserved_folds(
    sites: Sequence[str],
    layer: NDArray[np.int64],
    folds: int,
    *,
    seed: int = 0,
    time_limit_s: float = 120.0,
) -> SiteFolds:
    """Assign whole sites to folds so that every fold has near its share of every class.

    Minimises the sum over folds and classes of |count - n_class / folds| / (n_class / folds).

    Args:
        sites: (P,) site of each patient.
        layer: (P,) class of each patient, -1 = unknown (not balanced).
        time_limit_s: The last resort: where it ends the search, folds depend on the machine.

    Raises:
        ConfigError: Fewer sites than folds.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    names = sorted(set(sites))
    if len(names) < folds:
        raise ConfigError(f"{len(names)} sites are too few for {folds} site-preserved folds.")
    # The seed only orders the sites: among equally good divisions another one is found.
    order = np.random.default_rng(seed).permutation(len(names))
    place = {names[s]: i for i, s in enumerate(order)}
    site = np.array([place[s] for s in sites])
    classes = np.unique(layer[layer >= 0])
    counts = np.array(
        [np.bincount(site[layer == c], minlength=len(names)) for c in classes], dtype=float
    )
    share = counts.sum(axis=1) / folds
    n_x, n_c = len(names) * folds, len(classes)
    n = n_x + folds * n_c  # x[s, f] binary, d[f, c] deviations
    rows = len(names) + 2 * folds * n_c + folds
    a = lil_matrix((rows, n))
    low, high = np.full(rows, -np.inf), np.full(rows, np.inf)
    for s in range(len(names)):
        a[s, s * folds : (s + 1) * folds] = 1
        low[s] = high[s] = 1
    r = len(names)
    for f in range(folds):
        a[r, f:n_x:folds] = 1  # no fold without a site
        low[r] = 1
        r += 1
        for c in range(n_c):
            d = n_x + f * n_c + c
            a[r, f:n_x:folds] = counts[c]
            a[r, d] = -1
            high[r] = share[c]
            a[r + 1, f:n_x:folds] = counts[c]
            a[r + 1, d] = 1
            low[r + 1] = share[c]
            r += 2
    cost = np.zeros(n)
    cost[n_x:] = np.tile(1 / np.maximum(share, 1e-9), folds)
    result = milp(
        cost,
        constraints=LinearConstraint(a.tocsr(), low, high),
        integrality=np.r_[np.ones(n_x), np.zeros(folds * n_c)],
        bounds=Bounds(0, np.r_[np.ones(n_x), np.full(folds * n_c, np.inf)]),
        options={
            "time_limit": time_limit_s,
            "node_limit": min(_NODES, max(100, _WORK // n**2)),
            "mip_rel_gap": 0.01,
        },
    )
    if result.x is None:
        raise ConfigError(f"No division of {len(names)} sites into {folds} folds was found.")
    chosen = result.x[:n_x].reshape(len(names), folds).argmax(axis=1)
    fold_of = chosen[site].astype(np.int64)
    return SiteFolds(fold_of, largest_deviation(fold_of, layer, folds), result.status == 0)
