"""Which coefficients the search score depends on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.report.marks import Spec, tooltip
from evomerge.report.numbers import percent
from evomerge.types import FloatArray

LEAST = 24
"""The fewest candidates from which importance is computed."""

BINS = 6
"""Groups of equally many candidates into which a gene's values are cut."""

SHOWN = 20
"""The most coefficients that the chart and the table list."""


@dataclass(frozen=True)
class Importance:
    """What the score has to do with one gene.

    Attributes:
        name: of the dimension.
        share: of the variance of the score that the gene alone explains, in [0, 1].
        rho: Spearman's rank correlation with the score; None for a gene that is a choice.
    """

    name: str
    share: float
    rho: float | None

    @property
    def direction(self) -> str:
        """Where higher values led."""
        if self.rho is None:
            return "a choice"
        if abs(self.rho) < 0.1:
            return "no clear direction"
        return "higher scores" if self.rho > 0 else "lower scores"


def importance(
    names: Sequence[str], genomes: FloatArray, scores: FloatArray, choices: Sequence[bool] = ()
) -> list[Importance]:
    """Importance of each gene, the greatest first; empty if there are too few candidates.

    The share is Kelley's epsilon squared, the correlation ratio without its bias: the variance of
    the score between groups of the gene's values over the whole, so that an optimum in the
    middle of a range counts, too. What two genes do only together is not seen.

    Args:
        names: of `d` genes.
        genomes: an `n x d` array.
        scores: an `n` array.
        choices: whether a gene's values are names without an order.

    Source: Kelley 1935, An unbiased correlation ratio measure, PNAS 21, 554-559.
    """
    from scipy.stats import spearmanr

    if len(scores) < LEAST or np.ptp(scores) == 0:
        return []
    found = []
    for at, name in enumerate(names):
        gene = genomes[:, at]
        if np.ptp(gene) == 0:
            continue
        choice = bool(choices[at]) if at < len(choices) else False
        groups = np.unique(gene, return_inverse=True)[1] if choice else _bins(gene)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rho = None if choice else float(spearmanr(gene, scores).statistic)
        found.append(Importance(name, epsilon_squared(groups, scores), rho))
    return sorted(found, key=lambda one: -one.share)


def epsilon_squared(groups: np.ndarray[tuple[int], np.dtype[np.intp]], values: FloatArray) -> float:
    """Kelley's epsilon squared of `n` values in groups, at least 0.

    1 - (SS within / (n - k)) / (SS total / (n - 1)) with k groups.
    """
    sizes = np.bincount(groups)
    known = sizes > 0
    k, n = int(known.sum()), len(values)
    if k < 2 or n <= k:
        return 0.0
    means = np.bincount(groups, values) / np.where(known, sizes, 1)
    within = float(((values - means[groups]) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    return max(0.0, 1.0 - (within / (n - k)) / (total / (n - 1))) if total > 0 else 0.0


def _bins(gene: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Groups of about equally many values; equal values stay together."""
    distinct = np.unique(gene)
    if len(distinct) <= BINS:
        return np.searchsorted(distinct, gene)
    edges = np.unique(np.quantile(gene, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, gene, side="right")


def importance_chart(found: Sequence[Importance]) -> Spec:
    """Bars of the greatest shares, coloured by direction."""
    rows = [
        {"name": one.name, "rank": rank, "share": one.share, "explained": percent(one.share),
         "direction": one.direction}
        for rank, one in enumerate(found[:SHOWN])
    ]  # fmt: skip
    domain = ["higher scores", "lower scores", "no clear direction", "a choice"]
    present = [d for d in domain if any(row["direction"] == d for row in rows)]
    colours = dict(zip(domain, ("#2f7fd6", "#c9711a", "#7a8794", "#2a9d8f"), strict=True))
    return {
        "width": "container",
        "height": 24 * max(1, len(rows)),
        "data": {"values": rows},
        "mark": {"type": "bar", "height": 14},
        "encoding": {
            "x": {
                "field": "share", "type": "quantitative", "scale": {"zero": True, "nice": True},
                "axis": {"title": "variance explained", "format": "~%", "tickCount": 5},
            },
            "y": {
                "field": "name", "type": "nominal", "sort": {"field": "rank", "op": "min"},
                "axis": {"title": None, "domain": False, "ticks": False, "grid": False},
            },
            "color": {
                "field": "direction", "type": "nominal",
                "scale": {"domain": present, "range": [colours[d] for d in present]},
                "legend": {
                    "title": "higher values led to", "orient": "top",
                    "columns": {"expr": "width < 420 ? 1 : 4"},
                },
            },
            "tooltip": tooltip("name", "explained", "direction"),
        },
    }  # fmt: skip
