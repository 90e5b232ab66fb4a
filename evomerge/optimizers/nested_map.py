"""Nested MAP: a tree of merges of two, each with its own small surrogate (arXiv 2406.07529)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers import settings
from evomerge.optimizers._models import Record
from evomerge.optimizers._predicted_front import filled
from evomerge.optimizers._surrogates import Surrogates, read_fitting
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray

_GRID = 51
_OPTIMISM = 2.0  # standard errors that the last candidate of a verification is given


@dataclass(frozen=True)
class Node:
    """One merge of the tree.

    Attributes:
        name: of a source, or of the two nodes that it merges.
        children: numbers of the nodes that it merges; none of a leaf.
        coefficients: what these are multiplied with.
        genome: of the merge, an `n` array.
        fitness: as it was measured; None if it failed or is not known yet.
        score: of that fitness; None without one.
        r2: leave-one-out R2 of each objective's surrogate; empty of a leaf.
        predicted: what the surrogates say of it that see all other candidates of its pair, as
            the objectives are maximised; empty of a leaf.
    """

    name: str
    children: tuple[int, ...]
    coefficients: tuple[float, ...]
    genome: FloatArray
    fitness: Fitness | None
    score: float | None
    r2: tuple[float | None, ...] = ()
    predicted: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Candidates that are decided together.

    Attributes:
        pair: numbers of the nodes that are merged; none where the leaves are measured.
        coefficients: what these are multiplied with, a `k x len(pair)` array.
        genomes: of the candidates, `k` arrays.
        start: number of the first ask.
    """

    pair: tuple[int, ...]
    coefficients: FloatArray
    genomes: tuple[FloatArray, ...]
    start: int

    @property
    def end(self) -> int:
        """Number of the ask that follows."""
        return self.start + len(self.genomes)


class NestedMap(Optimizer):
    """Merges two by two: for each pair a quadratic surrogate of two coefficients.

    A leaf is a source alone: its weights are 1 in all layer groups and all others 0; what is no
    weight stays at its start. First the leaves are measured. Then, until one node is left:

    1. the two nodes left whose scores are closest are a pair (a, b);
    2. `pair` candidates c1 a + c2 b are measured, clipped to the bounds: (1, 1), (1/2, 1/2) and
       Sobol points of a square, and at last `verify` ones that the surrogate thinks best;
    3. the best one measured, which may be a or b itself, takes the place of the pair.

    These are N + pair (N - 1) candidates of N sources. A score is the mean of the objectives,
    weighted by preference, each as a share of its range, or of what the leaves span where it has
    none. The least violation of constraints counts before any score.
    """

    multi_objective = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        pair: int = 21,
        verify: int = 3,
        box: Sequence[float] = (0.0, 1.0),
        preference: Sequence[float] | None = None,
        parameter: str = "weight",
        link: str = "auto",
        items: int | None = None,
        gate: float = 0.5,
        refine: bool = False,
    ) -> None:
        """See the class.

        Args:
            domain: what is searched.
            seed: of every random number.
            pair: candidates of each pair.
            verify: how many of them follow from the surrogate.
            box: lower and upper bound of both coefficients.
            preference: weight of each objective; None weighs all alike.
            parameter: first part of the names of the dimensions that are weights.
            link: see `Map`.
            items: see `Map`.
            gate: see `Map`.
            refine: whether the last pair goes on with further candidates of its surrogate,
                instead of ending.

        Raises:
            ConfigError: for a setting that cannot be, or a space without weights.
        """
        super().__init__(domain, seed)
        self._verify = settings.whole("verify", verify, 1)
        self._pair = settings.whole("pair", pair, self._verify + 1)
        self._sources = _sources(domain, parameter)
        weights = np.isin(np.arange(len(domain)), np.concatenate(list(self._sources.values())))
        self._zero = np.where(weights, 0.0, domain.start)
        self._plane = _plane(domain, min(2, len(self._sources)), box)
        self._fitting = read_fitting(self._plane, None, link, items, gate)
        self._weights = _preference(preference, domain.objectives)
        self._refine = settings.flag("refine", refine)
        self._seed = seed
        self._told: dict[int, Record] = {}
        self._nodes: list[Node] = []
        self._left: list[int] = []  # numbers of the nodes that no other one has merged
        self._stages: list[Stage] = []

    def least_candidates(self) -> int:
        """Leaves and pairs up to the root."""
        count = len(self._sources)
        return count + self._pair * max(1, count - 1)

    def least_reason(self) -> tuple[str, str]:
        """Why it needs them, and what to do where they are too many."""
        count = len(self._sources)
        reason = f"a tree over {count} sources has {max(1, count - 1)} pairs of {self._pair} each"
        return reason, "Lower optimizer.pair, or take fewer sources."

    @property
    def batch(self) -> int:
        """What is left of a stage; 0 once the root was asked for, unless it is refined."""
        leaves, total = len(self._sources), self.least_candidates()
        if self._asked < leaves:
            return leaves - self._asked
        if self._asked >= total:
            return self._verify - (self._asked - total) % self._verify if self._refine else 0
        step = (self._asked - leaves) % self._pair
        designed = self._pair - self._verify
        return designed - step if step < designed else self._pair - step

    @property
    def tree(self) -> tuple[Node, ...]:
        """The leaves and merges so far, children first; the last one is the root at the end."""
        if not self._stages:
            return ()
        if not self._nodes:
            return self._measured_leaves()
        merges = len(self._nodes) - len(self._sources)
        end = len(self._sources) + self._pair * (merges + 1)
        if all(n in self._told for n in range(end - self._pair, end)):
            return (*self._nodes, self._merged(self._stages[-1].pair))
        return tuple(self._nodes)

    def _ask(self, numbers: range) -> list[FloatArray]:
        genomes = []
        for number in numbers:
            if not self._stages or number >= self._stages[-1].end:
                self._stages.append(self._next(number))
            genomes.append(self._stages[-1].genomes[number - self._stages[-1].start])
        return genomes

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.update({one.number: (one.genome, one.fitness) for one in told})

    # -- stages -----------------------------------------------------------------------------

    def _next(self, number: int) -> Stage:
        """The stage that begins with an ask, decided by what is known by then."""
        if not self._stages:
            alone = tuple(self._alone(source) for source in self._sources)
            return Stage((), np.zeros((len(alone), 0)), alone, number)
        step, designed = number - len(self._sources), self._pair - self._verify
        pairs, within = divmod(step, self._pair)
        last = self._stages[-1].pair
        if within == designed and number < self.least_candidates():
            return self._best(last, number)
        if number >= self.least_candidates():  # the root is refined
            return self._best(last, number)
        if last:
            self._nodes.append(self._merged(last))
            self._left = [i for i in self._left if i not in last] + [len(self._nodes) - 1]
        else:
            self._nodes = list(self._measured_leaves())
            self._left = list(range(len(self._nodes)))
        points = InitialDesign(self._plane, derive(self._seed, "pair", pairs)).take(designed)
        return self._stage(self._closest(), np.array(points), number)

    def _stage(self, pair: tuple[int, ...], coefficients: FloatArray, number: int) -> Stage:
        genomes = tuple(self._mix(pair, c) for c in coefficients)
        return Stage(pair, coefficients, genomes, number)

    def _alone(self, source: str) -> FloatArray:
        """A source alone, as near as the bounds permit."""
        genome = self._zero.copy()
        genome[self._sources[source]] = 1.0
        return self.domain.snap(genome)

    def _mix(self, pair: tuple[int, ...], coefficients: FloatArray) -> FloatArray:
        """c1 a + c2 b, within bounds."""
        parts = np.array([self._nodes[i].genome - self._zero for i in pair])
        return self.domain.snap(self._zero + coefficients @ parts)

    def _measured_leaves(self) -> tuple[Node, ...]:
        return tuple(
            Node(source, (), (), self._alone(source), fitness, self._score(fitness))
            for i, source in enumerate(self._sources)
            for fitness in [self._told.get(i, (None, None))[1]]
        )

    def _closest(self) -> tuple[int, ...]:
        """The two nodes left whose scores differ least; a failed one has the score -1."""
        scores = [-1.0 if n.score is None else n.score for n in self._nodes]
        pairs = combinations(self._left, 2)
        return min(pairs, key=lambda p: abs(scores[p[0]] - scores[p[1]]), default=(self._left[0],))

    # -- one pair ---------------------------------------------------------------------------

    def _known(self, pair: tuple[int, ...]) -> list[Record]:
        """What is known of a pair, by coefficients: its nodes, then its candidates."""
        ends = zip(np.eye(len(pair)), pair, strict=True)
        known: list[Record] = [(at, self._nodes[i].fitness) for at, i in ends]
        for stage in self._stages:
            if stage.pair == pair:
                numbers = range(stage.start, stage.end)
                told = (self._told.get(n, (None, None))[1] for n in numbers)
                known += zip(stage.coefficients, told, strict=True)
        return known

    def _surrogates(self, pair: tuple[int, ...]) -> Surrogates | None:
        """Of two coefficients."""
        return self._fitting.fit(self._plane, self._known(pair))

    def _merged(self, pair: tuple[int, ...]) -> Node:
        """The best that was measured of a pair."""
        known = self._known(pair)
        surrogates = self._surrogates(pair)
        done = [(c, f) for c, f in known if f is not None]
        row = min(range(len(done)), key=lambda i: self._order(done[i]), default=0)
        at, fitness = done[row] if done else known[0]
        name = "+".join(self._nodes[i].name for i in pair)
        r2 = surrogates.r2 if surrogates is not None else ()
        models = surrogates.objectives if surrogates is not None else ()
        predicted = tuple(float(one.left_out[row]) for one in models)
        genome, score = self._mix(pair, at), self._score(fitness)
        return Node(name, pair, tuple(at.tolist()), genome, fitness, score, r2, predicted)

    def _order(self, record: Record) -> tuple[float, float]:
        """Smaller is better: the least violation, then the largest score."""
        fitness, score = record[1], self._score(record[1])
        if fitness is None or score is None:
            return np.inf, np.inf
        return fitness.violation, -score

    def _best(self, pair: tuple[int, ...], number: int) -> Stage:
        """New candidates that the surrogate thinks best, with growing optimism."""
        seed, count = derive(self._seed, "best", number), self._verify
        known = np.array([c for c, _ in self._known(pair)])
        surrogates = self._surrogates(pair)
        chosen: list[FloatArray] = []
        if surrogates is not None:
            axes = [np.linspace(d.low, d.high, _GRID) for d in self._plane.dimensions]
            grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
            means, errors = surrogates.predict(grid)
            violation = np.maximum(surrogates.constraints(grid), 0.0).sum(axis=1)
            low, width = self._units()
            score = ((means - low) / width) @ self._weights
            error = np.sqrt(((errors / width) ** 2) @ self._weights**2)
            tried = {c.tobytes() for c in known}
            new = np.array([g.tobytes() not in tried for g in grid])
            for kappa in np.linspace(0.0, _OPTIMISM, min(count, int(new.sum()))):
                order = np.lexsort((-(score + kappa * error), violation, ~new))
                chosen.append(grid[order[0]])
                new[order[0]] = False
        points = filled(self._plane, chosen, known, count, seed)
        return self._stage(pair, np.array(points), number)

    # -- scores -----------------------------------------------------------------------------

    def _units(self) -> tuple[FloatArray, FloatArray]:
        """Where each objective is 0, and how far it is to 1; two `k` arrays."""
        count = self.domain.objectives
        low, width = np.zeros(count), np.ones(count)
        fitnesses = [self._told.get(i, (None, None))[1] for i in range(len(self._sources))]
        values = np.array([f.values for f in fitnesses if f is not None]).reshape(-1, count)
        for k in range(count):
            bounds = self.domain.ranges[k] if self.domain.ranges else (-np.inf, np.inf)
            if not np.isfinite(bounds).all():
                bounds = (values[:, k].min(), values[:, k].max()) if len(values) else (0.0, 1.0)
            low[k] = bounds[0]
            width[k] = bounds[1] - bounds[0] if bounds[1] > bounds[0] else 1.0
        return low, width

    def _score(self, fitness: Fitness | None) -> float | None:
        if fitness is None:
            return None
        low, width = self._units()
        return float(((np.array(fitness.values) - low) / width) @ self._weights)


def _sources(domain: Domain, parameter: str) -> dict[str, list[int]]:
    """The dimensions of each source's weights, by the source's name.

    Raises:
        ConfigError: if there are none.
    """
    found: dict[str, list[int]] = {}
    for i, dimension in enumerate(domain.dimensions):
        if dimension.kind == "real" and dimension.parameter == parameter:
            found.setdefault(dimension.name.split("/")[1], []).append(i)
    if not found:
        names = sorted({d.parameter for d in domain.dimensions})
        raise ConfigError.of(
            "optimizer.parameter", f"{parameter!r}, and a space of {', '.join(names)}",
            "the weights of the sources, real numbers", "Choose another parameter or space.",
        )  # fmt: skip
    return found


def _plane(domain: Domain, arms: int, box: Sequence[float]) -> Domain:
    """The coefficients of a pair, with its sum and its mean as anchors.

    Raises:
        ConfigError: for a box that is no interval.
    """
    numbers = isinstance(box, Sequence) and all(
        isinstance(b, int | float) and not isinstance(b, bool) for b in box
    )
    if not numbers or len(box) != 2 or not -np.inf < box[0] < box[1] < np.inf:
        raise ConfigError.of(
            "optimizer.box", repr(box), "a lower and an upper bound such as [0.0, 1.0]",
            "Correct it.",
        )  # fmt: skip
    low, high = map(float, box)
    middle, third = (low + high) / 2, (high - low) / 3
    dimensions = tuple(Dimension(f"c/{i}/all", low, high, middle, third) for i in range(arms))
    anchors = (np.ones(arms), np.full(arms, 0.5))
    return Domain(dimensions, domain.objectives, domain.constraints, anchors, ranges=domain.ranges)


def _preference(preference: Sequence[float] | None, objectives: int) -> FloatArray:
    """Weights of the objectives, which sum to 1.

    Raises:
        ConfigError: for another number of them, and unless all are at least 0 and one above.
    """
    if preference is None:
        return np.full(objectives, 1.0 / objectives)
    numbers = isinstance(preference, Sequence) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < np.inf
        for w in preference
    )
    if not numbers or len(preference) != objectives or not sum(preference) > 0:
        raise ConfigError.of(
            "optimizer.preference", repr(preference),
            f"null, or {objectives} weights of at least 0, one of them above", "Correct it.",
        )  # fmt: skip
    weights = np.array(preference, dtype=np.float64)
    return np.asarray(weights / weights.sum())
