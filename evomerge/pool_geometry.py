"""Norms and cosines of task vectors, read side by side in one pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.checkpoints.fit import check_fit
from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.region import is_derived, is_head, whole
from evomerge.errors import SourceError
from evomerge.kernels.weight import Weight
from evomerge.types import FloatArray

_CHUNK = 65536  # elements of each model in memory at a time; float64 rows that fit a cache

Report = Callable[[int, int], None]
"""Told the parameters that are done and those that there are."""


@dataclass(frozen=True)
class PoolGeometry:
    """Where `K` sources lie around their base, over all parameters and in `G` layer groups.

    A cosine with a source that equals the base is 0, between two such sources 1.

    Attributes:
        names: the sources.
        groups: layer groups from the input to the output.
        parameters: how many were read of each model.
        base_norm: Euclidean norm of the base.
        norms: of the task vectors in units of `base_norm`, a `K` array.
        group_norms: the same within each group, in units of the base's norm there (of
            `base_norm` where that is 0), a `G x K` array.
        cosines: of the task vectors, `K x K`.
        group_cosines: within each group, `G x K x K`.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    parameters: int
    base_norm: float
    norms: FloatArray
    group_norms: FloatArray
    cosines: FloatArray
    group_cosines: FloatArray

    def largest(self, source: int) -> tuple[str, float]:
        """The layer group that a source changes most, and the relative norm there."""
        group = int(np.argmax(self.group_norms[:, source]))
        return self.groups[group], float(self.group_norms[group, source])

    def nearest(self, source: int) -> tuple[str, float] | None:
        """The other source with the largest cosine, and that cosine; None without others."""
        others = [i for i in range(len(self.names)) if i != source]
        if not others:
            return None
        near = max(others, key=lambda i: self.cosines[source, i])
        return self.names[near], float(self.cosines[source, near])

    def pairs(self) -> Iterator[tuple[tuple[str, str], float]]:
        """Every pair of sources with its cosine; those with a source equal to the base have 0."""
        for i, j in zip(*np.triu_indices(len(self.names), 1), strict=True):
            if self.norms[i] > 0 and self.norms[j] > 0:
                yield (self.names[i], self.names[j]), float(self.cosines[i, j])


def measure(
    base: Model, sources: Mapping[str, Model], report: Report | None = None
) -> PoolGeometry:
    """Reads base and sources once, side by side.

    Differences are taken in float64 before they are squared, so a source near the base loses
    no digits. Takes time proportional to the parameters times K^2, and memory for `K + 1`
    chunks of 65536 numbers beyond the memory maps.

    Args:
        base: what task vectors start from.
        sources: name to model; tensors may have more rows than the base's (added tokens),
            which do not count. A head that is tied in a source is its embedding.
        report: called after every chunk.

    Raises:
        SourceError: if a source does not fit the base, if a tensor holds NaN or infinity, or
            if all of the base is 0.
        ValueError: without sources.
    """
    if not sources:
        raise ValueError("expected at least one source, found none")
    for source in sources.values():
        check_fit(base, source)
    names = [n for n in FlatOrder.of(base).names if not is_derived(n)]
    total, done = sum(prod(base.shapes[n]) for n in names), 0
    count = len(sources) + 1
    grams: dict[str, FloatArray] = {g: np.zeros((count, count)) for g in base.layout.groups()}
    for name in names:
        gram = grams[base.layout.group_of(name)]
        weights = [base.weight(name), *(_counterpart(s, name) for s in sources.values())]
        size = prod(base.shapes[name])
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            rows = _changes(weights, start, stop)
            if not np.isfinite(rows).all():
                _refuse(name, [base, *sources.values()], rows)
            _add_products(gram, rows)
            done += stop - start
            if report is not None:
                report(done, total)
    filled = {group: np.triu(g) + np.triu(g, 1).T for group, g in grams.items() if g.any()}
    return _geometry(base, tuple(sources), filled, total)


def clusters(cosines: FloatArray, threshold: float) -> tuple[int, ...]:
    """Groups sources by average linkage: clusters join while their mean cosine is above it.

    Args:
        cosines: a `K x K` array.
        threshold: cosine at and below which clusters stay apart.

    Returns:
        The number of each source's cluster, from 0 in the order of first members.
    """
    count = len(cosines)
    if count == 1 or threshold >= 1:
        return tuple(range(count))
    from scipy.cluster.hierarchy import fcluster, linkage

    distances = np.clip(1.0 - cosines[np.triu_indices(count, 1)], 0.0, 2.0)
    # fcluster joins at distances up to its limit: the next number below excludes the threshold
    limit = max(0.0, float(np.nextafter(1.0 - threshold, -1.0)))
    labels = fcluster(linkage(distances, method="average"), limit, criterion="distance")
    order = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return tuple(order[label] for label in labels.tolist())


def distinct(cosines: FloatArray, counted: NDArray[np.bool_]) -> float:
    """Effective number of distinct sources: 1 if all are one direction, K if orthogonal.

    The exponential of the entropy of the eigenvalues of the cosines over K (Friedman and Dieng,
    "The Vendi Score", arXiv 2210.02410, with the cosine as the kernel).

    Args:
        cosines: a `K x K` array.
        counted: which sources count, a `K` array; those equal to the base have no direction.
    """
    kept = np.flatnonzero(counted)
    if not len(kept):
        return 0.0
    values = np.linalg.eigvalsh(cosines[np.ix_(kept, kept)] / len(kept))
    shares = values[values > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _geometry(
    base: Model, names: tuple[str, ...], grams: Mapping[str, FloatArray], total: int
) -> PoolGeometry:
    stacked = np.stack([*grams.values()]) if grams else np.zeros((0, 1, 1))
    gram = stacked.sum(axis=0)
    base_norm = float(np.sqrt(gram[0, 0]))
    if not base_norm > 0:
        raise SourceError.of(
            base.field, f"weights that are all 0 in {base.ref}", "a trained model",
            "Name the model that the sources were fine-tuned from.",
        )  # fmt: skip
    own = np.sqrt(stacked[:, 0, 0])
    units = np.where(own > 0, own, base_norm)
    changes = np.sqrt(np.diagonal(stacked, axis1=1, axis2=2)[:, 1:])
    return PoolGeometry(
        names,
        tuple(grams),
        total,
        base_norm,
        np.sqrt(np.diagonal(gram)[1:]) / base_norm,
        changes / units[:, None],
        _cosines(gram[1:, 1:]),
        np.stack([_cosines(g[1:, 1:]) for g in stacked]),
    )


def _cosines(gram: FloatArray) -> FloatArray:
    """Cosines of a Gram matrix; those of a zero vector are 0, and 1 with another zero vector."""
    norms = np.sqrt(np.diagonal(gram))
    zero = norms == 0
    units = np.where(zero, 1.0, norms)
    found = np.clip(gram / units[:, None] / units[None, :], -1.0, 1.0)
    found[np.ix_(zero, zero)] = 1.0
    np.fill_diagonal(found, 1.0)
    return np.asarray(found, dtype=np.float64)


def _counterpart(source: Model, name: str) -> Weight:
    """The source's tensor; its embedding in place of a head that it ties."""
    if name not in source.shapes and is_head(name):
        return source.weight(whole(source).tokens[0])
    return source.weight(name)


def _changes(weights: Sequence[Weight], start: int, stop: int) -> FloatArray:
    """The base's numbers and what each source adds to them, `(K + 1) x (stop - start)`."""
    rows = np.empty((len(weights), stop - start))
    for row, weight in zip(rows, weights, strict=True):
        torch.from_numpy(row).copy_(weight.read(start, stop))
    with np.errstate(invalid="ignore"):  # infinity is found and named by the caller
        rows[1:] -= rows[0]
    return rows


def _add_products(gram: FloatArray, rows: FloatArray) -> None:
    """Adds the upper triangle of `rows rows^T`.

    Products and a sum along rows give the same bits whatever the BLAS and its threads.
    """
    for i in range(len(rows)):
        gram[i, i:] += (rows[i:] * rows[i]).sum(axis=1)


def _refuse(name: str, models: Sequence[Model], rows: FloatArray) -> None:
    model = next(m for m, row in zip(models, rows, strict=True) if not np.isfinite(row).all())
    raise SourceError.of(
        model.field, f"values of {name} that are NaN or infinite in {model.ref}",
        "finite weights", "Use a model whose training did not diverge.",
    )  # fmt: skip
