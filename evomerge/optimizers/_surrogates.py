"""One cheap model of each objective and constraint, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers import settings
from evomerge.optimizers._gaussian import GaussianProcess, features
from evomerge.optimizers._models import Record, chosen_rows
from evomerge.optimizers._quadratic import LINKS, Basis, Link, Quadratic, r2
from evomerge.types import FloatArray

_OPEN = (-np.inf, np.inf)
_SEEN = 200  # results that a Gaussian process is fitted to, whose time grows with their cube


@dataclass(frozen=True)
class Surrogate:
    """A model of one metric, as it is maximised.

    Attributes:
        kind: quadratic, gp (a Gaussian process) or constant.
        model: what predicts; the value itself where the metric never changed.
        r2: leave-one-out R2 of the model in use; None where the metric never changed.
        quadratic_r2: leave-one-out R2 of the quadratic, by which it was chosen or not.
        left_out: what is predicted for each observation without it, an `n` array.
        link: of the quadratic.
        misfit: standard deviation of what is left of the leave-one-out errors of a quadratic
            beyond the noise of the metric: how wrong it is where it has enough results.
    """

    kind: str
    model: Quadratic | GaussianProcess | float
    r2: float | None
    quadratic_r2: float | None
    left_out: FloatArray
    link: str
    misfit: float = 0.0

    def predict(self, domain: Domain, genomes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and standard errors at `m x n` genomes, two `m` arrays."""
        if isinstance(self.model, Quadratic):
            return self.model.predict(genomes)
        if isinstance(self.model, GaussianProcess):
            mean, variance = self.model.predict(features(domain, genomes))
            return mean, np.asarray(np.sqrt(variance))
        return np.full(len(genomes), self.model), np.zeros(len(genomes))

    def mean(self, domain: Domain, genomes: FloatArray) -> FloatArray:
        """Means at `m x n` genomes, an `m` array."""
        if isinstance(self.model, Quadratic):
            return self.model.mean(genomes)
        if isinstance(self.model, GaussianProcess):
            return self.model.mean(features(domain, genomes))
        return np.full(len(genomes), self.model)


@dataclass(frozen=True)
class Surrogates:
    """Models of all objectives and constraints, of one moment.

    Attributes:
        domain: of the genomes.
        box: lower and upper corner of where it was sampled, two `n` arrays.
        objectives: a surrogate each.
        limits: a surrogate for each constraint.
        genomes: what was observed, an `m x n` array.
        unknowns: numbers that a quadratic has.
        rank: how many of them the observations tell apart.
        notes: what a reader should know, sentences.
    """

    domain: Domain
    box: tuple[FloatArray, FloatArray]
    objectives: tuple[Surrogate, ...]
    limits: tuple[Surrogate, ...]
    genomes: FloatArray
    unknowns: int
    rank: int
    notes: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which model each objective has: quadratic, gp or constant."""
        return tuple(s.kind for s in self.objectives)

    @property
    def r2(self) -> tuple[float | None, ...]:
        """Leave-one-out R2 of each objective's model; None where the metric never changed."""
        return tuple(s.r2 for s in self.objectives)

    def predict(self, genomes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and standard errors as the objectives are maximised.

        Args:
            genomes: an `m x n` array.

        Returns:
            two `m x objectives` arrays.
        """
        pairs = [s.predict(self.domain, genomes) for s in self.objectives]
        return np.column_stack([m for m, _ in pairs]), np.column_stack([e for _, e in pairs])

    def expect(self, genomes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What `predict` says, with standard errors that hold the misfit of the models, too."""
        means, errors = self.predict(genomes)
        misfit = np.array([s.misfit for s in self.objectives])
        return means, np.asarray(np.hypot(errors, misfit), dtype=np.float64)

    def means(self, genomes: FloatArray) -> FloatArray:
        """Means alone, an `m x objectives` array."""
        return np.column_stack([s.mean(self.domain, genomes) for s in self.objectives])

    def constraints(self, genomes: FloatArray) -> FloatArray:
        """Predicted constraint values, satisfied at 0 or below, an `m x constraints` array."""
        found = [s.mean(self.domain, genomes) for s in self.limits]
        return np.column_stack(found) if found else np.zeros((len(genomes), 0))


@dataclass(frozen=True)
class Fitting:
    """How surrogates are made.

    Attributes:
        low: lower corner of the box, an `n` array.
        high: upper corner, an `n` array.
        link: of the objectives, one of `LINKS`; constraints have none.
        items: behind each bounded metric; None infers it.
        gate: leave-one-out R2 below which a Gaussian process takes over.
    """

    low: FloatArray
    high: FloatArray
    link: str = "auto"
    items: int | None = None
    gate: float = 0.5

    def fit(self, domain: Domain, records: Sequence[Record]) -> Surrogates | None:
        """Fits to the records that succeeded; None without any."""
        done = [(g, f) for g, f in records if f is not None]
        if not done:
            return None
        genomes = np.array([g for g, _ in done])
        values = np.array([f.values for _, f in done])
        none = (0.0,) * domain.objectives
        stderr = np.array([f.stderr if len(f.stderr) == len(none) else none for _, f in done])
        limits = np.array([f.constraints for _, f in done]).reshape(len(done), -1)
        basis = Basis.of(domain, self.low, self.high)
        seen = chosen_rows(done, _SEEN, 0)
        bounds = domain.ranges or (_OPEN,) * domain.objectives
        objectives = tuple(
            self._one(basis, self.link, bounds[k], genomes, values[:, k], stderr[:, k], seen)
            for k in range(domain.objectives)
        )
        equal = np.zeros(len(done))
        constraints = tuple(
            self._one(basis, "identity", _OPEN, genomes, column, equal, seen) for column in limits.T
        )
        rank = _rank(basis, genomes)
        notes = _notes(objectives, len(done), basis.unknowns, rank, self.gate)
        box = (self.low, self.high)
        return Surrogates(
            domain, box, objectives, constraints, genomes, basis.unknowns, rank, notes
        )

    def _one(
        self,
        basis: Basis,
        kind: str,
        bounds: tuple[float, float],
        genomes: FloatArray,
        values: FloatArray,
        stderr: FloatArray,
        seen: list[int],
    ) -> Surrogate:
        """The surrogate of one metric; a Gaussian process sees some rows only."""
        if float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max())):
            return Surrogate("constant", float(values[0]), None, None, values.copy(), "identity")
        link = Link.of(kind, bounds, values)
        found = Quadratic.fit(basis, link, genomes, values, stderr, self.items)
        own = r2(values, found.left_out)
        if own is not None and own >= self.gate:
            misfit = _misfit(values - found.left_out, stderr)
            return Surrogate("quadratic", found, own, own, found.left_out, link.kind, misfit)
        x = features(basis.domain, genomes)
        process = GaussianProcess(x[seen], values[seen])
        left_out = process.mean(x)
        left_out[seen] = _left_out(process, x[seen], values[seen])
        return Surrogate("gp", process, r2(values, left_out), own, left_out, link.kind)


class Latest:
    """The surrogates of the latest results: further calls with as many results cost nothing."""

    def __init__(self, fitting: Fitting) -> None:
        """Starts without surrogates."""
        self._fitting = fitting
        self._count = -1
        self._found: Surrogates | None = None

    def __call__(self, domain: Domain, records: Sequence[Record]) -> Surrogates | None:
        """The surrogates of results to which others were only ever added."""
        if self._count != len(records):
            self._found = self._fitting.fit(domain, records)
            self._count = len(records)
        return self._found


def _misfit(errors: FloatArray, stderr: FloatArray) -> float:
    """Standard deviation of leave-one-out errors beyond the noise, whose own is `stderr`."""
    return float(np.sqrt(max(0.0, float(np.mean(errors**2) - np.mean(stderr**2)))))


def read_fitting(
    domain: Domain,
    box: Sequence[float] | None,
    link: str,
    items: int | None,
    gate: float,
) -> Fitting:
    """Checks the settings that MAP and Bayesian MAP share.

    Args:
        domain: what is searched.
        box: lower and upper bound of the real dimensions where they are sampled and searched,
            within the domain's bounds; None takes these.
        link: see `Fitting`.
        items: see `Fitting`.
        gate: see `Fitting`.

    Raises:
        ConfigError: naming the key at fault.
    """
    settings.one_of("link", link, LINKS)
    for bounds in domain.ranges or (_OPEN,) * domain.objectives:
        try:
            Link.of(link, bounds, np.zeros(1))
        except ValueError as error:
            raise ConfigError.of(
                "optimizer.link", str(error), "a link that every objective can have", "Use auto."
            ) from None
    least = None if items is None else settings.whole("items", items, 1)
    low, high = read_box(domain, box)
    # A quadratic that explains nothing has an R2 around 0, or below; above 1 is out of reach.
    return Fitting(low, high, link, least, settings.within("gate", gate, -1e9, 1e9))


def read_box(domain: Domain, box: Sequence[float] | None) -> tuple[FloatArray, FloatArray]:
    """Corners of the box, two `n` arrays.

    Raises:
        ConfigError: for a box that is no interval, or has nothing in common with a dimension.
    """
    if box is None:
        return domain.low, domain.high
    expected = "null, or a lower and an upper bound such as [0.0, 1.0]"
    numbers = isinstance(box, Sequence) and all(
        isinstance(b, int | float) and not isinstance(b, bool) for b in box
    )
    if not numbers or len(box) != 2 or not -np.inf < box[0] < box[1] < np.inf:
        raise ConfigError.of("optimizer.box", repr(box), expected, "Correct it.")
    real = ~domain.whole
    low = np.where(real, np.maximum(domain.low, box[0]), domain.low)
    high = np.where(real, np.minimum(domain.high, box[1]), domain.high)
    outside = np.flatnonzero(low > high)
    if len(outside):
        name = domain.dimensions[outside[0]].name
        raise ConfigError.of(
            "optimizer.box", repr(list(box)), f"an interval that {name} has a share in",
            "Set it to null.",
        )  # fmt: skip
    return low, high


def _left_out(process: GaussianProcess, x: FloatArray, values: FloatArray) -> FloatArray:
    """What a process would predict for each of its observations without it, an `n` array.

    Rasmussen and Williams, eq. 5.12, in terms of the posterior: with noise of variance s^2 the
    hat matrix has v / s^2 on its diagonal.
    """
    mean, variance = process.predict(x)
    noise = process.hyper.noise * process.deviation**2 / process.hyper.signal
    remaining = np.maximum(1.0 - variance / noise, 1e-9)
    return np.asarray(values - (values - mean) / remaining)


def _rank(basis: Basis, genomes: FloatArray) -> int:
    """How many terms the observations tell apart."""
    columns = np.hstack([np.ones((len(genomes), 1)), basis.expand(genomes)])
    return int(np.linalg.matrix_rank(columns))


def _notes(
    objectives: Sequence[Surrogate], count: int, unknowns: int, rank: int, gate: float
) -> tuple[str, ...]:
    notes = []
    if count < unknowns:
        notes.append(f"{count} results for {unknowns} unknowns: the quadratics lean on a penalty")
    elif rank < unknowns:
        notes.append(f"the results tell only {rank} of {unknowns} unknowns apart")
    for k, one in enumerate(objectives):
        if one.kind == "constant":
            notes.append(f"objective {k} never changed: no surrogate is needed")
        elif one.kind == "gp":
            found = "none" if one.quadratic_r2 is None else f"{one.quadratic_r2:.2f}"
            notes.append(
                f"objective {k}: leave-one-out R2 of the quadratic is {found}, below {gate:g}; "
                "a Gaussian process stands in"
            )
    return tuple(notes)
