"""What a study's surrogates say of merges: before they were measured, and in the end."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.journal import read_items
from evomerge.objectives import Goals
from evomerge.optimizers._quadratic import unknowns
from evomerge.optimizers._surrogates import Surrogates
from evomerge.optimizers.base import Optimizer
from evomerge.optimizers.map import Map
from evomerge.optimizers.nested_map import NestedMap
from evomerge.setup import Setup, make_optimizer
from evomerge.types import Fitness, FloatArray, Observation

Event = Mapping[str, Any]

_MOST = 20_000
"""Unknowns beyond which no quadratic is fitted to what another optimiser measured: 20,000 of 200
results are 32 MB a copy."""


@runtime_checkable
class Modelled(Protocol):
    """An optimiser that fits surrogates of the objectives over the whole space."""

    def model(self) -> Surrogates | None:
        """Those of all results so far; None before the first success."""

    @property
    def verifies(self) -> bool:
        """Whether the next candidate is to verify what they predict."""


def replayed(
    setup: Setup,
    events: Sequence[Event],
    before: Callable[[Optimizer, Event], None] | None = None,
) -> Optimizer:
    """The study's optimiser with all that its journal holds; no engine is started.

    Args:
        setup: of the study.
        events: of its journal.
        before: called with the optimiser as it was when it was asked, and with that event.
    """
    optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
    if setup.start.observations:
        optimizer.learn(setup.start.observations)
    waiting: deque[FloatArray] = deque()
    untold: list[Observation] = []
    for event in events:
        if event.get("search") != "search":
            continue
        if event["event"] == "ask":
            if before is not None:
                before(optimizer, event)
            genomes = [np.array(c["genome"], dtype=np.float64) for c in event["candidates"]]
            optimizer.replay(genomes)
            waiting.extend(genomes)
        elif event["event"] == "result":
            untold.append(Observation(waiting.popleft(), fitness_of(event)))
            if optimizer.asynchronous or not waiting:
                optimizer.tell(untold)
                untold = []
    if untold:  # of a generation that was interrupted
        optimizer.tell(untold)
    return optimizer


def fitness_of(event: Event) -> Fitness | None:
    """The fitness that a result's event holds; None of a failed candidate."""
    if event["status"] != "ok":
        return None
    limits = tuple(event.get("constraints", ()))
    return Fitness(tuple(event["fitness"]), tuple(event["stderr"]), limits)


def has_model(setup: Setup) -> bool:
    """Whether the study's optimiser fits surrogates."""
    optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
    return isinstance(optimizer, Modelled | NestedMap)


def fitted(setup: Setup, events: Sequence[Event]) -> Surrogates | None:
    """Surrogates of all results of a study; None if there are none or its optimiser has none.

    Of the objectives' raw values as they are maximised, without the log-likelihood that the
    optimiser may be told beside a score; of a scalarised study, of the fitness. Nested MAP has
    models of two sources each only; MAP's own are fitted to its results, unless the space is so
    large that its quadratics have more than 20,000 unknowns.
    """
    goals, domain = setup.goals, setup.domain
    start = setup.start.observations
    if not goals.scalarize:
        domain = replace(domain, ranges=goals.ranges({}))
        likely = {task.name for task in setup.search_tasks if task.loglik_weight}
        if any(o.metric == "score" and o.task in likely for o in goals.objectives):
            start = ()  # of which only the fitness is known
    optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer", domain)
    if isinstance(optimizer, NestedMap):
        if unknowns(domain, domain.low, domain.high) > _MOST:
            return None
        optimizer, start = Map(domain, setup.seed), ()
    if not isinstance(optimizer, Modelled):
        return None
    own = [Observation(genome, _raw_fitness(setup, event)) for genome, event in _results(events)]
    optimizer.learn([*start, *own])
    return optimizer.model()


def _raw_fitness(setup: Setup, event: Event) -> Fitness | None:
    """The fitness of a result with the objectives' raw values in the place of its own."""
    goals, fitness = setup.goals, fitness_of(event)
    if fitness is None or goals.scalarize:
        return fitness
    values = event["values"]
    errors = raw_errors(
        event, [(o.name, o.task or "", o.sign) for o in goals.objectives], setup.run_dir
    )
    return replace(
        fitness,
        values=tuple(o.sign * values[o.name] for o in goals.objectives),
        stderr=tuple(errors),
    )


def raw_errors(
    event: Event, objectives: Sequence[tuple[str, str, float]], run_dir: Path
) -> list[float]:
    """Standard errors of a result's raw values, NaN where unknown.

    Those that the event holds are of what the optimiser was told. Where that is something else,
    a score and a log-likelihood say, the error is that of the mean over the task's items.

    Args:
        event: of a candidate that succeeded.
        objectives: name, task and sign of each value that the optimiser was told.
        run_dir: where the items are.

    Raises:
        JournalError: if the file of the items is damaged.
    """
    told, errors, values = event["fitness"], event.get("stderr") or (), event["values"]
    if not len(told) == len(errors) == len(objectives):
        return [math.nan] * len(objectives)
    found = [float(error) for error in errors]
    other = [
        place
        for place, (name, _, sign) in enumerate(objectives)
        if not math.isclose(sign * told[place], values[name], rel_tol=1e-9, abs_tol=1e-12)
    ]
    file = run_dir / str(event.get("file"))
    there = bool(other) and file.is_file()
    scores = {part.task: part.scores for part in read_items(file)} if there else {}
    for place in other:
        own = np.asarray(scores.get(objectives[place][1], ()), dtype=np.float64)
        known = len(own) > 1
        found[place] = float(own.std(ddof=1) / math.sqrt(len(own))) if known else math.nan
    return found


def surrogate_results(setup: Setup, goals: Goals, events: Sequence[Event]) -> dict[str, Any] | None:
    """What `results.json` says of the surrogates; None where the optimiser has none.

    By objective its kind and leave-one-out R2 with all results, and for each candidate that was
    to verify the surrogates, when there were at least as many results as unknowns: what was
    predicted then, with its standard error, and what was measured on the search items. Of nested
    MAP its tree. All values are those that the optimiser was told but for the sign; their
    `unit` says what that is where a log-likelihood counts beside the score.
    """
    forecasts: dict[int, tuple[FloatArray, FloatArray]] = {}

    def predict(optimizer: Optimizer, event: Event) -> None:
        if not isinstance(optimizer, Modelled) or not optimizer.verifies:
            return
        found = optimizer.model()
        if found is None or len(found.genomes) < found.unknowns:
            return
        means, errors = found.expect(np.array([c["genome"] for c in event["candidates"]]))
        for candidate, mean, error in zip(event["candidates"], means, errors, strict=True):
            forecasts[candidate["id"]] = mean, error

    optimizer = replayed(setup, events, predict)
    if isinstance(optimizer, NestedMap):
        return tree_results(setup, goals, optimizer)
    last = optimizer.model() if isinstance(optimizer, Modelled) else None
    if last is None:
        return None
    names, signs = told(goals)
    measured = {
        event["id"]: event["fitness"]
        for event in events
        if event.get("search") == "search" and event.get("status") == "ok"
    }
    known = [number for number in forecasts if number in measured]
    return {
        "results": len(last.genomes),
        "unknowns": last.unknowns,
        "rank": last.rank,
        "notes": [named(note, names) for note in last.notes],
        "candidates": known,
        "objectives": {
            name: {
                "kind": one.kind,
                **unit_of(setup, goals, name),
                "r2": _rounded(one.r2),
                "predicted": [_rounded(sign * forecasts[i][0][place]) for i in known],
                "stderr": [_rounded(forecasts[i][1][place]) for i in known],
                "measured": [_rounded(sign * measured[i][place]) for i in known],
            }
            for place, (name, sign, one) in enumerate(
                zip(names, signs, last.objectives, strict=True)
            )
        },
    }


def tree_results(setup: Setup, goals: Goals, optimizer: NestedMap) -> dict[str, Any] | None:
    """The tree of nested MAP, children first; None before any node.

    A node has its members, and a merge its children by number, the coefficients of these, and by
    objective what was predicted (by surrogates of all other candidates of the pair), measured on
    the search items, and the leave-one-out R2.
    """
    names, signs = told(goals)

    def by_name(values: Sequence[float | None], signed: bool = True) -> dict[str, float | None]:
        return {
            name: _rounded(value if value is None or not signed else sign * value)
            for name, sign, value in zip(names, signs, values, strict=False)
        }

    nodes = [
        {
            "members": node.name.split("+"),
            "children": list(node.children),
            "coefficients": [_rounded(c) for c in node.coefficients],
            "predicted": by_name(node.predicted),
            "measured": by_name(node.fitness.values if node.fitness is not None else ()),
            "r2": by_name(node.r2, signed=False),
        }
        for node in optimizer.tree
    ]
    units = {name: unit["unit"] for name in names if (unit := unit_of(setup, goals, name))}
    return {"tree": nodes, **({"units": units} if units else {})} if nodes else None


def unit_of(setup: Setup, goals: Goals, name: str) -> dict[str, str]:
    """The unit of the values that the optimiser is told, where it is not the metric's own."""
    for one in goals.objectives if not goals.scalarize else ():
        weight = setup.loglik_weights.get(one.task or "", 0.0)
        if one.name == name and one.metric == "score" and weight:
            return {"unit": f"score + {weight:g} x log-likelihood"}
    return {}


def named(note: str, names: Sequence[str]) -> str:
    """A note of surrogates with the name of the objective in the place of its number."""
    return re.sub(r"^objective (\d+)", lambda found: names[int(found[1])], note)


def told(goals: Goals) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names and signs of the values that the optimiser is told."""
    if goals.scalarize:
        return ("fitness",), (1.0,)
    return tuple(o.name for o in goals.objectives), tuple(o.sign for o in goals.objectives)


def _results(events: Sequence[Event]) -> list[tuple[FloatArray, Event]]:
    """Genomes with their results, in order."""
    own = [e for e in events if e.get("search") == "search"]
    genomes = {c["id"]: c["genome"] for e in own if e["event"] == "ask" for c in e["candidates"]}
    return [
        (np.array(genomes[e["id"]], dtype=np.float64), e) for e in own if e["event"] == "result"
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
