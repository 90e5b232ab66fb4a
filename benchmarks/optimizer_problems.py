"""Which problems `benchmarks/optimizers.py` runs, and which optimisers on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evomerge.testing.problems import (
    ConstrainedSphere,
    Dtlz2,
    Ellipsoid,
    MergeLandscape,
    MixedFront,
    MixedRastrigin,
    Problem,
    Sphere,
    Zdt,
)

LANDSCAPE = Path(__file__).parent / "data" / "landscape.json"
SMALL, LARGE = 50, 150
"""Candidates after which the answers are compared."""

SLOW = {"gp": SMALL, "mm_mo": SMALL}
"""Optimisers that are not run any further than this."""

FRONTS = ("sobol", "nsga2", "nsga3", "map_elites", "tpe", "mm_mo", "map", "bayesian_map")
EVOLUTION = ("sobol", "cma_es", "sep_cma_es", "pso", "nsga2", "map_elites")
ONE = (*EVOLUTION, "evo_merging", "tpe", "mm_mo", "map", "bayesian_map")
LEFT_OUT = ("m2n2",)
"""Optimisers that read item scores, which these problems do not have: see m2n2_digits.py."""


@dataclass(frozen=True)
class Case:
    """A problem, which the run's seed moves, and the optimisers that are compared on it.

    Random search is always run and not listed.
    """

    name: str
    make: Callable[[int], Problem]
    optimizers: tuple[str, ...]
    what: str


def cases() -> list[Case]:
    """All problems in the order of the table."""
    merges = MergeLandscape.read(LANDSCAPE)
    merge_sum = MergeLandscape(data=merges.data, weights=(1.0, 1.0, 1.0))
    without_stages = tuple(name for name in ONE if name != "evo_merging")
    return [
        Case("sphere", lambda s: Sphere(seed=s), ONE, "10 reals"),
        Case("ellipsoid", lambda s: Ellipsoid(seed=s), (*ONE, "gp"), "10 reals, condition 1e4"),
        Case(
            "noisy sphere",
            lambda s: Sphere(seed=s, noise=0.2),
            (*ONE, "gp"),
            "10 reals, deviation of the noise 0.2",
        ),
        Case(
            "mixed rastrigin",
            lambda s: MixedRastrigin(seed=s),
            (*without_stages, "gp"),
            "6 reals, 3 integers, a choice",
        ),
        Case(
            "constrained sphere",
            lambda s: ConstrainedSphere(seed=s),
            (*ONE, "gp"),
            "10 reals, best on the border",
        ),
        Case(
            "merges, mean",
            lambda s: merge_sum,
            (*without_stages, "gp", "nested_map"),
            "18 reals, fitted",
        ),
        Case("zdt1", lambda s: Zdt(kind=1), (*FRONTS, "gp"), "12 reals, 2 objectives"),
        Case("zdt3", lambda s: Zdt(kind=3), FRONTS, "12 reals, 2 objectives, front in pieces"),
        Case("dtlz2", lambda s: Dtlz2(), FRONTS, "12 reals, 3 objectives"),
        Case(
            "mixed front",
            lambda s: MixedFront(seed=s),
            (*FRONTS, "gp"),
            "6 reals, 3 integers, a choice, 2 objectives",
        ),
        Case(
            "merges, front",
            lambda s: merges,
            (*FRONTS, "gp", "nested_map"),
            "18 reals, 3 objectives, fitted",
        ),
    ]
