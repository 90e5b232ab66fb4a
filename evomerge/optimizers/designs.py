"""Where a search without any result begins."""

from __future__ import annotations

import warnings

import numpy as np

from evomerge.domain import Domain
from evomerge.types import FloatArray


class InitialDesign:
    """Gives the domain's anchors first, then scrambled Sobol points.

    Source of the points: Owen, "Scrambling Sobol' and Niederreiter-Xing points" (1998), in
    scipy's implementation.
    """

    def __init__(self, domain: Domain, seed: int, anchors: bool = True) -> None:
        """Starts the sequence.

        Args:
            domain: what is searched.
            seed: of the scrambling.
            anchors: whether the domain's anchors come first.
        """
        from scipy.stats import qmc

        self._domain = domain
        self._sobol = qmc.Sobol(len(domain), rng=np.random.default_rng(seed))
        unique = {g.tobytes(): g for g in map(domain.snap, domain.anchors)} if anchors else {}
        self._anchors = list(unique.values())

    def take(self, n: int) -> list[FloatArray]:
        """The next `n` genomes."""
        first, self._anchors = self._anchors[:n], self._anchors[n:]
        rest = n - len(first)
        if not rest:
            return first
        with warnings.catch_warnings():  # it asks for powers of two
            warnings.simplefilter("ignore", UserWarning)
            points = self._sobol.random(rest)
        return [*first, *self._domain.from_unit(points)]
