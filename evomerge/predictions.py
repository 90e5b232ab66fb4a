"""What a study's surrogates say of merges: before they were measured, and in the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.objectives import Goals
from evomerge.optimizers._surrogates import Surrogates
from evomerge.optimizers.base import Optimizer
from evomerge.optimizers.map import Map
from evomerge.optimizers.nested_map import NestedMap
from evomerge.setup import Setup, make_optimizer
from evomerge.types import Fitness, FloatArray, Observation

Event = Mapping[str, Any]


@runtime_checkable
class Modelled(Protocol):
    """An optimiser that fits surrogates of the objectives over the whole space."""

    def model(self) -> Surrogates | None:
        """Those of all results so far; None before the first success."""


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

    Nested MAP has models of two sources each only; MAP's own are fitted to its results.
    """
    optimizer = replayed(setup, events)
    if isinstance(optimizer, NestedMap):
        results = [
            Observation(genome, fitness_of(event)) for genome, event in _results(events)
        ]  # fmt: skip
        whole = Map(optimizer.domain, setup.seed)
        whole.learn(results)
        return whole.model()
    return optimizer.model() if isinstance(optimizer, Modelled) else None


def surrogate_results(setup: Setup, goals: Goals, events: Sequence[Event]) -> dict[str, Any] | None:
    """What `results.json` says of the surrogates; None where the optimiser has none.

    By objective its kind and leave-one-out R2 with all results, and for each candidate that was
    asked for when there were at least as many results as unknowns: what was predicted then,
    with its standard error, and what was measured on the search items.
    """
    forecasts: dict[int, tuple[FloatArray, FloatArray]] = {}

    def predict(optimizer: Optimizer, event: Event) -> None:
        found = optimizer.model() if isinstance(optimizer, Modelled) else None
        if found is None or len(found.genomes) < found.unknowns:
            return
        means, errors = found.expect(np.array([c["genome"] for c in event["candidates"]]))
        for candidate, mean, error in zip(event["candidates"], means, errors, strict=True):
            forecasts[candidate["id"]] = mean, error

    optimizer = replayed(setup, events, predict)
    last = optimizer.model() if isinstance(optimizer, Modelled) else None
    if last is None:
        return None
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
        "candidates": known,
        "objectives": {
            name: {
                "kind": one.kind,
                "r2": _rounded(one.r2),
                "predicted": [_rounded(sign * forecasts[i][0][place]) for i in known],
                "stderr": [_rounded(forecasts[i][1][place]) for i in known],
                "measured": [_rounded(sign * measured[i][place]) for i in known],
            }
            for place, (name, sign, one) in enumerate(
                zip(*told(goals), last.objectives, strict=True)
            )
        },
    }


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
