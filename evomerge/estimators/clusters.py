"""Choosing items by k-means: one item near the centre of each cluster, weighted by its mass."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from evomerge.errors import ConfigError
from evomerge.estimators.choice import Choice, Indices, check_count
from evomerge.types import FloatArray

_ITERATIONS = 100
_RESTARTS = 3
_JITTER = 1e-6  # of the features' spread: equal items do not share a centre
_BLOCK = 2**24  # distances at a time


def choose_kmeans(features: ArrayLike, n: int, seed: int) -> Choice:
    """Clusters the items and takes the one nearest to each centre, with its cluster's share.

    Args:
        features: of each item, an `N x F` array: item parameters, the answers of earlier models,
            or embeddings of the text.
        n: number of clusters and items.
        seed: of the starts; the best of three is taken.

    Source: tinyBenchmarks (Polo et al., 2024), section 3.
    """
    data = np.asarray(features, dtype=np.float64)
    if data.ndim != 2 or not np.isfinite(data).all():
        raise ConfigError.of(
            "estimator.features", f"an array of shape {data.shape}", "finite numbers, N x F",
            "Give every item features.",
        )  # fmt: skip
    check_count(len(data), n)
    rng = np.random.default_rng(seed)
    spread = float(data.std()) or 1.0
    jittered = data + _JITTER * spread * rng.standard_normal(data.shape)
    runs = [kmeans(jittered, n, rng) for _ in range(_RESTARTS)]
    centres, labels, _ = min(runs, key=lambda run: run[2])
    distance = ((jittered - centres[labels]) ** 2).sum(axis=1)
    order = np.lexsort((distance, labels))
    first = np.unique(labels[order], return_index=True)[1]
    indices = order[first]
    weights = np.bincount(labels, minlength=n) / len(data)
    ascending = np.argsort(indices)
    return Choice(
        indices[ascending].astype(np.int64),
        weights[ascending],
        np.argsort(ascending)[labels].astype(np.int64),
    )


def kmeans(data: FloatArray, n: int, rng: np.random.Generator) -> tuple[FloatArray, Indices, float]:
    """Lloyd's algorithm from a k-means++ start; no cluster is empty if the points are distinct.

    Returns:
        centres (`n x F`), the cluster of each point (`N`) and the sum of squared distances.

    Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    centres = _spread_out(data, n, rng)
    labels, distance = _nearest(data, centres)
    for _ in range(_ITERATIONS):
        sizes = np.bincount(labels, minlength=n)
        for empty in np.flatnonzero(sizes == 0):  # takes the worst placed point of a cluster of two
            far = int(np.argmax(np.where(sizes[labels] > 1, distance, -1.0)))
            sizes[labels[far]] -= 1
            sizes[empty], labels[far], distance[far] = 1, empty, 0.0
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, data)
        centres = sums / sizes[:, None]
        moved, distance = _nearest(data, centres)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return centres, labels, float(distance.sum())


def _spread_out(data: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Starting centres, each drawn in proportion to the squared distance to those before it."""
    chosen = [int(rng.integers(len(data)))]
    distance = ((data - data[chosen[0]]) ** 2).sum(axis=1)
    for _ in range(n - 1):
        total = float(distance.sum())
        place = int(np.searchsorted(np.cumsum(distance), rng.random() * total, side="right"))
        chosen.append(min(place, len(data) - 1))
        distance = np.minimum(distance, ((data - data[chosen[-1]]) ** 2).sum(axis=1))
    return data[chosen]


def _nearest(data: FloatArray, centres: FloatArray) -> tuple[Indices, FloatArray]:
    """The nearest centre of each point and the squared distance to it."""
    labels = np.empty(len(data), dtype=np.int64)
    distance = np.empty(len(data))
    norms = (centres**2).sum(axis=1)
    rows = max(1, _BLOCK // len(centres))
    for at in range(0, len(data), rows):
        block = data[at : at + rows]
        squared = norms - 2 * block @ centres.T
        best = squared.argmin(axis=1)
        labels[at : at + rows] = best
        distance[at : at + rows] = ((block - centres[best]) ** 2).sum(axis=1)
    return labels, distance


def item_features(discrimination: FloatArray, difficulty: FloatArray) -> FloatArray:
    """[alpha, beta] of each item, an `N x (D + 1)` array ("IRT" anchors)."""
    return np.column_stack([discrimination, difficulty])


def response_features(responses: FloatArray) -> FloatArray:
    """The answers of `M` models as features of the items, `N x M` ("correctness" anchors).

    A missing answer is taken to be the item's mean, and 1/2 where an item has none.
    """
    known = ~np.isnan(responses)
    counts = known.sum(axis=0)
    sums = np.where(known, responses, 0.0).sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), 0.5)
    return np.where(known, responses, means).T
