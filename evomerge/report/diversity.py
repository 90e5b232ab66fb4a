"""How widely a search looked, over its candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.report.candidates import CandidateRecord
from evomerge.report.marks import Spec, axis, plot, titles
from evomerge.report.reading import mapping, number
from evomerge.types import FloatArray

WINDOWS = 60
"""The most places at which diversity is measured."""

LEAST = 8
"""The fewest candidates in a window."""

Course = list[tuple[int, float]]


def matrix(
    records: Sequence[CandidateRecord], dimensions: Sequence[Any]
) -> tuple[FloatArray, list[int]]:
    """Genomes as an `n x d` array, each gene from 0 to 1 in its range, and the records' places.

    Genomes of another length, or with a gene that is no number, are left out.
    """
    bounds = [
        (number(mapping(d).get("low")) or 0.0, number(mapping(d).get("high")) or 0.0)
        for d in dimensions
    ]
    rows, places = [], []
    for place, record in enumerate(records):
        if not bounds or len(record.genome) != len(bounds):
            continue
        try:
            genes = np.array(record.genome, dtype=np.float64)
        except (TypeError, ValueError):  # a gene that is a word, or none
            continue
        if np.isfinite(genes).all():
            rows.append(genes)
            places.append(place)
    array = np.array(rows, dtype=np.float64).reshape(len(rows), len(bounds))
    low = np.array([b[0] for b in bounds])
    span = np.array([b[1] - b[0] for b in bounds])
    return (array - low) / np.where(span > 0, span, 1.0), places


def diversity(genomes: FloatArray) -> Course:
    """Spread of the genes in windows over the candidates: (candidates so far, spread).

    The spread is the standard deviation of a gene in a window as a share of that of a uniform
    sample of its range, sqrt(1 / 12), averaged over the genes: 1 is as wide as random search.

    Args:
        genomes: an `n x d` array in [0, 1], in the order of the search.
    """
    n = len(genomes)
    if n < LEAST or not genomes.shape[1]:
        return []
    size = max(LEAST, math.ceil(n / WINDOWS))
    found = []
    for start in range(0, n - size + 1, size):
        window = genomes[start : start + size]
        spread = window.std(axis=0, ddof=1).mean() * math.sqrt(12.0)
        found.append((start + size, float(spread)))
    return found


def diversity_chart(courses: Mapping[str, Course]) -> Spec:
    """The spread of each search; the study's own first, controls dashed."""
    x, y = axis("candidates", ",d", 8), axis("spread", "~%")
    x["axis"] |= {"grid": False, "tickMinStep": 1}
    y["scale"] = {"zero": True, "nice": True}
    layers: list[Spec] = []
    for at, course in enumerate(courses.values()):
        look: Spec = {"color": "#2f7fd6"} if at == 0 else {"color": "#a05fc4", "strokeDash": [6, 4]}
        rows = [{"candidates": n, "spread": spread} for n, spread in course]
        layers.append({
            "data": {"values": rows},
            "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 24}, **look},
            "encoding": {"x": x, "y": y},
        })  # fmt: skip
    return plot([*layers, *titles("candidates", "spread of the genes")], 200)
