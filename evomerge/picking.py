"""Which merge of a front suits a preference: among measured ones, and by a surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import ConfigError
from evomerge.markdown import printable
from evomerge.objectives import Objective
from evomerge.optimizers._rounds import within
from evomerge.optimizers._surrogates import Surrogates
from evomerge.optimizers.designs import InitialDesign
from evomerge.types import FloatArray

_STARTS, _CLIMBS = 2048, 24
_PENALTIES = (1e2, 1e5)  # first to come near, then to keep the bounds
_MARGIN = 1e-3  # more than what the penalty lets pass


@dataclass(frozen=True)
class Bound:
    """A value that the choice has to keep, in the objective's own unit."""

    name: str
    at_least: bool
    value: float

    def short(self, values: FloatArray) -> FloatArray:
        """How much is missing to it; 0 or below where it is kept."""
        short = self.value - values if self.at_least else values - self.value
        return np.asarray(short, dtype=np.float64)

    def __str__(self) -> str:
        return f"{printable(self.name)} of at {'least' if self.at_least else 'most'} {self.value:g}"


@dataclass(frozen=True)
class Preference:
    """What somebody wants of a merge.

    Attributes:
        objectives: `k` of them.
        weights: of each, at least 0 and not all 0, a `k` array that sums to 1.
        bounds: may be none.
    """

    objectives: tuple[Objective, ...]
    weights: FloatArray
    bounds: tuple[Bound, ...] = ()

    def score(self, raw: FloatArray, worst: FloatArray, best: FloatArray) -> FloatArray:
        """Weighted sum of `m x k` raw values, each from 0 (worst) to 1 (best); an `m` array.

        An objective whose worst and best value are the same counts for nothing.
        """
        span = np.where(best != worst, best - worst, np.inf)
        return np.asarray(((raw - worst) / span) @ self.weights)

    def shortfall(self, raw: FloatArray) -> FloatArray:
        """The largest amount by which each of `m x k` raw values misses a bound; 0 if none."""
        short = [b.short(raw[:, self.place(b.name)]) for b in self.bounds]
        return np.maximum(np.max(short, axis=0), 0.0) if short else np.zeros(len(raw))

    def unkept(
        self, raw: FloatArray, limits: FloatArray | None = None, names: Sequence[str] = ()
    ) -> str:
        """What nothing of `m x k` raw values keeps, and the best that there is.

        Args:
            raw: the values.
            limits: of the study's constraints, an `m x c` array, satisfied at 0 or below.
            names: of these, `c` of them.
        """
        parts = []
        limits = np.zeros((len(raw), 0)) if limits is None else limits
        names = [f"the study's constraint {printable(name)}" for name in names]
        for bound in self.bounds:
            column = raw[:, self.place(bound.name)]
            if (bound.short(column) > 0).all():
                reach = column.max() if bound.at_least else column.min()
                parts.append(f"{bound}: the best reachable is {reach:.4g}")
        for name, column in zip(names, limits.T, strict=True):
            if (column > 0).all():
                parts.append(f"{name}: all break it, by at least {column.min():.4g}")
        if parts:
            return "; ".join(parts)
        short = self.shortfall(raw) + np.maximum(limits, 0.0).sum(axis=1)
        pairs = zip(self.objectives, raw[int(short.argmin())], strict=True)
        values = ", ".join(f"{printable(o.name)} {v:.4g}" for o, v in pairs)
        every = " and ".join([*(["all bounds"] if self.bounds else []), *names])
        return f"{every} at once: the best reachable is {values}"

    def place(self, name: str) -> int:
        return [o.name for o in self.objectives].index(name)


def read_preference(
    objectives: Sequence[Objective], prefer: str, at_least: str = "", at_most: str = ""
) -> Preference:
    """A preference from the texts of the command line, such as `math=2,polite=1`.

    Raises:
        ConfigError: for an unknown objective, what is no number, and weights that prefer nothing.
    """
    names = [o.name for o in objectives]
    given = _pairs("--prefer", prefer, names)
    negative = [name for name, weight in given if weight < 0]
    if negative or not any(weight > 0 for _, weight in given):
        raise ConfigError.of(
            "--prefer",
            f"a weight below 0 for {printable(negative[0])}" if negative else "no weight above 0",
            "weights of at least 0, and one above it", "For example --prefer math=2,polite=1.",
        )  # fmt: skip
    weights = np.array([dict(given).get(name, 0.0) for name in names])
    bounds = [Bound(n, True, v) for n, v in _pairs("--at-least", at_least, names)]
    bounds += [Bound(n, False, v) for n, v in _pairs("--at-most", at_most, names)]
    return Preference(tuple(objectives), weights / weights.sum(), tuple(bounds))


def _pairs(field: str, text: str, names: Sequence[str]) -> list[tuple[str, float]]:
    pairs: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.rpartition("=")
        if name not in names:
            raise ConfigError.of(
                field, f"the objective {name or part!r}",
                f"one of {', '.join(map(printable, names))}",
                f"Write NAME=NUMBER, such as {printable(names[0])}=1.",
            )  # fmt: skip
        try:
            pairs[name] = float(value)
        except ValueError:
            pairs[name] = np.nan
        if not np.isfinite(pairs[name]):
            raise ConfigError.of(
                field, printable(part), "a number after the objective's name",
                f"For example {printable(name)}=1.",
            )  # fmt: skip
    return list(pairs.items())


def ends(preference: Preference, raw: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Worst and best value of each objective among `m x k` raw values, two `k` arrays."""
    rising = np.array([o.sign > 0 for o in preference.objectives])
    low, high = raw.min(axis=0), raw.max(axis=0)
    return np.where(rising, low, high), np.where(rising, high, low)


def ranked(preference: Preference, raw: FloatArray) -> list[int]:
    """Rows of `m x k` raw values that keep the bounds, the best first."""
    scores = preference.score(raw, *ends(preference, raw))
    kept = np.flatnonzero(preference.shortfall(raw) <= 0)
    return [int(i) for i in kept[np.argsort(-scores[kept], kind="stable")]]


def maximise(
    preference: Preference,
    surrogates: Surrogates,
    worst: FloatArray,
    best: FloatArray,
    seed: int = 0,
    constraints: Sequence[str] = (),
) -> tuple[FloatArray, bool, str]:
    """The genome in the sampled box whose predicted values suit a preference best.

    From Sobol points and the observed genomes, the best ones climbed by L-BFGS-B; bounds as a
    penalty, and what misses one in the end is left out.

    Args:
        preference: its objectives are those of the surrogates.
        surrogates: of the objectives as they are maximised.
        worst: value of each objective that counts as 0, a `k` array.
        best: value that counts as 1, a `k` array.
        seed: of the Sobol points.
        constraints: names of the surrogates' constraints; numbers stand for missing ones.

    Returns:
        the genome, whether it keeps the bounds and constraints, and if not what nothing keeps.
    """
    from scipy.optimize import minimize

    domain, (low, high) = surrogates.domain, surrogates.box
    signs = np.array([o.sign for o in preference.objectives])
    margins = np.where(best != worst, np.abs(best - worst), 1.0)

    def missing(genomes: FloatArray, raw: FloatArray, margin: float) -> FloatArray:
        short = np.zeros(len(raw))
        for bound in preference.bounds:
            place = preference.place(bound.name)
            miss = bound.short(raw[:, place]) / margins[place] + margin
            short += np.square(np.maximum(miss, 0.0))
        limits = surrogates.constraints(genomes)
        return np.asarray(short + np.square(np.maximum(limits + margin, 0.0)).sum(axis=1))

    def value(genomes: FloatArray, penalty: float) -> FloatArray:
        raw = surrogates.means(genomes) * signs
        lacking = missing(genomes, raw, _MARGIN)
        return np.asarray(preference.score(raw, worst, best) - penalty * lacking)

    sobol = InitialDesign(within(domain, low, high), seed, anchors=False).take(_STARTS)
    points = np.clip(np.vstack([*sobol, surrogates.genomes]), low, high)
    free = np.flatnonzero(~domain.whole & (high > low))
    found = [points]
    for start in points[np.argsort(-value(points, _PENALTIES[0]), kind="stable")[:_CLIMBS]]:

        def downhill(
            x: FloatArray, penalty: float, start: FloatArray = start
        ) -> tuple[float, FloatArray]:
            step = 1e-5 * (high - low)[free]
            around = np.tile(start, (2 * len(free) + 1, 1))
            around[:, free] = x
            rows = np.arange(len(free))
            around[1 + rows, free] += step
            around[1 + len(free) + rows, free] -= step
            values = value(around, penalty)
            slope = (values[1 : 1 + len(free)] - values[1 + len(free) :]) / (2 * step)
            return -float(values[0]), -slope

        if len(free):
            box = list(zip(low[free], high[free], strict=True))
            climbed = start.copy()
            for penalty in _PENALTIES:
                done = minimize(
                    downhill, climbed[free], (penalty,), jac=True, method="L-BFGS-B", bounds=box
                )
                climbed[free] = np.clip(done.x, low[free], high[free])
            found.append(climbed[None])
    every = np.vstack(found)
    raw = surrogates.means(every) * signs
    kept = missing(every, raw, 0.0) <= 1e-12
    if not kept.any():
        limits = surrogates.constraints(every)
        names = constraints or [str(k + 1) for k in range(limits.shape[1])]
        nearest = every[int(value(every, _PENALTIES[0]).argmax())]
        return nearest, False, preference.unkept(raw, limits, names)
    scores = np.where(kept, preference.score(raw, worst, best), -np.inf)
    return every[int(scores.argmax())], True, ""
