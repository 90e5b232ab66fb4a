"""Choosing which items candidates answer: at random or by strata, and the weights of the chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import ConfigError
from evomerge.types import FloatArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Choice:
    """Chosen items ("anchors") of a task of `N`.

    Attributes:
        indices: places of the `n` chosen items, distinct, those that say most first where there is
            such an order, otherwise ascending.
        weights: of their answers in a weighted mean, at least 0, with sum 1, an `n` array.
        strata: the stratum of each of the `N` items, from 0, an `N` array; None without strata.
    """

    indices: Indices
    weights: FloatArray
    strata: Indices | None = None

    def __len__(self) -> int:
        return len(self.indices)


def check_count(n_items: int, n: int) -> None:
    """Checks that `n` items can be chosen.

    Raises:
        ConfigError: for none, or more than there are.
    """
    if not 0 < n <= n_items:
        raise ConfigError.of(
            "estimator.items", f"{n} of {n_items} items", f"1 to {n_items}",
            "Choose fewer items, or give the task more.",
        )  # fmt: skip


def choose_random(n_items: int, n: int, rng: np.random.Generator) -> Choice:
    """Draws `n` items without replacement, each with the weight 1 / n; ascending."""
    check_count(n_items, n)
    chosen = np.sort(rng.choice(n_items, n, replace=False, shuffle=False)).astype(np.int64)
    return Choice(chosen, np.full(n, 1 / n))


def choose_stratified(strata: ArrayLike, n: int, rng: np.random.Generator) -> Choice:
    """Draws from each stratum its share, with the weight N_h / (N n_h) (proportional allocation).

    Shares are rounded by largest remainders. A stratum too small for one item is joined with the
    one before it, so that the weights of all strata are represented.

    Args:
        strata: stratum of each item, from 0, an `N` array.
        n: number of items.
        rng: of the draw.
    """
    labels = np.asarray(strata, dtype=np.int64)
    check_count(len(labels), n)
    sizes = np.bincount(labels)
    shares = allocate(sizes, n)
    chosen = [
        rng.choice(np.flatnonzero(labels == h), share, replace=False, shuffle=False)
        for h, share in enumerate(shares)
        if share
    ]
    indices = np.sort(np.concatenate(chosen)).astype(np.int64)
    joined = join_strata(labels, shares > 0)
    return Choice(indices, stratum_weights(joined, indices), joined)


def allocate(sizes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Divides `n` among strata in proportion to their sizes, by largest remainders."""
    exact = n * sizes / sizes.sum()
    shares = np.floor(exact).astype(np.int64)
    short = n - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:short]] += 1
    return shares


def join_strata(labels: Indices, kept: NDArray[np.bool_]) -> Indices:
    """Gives the strata that are not kept to the nearest kept one, the lower of two."""
    places = np.flatnonzero(kept)
    nearest = np.abs(np.arange(len(kept))[:, None] - places).argmin(axis=1)
    return places[nearest][labels].astype(np.int64)


def stratum_weights(strata: Indices, indices: Indices) -> FloatArray:
    """N_h / (N n_h) of each chosen item; every stratum must have at least one."""
    sizes = np.bincount(strata)
    chosen = np.bincount(strata[indices], minlength=len(sizes))
    of_each = strata[indices]
    return sizes[of_each] / (len(strata) * chosen[of_each])


def quantile_strata(values: ArrayLike, count: int) -> Indices:
    """Cuts items into `count` strata of equal sizes by a value such as their difficulty."""
    data = np.asarray(values, dtype=np.float64)
    order = np.argsort(data, kind="stable")
    strata = np.empty(len(data), dtype=np.int64)
    strata[order] = np.arange(len(data)) * count // len(data)
    return strata
