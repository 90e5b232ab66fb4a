"""The front that surrogates predict, and which of its points to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers._rounds import within
from evomerge.optimizers._surrogates import Surrogates
from evomerge.optimizers.designs import InitialDesign
from evomerge.optimizers.nsga3 import Nsga3
from evomerge.pareto import non_dominated, spread
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray, Observation

_OPTIMISM = 3.0  # standard errors that the last pick of a single objective is given
_POLISHED = 48  # points of the front that are polished
_SIZES = tuple(np.geomspace(0.1, 0.003, 16))  # of the steps of polishing, as shares of the ranges
_TRIES = 16
_APART = 0.02  # least distance between picks of a single objective, as a share of the ranges


@dataclass(frozen=True)
class Found:
    """What a search on surrogates looked at.

    Attributes:
        genomes: an `m x n` array, each once.
        values: predicted, to be maximised, an `m x k` array.
        violations: predicted sums of what the constraints exceed 0 by, an `m` array.
    """

    genomes: FloatArray
    values: FloatArray
    violations: FloatArray

    def front(self) -> FloatArray:
        """Genomes of the predicted front, `p x n`: feasible ones that no other one beats."""
        least = self.violations == self.violations.min()
        return self.genomes[least][non_dominated(self.values[least])]


def search(surrogates: Surrogates, seed: int, population: int, generations: int) -> Found:
    """Runs NSGA-III on the surrogates alone, within the box where they were sampled.

    Begins with the observed genomes, by what is predicted of them. What it found is polished.

    Args:
        surrogates: what is maximised.
        seed: of the search.
        population: its size.
        generations: how many.
    """
    domain = within(surrogates.domain, *surrogates.box)
    inner = Nsga3(domain, seed, population, anchors=False)
    inside = [g for g in surrogates.genomes if np.array_equal(domain.snap(g), g)]
    seen: dict[bytes, Observation] = {}
    if inside:
        known = predicted(surrogates, np.array(inside))
        inner.learn(known)
        seen.update((o.genome.tobytes(), o) for o in known)
    for _ in range(generations):
        told = predicted(surrogates, np.array(inner.ask(population)))
        inner.tell(told)
        seen.update((o.genome.tobytes(), o) for o in told)
    rough = _found(seen)
    told = predicted(surrogates, polished(surrogates, rough, derive(seed, "polish")))
    return _found({**seen, **{o.genome.tobytes(): o for o in told}})


def _found(seen: Mapping[bytes, Observation]) -> Found:
    fitnesses = [o.fitness for o in seen.values() if o.fitness is not None]
    return Found(
        np.array([o.genome for o in seen.values()]),
        np.array([f.values for f in fitnesses]),
        np.array([f.violation for f in fitnesses]),
    )


def polished(surrogates: Surrogates, rough: Found, seed: int) -> FloatArray:
    """Points of a front after a local search of the reals, each for itself, a `p x n` array.

    The genetic search leaves every point somewhat short of the front. Some climb straight ahead,
    by the least gain of any objective (Wierzbicki 1980); besides, the best of each objective
    climbs in that one, so that the front gets its ends.

    Args:
        surrogates: what is maximised.
        rough: what a search found.
        seed: of the steps.
    """
    domain = within(surrogates.domain, *surrogates.box)
    least = rough.violations == rough.violations.min()
    genomes, values = rough.genomes[least], rough.values[least]
    front = non_dominated(values)
    genomes, values = genomes[front], values[front]
    rows, k = spread(values, _POLISHED), values.shape[1]
    width = np.ptp(values, axis=0)
    width = np.where(width > 0, width, 1.0)
    at = np.concatenate([genomes[rows], genomes[values.argmax(axis=0)]])
    start = np.concatenate([values[rows], values[values.argmax(axis=0)]])
    ahead = len(rows)
    moves = np.where(domain.whole, 0.0, domain.high - domain.low)
    rng = np.random.default_rng(seed)

    def merit(tried: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Violations and gains of `p x t x n` genomes, two `p x t` arrays."""
        flat = tried.reshape(-1, len(domain))
        gain = surrogates.means(flat).reshape(*tried.shape[:2], k) - start[:, None]
        gain = gain / width
        climbs = gain.min(axis=2)
        climbs[ahead:] = np.diagonal(gain[ahead:], axis1=0, axis2=2).T
        broken = np.maximum(surrogates.constraints(flat), 0.0).sum(axis=1)
        return broken.reshape(tried.shape[:2]), climbs + 0.01 * gain.mean(axis=2)

    for size in _SIZES:
        steps = size * moves * rng.standard_normal((len(at), _TRIES, len(domain)))
        steps *= rng.random(steps.shape) < rng.choice([0.3, 1.0], (len(at), _TRIES, 1))
        steps[:, 0] = 0.0  # staying is one of the tries
        tried = domain.snap(at[:, None] + steps)
        broken, gain = merit(tried)
        best = np.lexsort((-gain, broken), axis=1)[:, 0]
        at = tried[np.arange(len(at)), best]
    return at


def predicted(surrogates: Surrogates, genomes: FloatArray) -> list[Observation]:
    """What the surrogates would tell of `m x n` genomes."""
    stderr = (0.0,) * len(surrogates.objectives)
    pairs = zip(surrogates.means(genomes), surrogates.constraints(genomes), strict=True)
    return [
        Observation(genome, Fitness(tuple(values.tolist()), stderr, tuple(limits.tolist())))
        for genome, (values, limits) in zip(genomes, pairs, strict=True)
    ]


def picks(found: Found, surrogates: Surrogates, asked: FloatArray, count: int) -> list[FloatArray]:
    """Genomes of the predicted front to be measured, at most `count`, none asked for before.

    One after the other the point whose predicted values are farthest from those of all that was
    asked for; where the front has too few, from the next front. Of a single objective the best
    one, then those that might be as good: mean plus up to three standard errors.

    Args:
        found: by a search.
        surrogates: what predicted it.
        asked: genomes asked for so far, an `m x n` array.
        count: how many.
    """
    known = {g.tobytes() for g in asked}
    new = np.array([g.tobytes() not in known for g in found.genomes], dtype=bool)
    genomes, values, violations = found.genomes[new], found.values[new], found.violations[new]
    if not len(genomes):
        return []
    if values.shape[1] == 1:
        rows = _promising(surrogates, genomes, violations, asked, count)
    else:
        rows = _farthest(values, violations, surrogates.means(asked), count)
    return [genomes[i] for i in rows]


def _farthest(
    values: FloatArray, violations: FloatArray, taken: FloatArray, count: int
) -> list[int]:
    """Rows front by front, of each those farthest from what is taken; see `picks`."""
    rows: list[int] = []
    left = np.arange(len(values))
    while len(rows) < count and len(left):
        least = left[violations[left] == violations[left].min()]
        front = least[non_dominated(values[least])]
        left = np.setdiff1d(left, front)
        low, width = values[front].min(axis=0), np.ptp(values[front], axis=0)
        width = np.where(width > 0, width, 1.0)
        points = (values[front] - low) / width
        others = (np.concatenate([taken, values[rows]]) - low) / width
        gaps = np.full(len(front), np.inf)
        for other in others:
            gaps = np.minimum(gaps, np.linalg.norm(points - other, axis=1))
        for _ in range(min(count - len(rows), len(front))):
            best = int(gaps.argmax())
            rows.append(int(front[best]))
            gaps = np.minimum(gaps, np.linalg.norm(points - points[best], axis=1))
            gaps[best] = -1.0  # not again, even where all are equal
    return rows


def _promising(
    surrogates: Surrogates,
    genomes: FloatArray,
    violations: FloatArray,
    asked: FloatArray,
    count: int,
) -> list[int]:
    """Rows by growing optimism, apart from each other and from what was asked for."""
    means, errors = surrogates.predict(genomes)
    domain = within(surrogates.domain, *surrogates.box)
    width = np.where(domain.high > domain.low, domain.high - domain.low, 1.0)
    order = violations == violations.min()
    near = np.zeros(len(genomes), dtype=bool)
    for other in asked:
        near |= (np.abs(genomes - other) / width).max(axis=1) < _APART
    rows: list[int] = []
    chosen = np.zeros(len(genomes), dtype=bool)
    for kappa in np.linspace(0.0, _OPTIMISM, count):
        allowed = ~chosen & order & ~(near if rows else chosen)
        if not allowed.any():
            allowed = ~chosen & order if (~chosen & order).any() else ~chosen
        if not allowed.any():
            break
        score = np.where(allowed, means[:, 0] + kappa * errors[:, 0], -np.inf)
        best = int(score.argmax())
        rows.append(best)
        chosen[best] = True
        near |= (np.abs(genomes - genomes[best]) / width).max(axis=1) < _APART
    return rows


def filled(
    domain: Domain, genomes: list[FloatArray], asked: FloatArray, count: int, seed: int
) -> list[FloatArray]:
    """`count` genomes: those given, each once, then Sobol points; new as long as some are found.

    Args:
        domain: of the Sobol points.
        genomes: that come first.
        asked: asked for before, an `m x n` array.
        count: how many.
        seed: of the Sobol points.
    """
    known = {g.tobytes() for g in asked}
    points = InitialDesign(domain, derive(seed, "fill"), anchors=False)
    out: list[FloatArray] = []
    for attempt in range(10):
        for genome in points.take(count) if attempt else genomes:
            if len(out) < count and genome.tobytes() not in known:
                known.add(genome.tobytes())
                out.append(genome)
        if len(out) == count:
            return out
    return [*out, *points.take(count - len(out))]
