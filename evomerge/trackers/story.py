"""Turns a journal's events into what trackers are told."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.pareto import Values, joined
from evomerge.trackers.base import Candidate, HeldOut, Study
from evomerge.types import Fitness, Rank

Event = Mapping[str, Any]
Record = Study | Candidate | HeldOut

_SECRET = re.compile(r"(?i)(token|secret|passw|credential|api_?key|private_?key|auth)")
_COUNTS = re.compile(r"(?i)tokens$|tokens?_|tokenizer")  # max_new_tokens, batch_tokens, ...
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "(hidden)"


@dataclass
class _Standing:
    """What a search has come to."""

    best_digest: str = ""
    known: dict[str, tuple[Rank, Mapping[str, float]]] = field(default_factory=dict)
    points: dict[str, list[Values]] = field(default_factory=dict)
    front: list[Values] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: {"failed": 0, "infeasible": 0, "stopped": 0, "answered items": 0}
    )

    def learn(self, digest: str, event: Event, *, again: bool = False) -> None:
        """A merge is worth what an event says.

        Args:
            digest: of the merge.
            event: with its fitness and values.
            again: whether that takes the place of what it was worth before in the front, too.
        """
        fitness = Fitness.of_event(event)
        rank = fitness.rank(event.get("complete", True))
        self.known[digest] = rank, event["values"]
        points = [] if again else self.points.get(digest, [])
        self.points[digest] = [*points, *([fitness.values] if fitness.feasible else [])]
        if again:
            self.front = []
            for point in (p for own in self.points.values() for p in own):
                self.front = joined(self.front, point)
        elif fitness.feasible:
            self.front = joined(self.front, fitness.values)
        if digest == self.best_digest:  # it may have fallen behind; the first of equals is best
            self.best_digest = max(self.known, key=lambda d: self.known[d][0])
        elif not self.best_digest or rank > self.known[self.best_digest][0]:
            self.best_digest = digest


@dataclass
class Story:
    """Reads events in their order and yields what trackers are told of them.

    Attributes:
        run_dir: of the study, where `results.json` is at its end.
        config: the study's.
    """

    run_dir: Path
    config: Mapping[str, Any]
    _study: Study | None = None
    _several: bool = False
    _limits: tuple[str, ...] = ()
    _asked: dict[int, dict[str, Any]] = field(default_factory=dict)
    _stages: dict[int, dict[int, float]] = field(default_factory=dict)
    _standing: dict[str, _Standing] = field(default_factory=dict)
    _step: int = 0

    def read(self, event: Event) -> Iterator[Record]:
        """Takes the next event."""
        kind = event["event"]
        if kind == "study":
            yield self._begin(event)
        elif kind == "ask":
            for one in event["candidates"]:
                self._asked[one["id"]] = {
                    **one, "generation": event["generation"], "time": event["time"],
                }  # fmt: skip
        elif kind == "part":
            self._stages.setdefault(event["id"], {})[event["seen"]] = event["fitness"][0]
        elif kind == "result":
            yield self._result(event)
        elif kind == "recheck" and event["status"] == "ok":
            known = self._standing.setdefault(event["search"], _Standing())
            known.learn(event["digest"], event, again=True)
        elif kind == "end":
            metrics = read_results(self.run_dir)
            if metrics:
                yield HeldOut(self._step, metrics, event["time"])

    def _begin(self, event: Event) -> Study:
        names = [(o["name"], o["goal"]) for o in event["objectives"]]
        scalar = event.get("scalarize") if len(names) > 1 else None
        self._several = len(names) > 1 and not scalar
        self._limits = tuple(c["name"] for c in event.get("constraints", ()))
        text = json.dumps(event, sort_keys=True, ensure_ascii=False)
        self._study = Study(
            id=hashlib.sha256(text.encode()).hexdigest()[:8],
            name=event["experiment"],
            seed=event["seed"],
            config=public(self.config),
            objectives=[(scalar, "maximize")] if scalar else names,
            dimensions=event["space"]["dimensions"],
        )
        return self._study

    def _result(self, event: Event) -> Candidate:
        asked = self._asked.pop(event["id"])
        search = event["search"]
        standing = self._standing.setdefault(search, _Standing())
        counts = standing.counts
        counts["answered items"] += event.get("answered", 0)
        seconds = event["seconds"]
        values: dict[str, float] = {}
        limits: dict[str, float] = {}
        status = "failed"
        if event["status"] == "ok":
            status = "complete" if event.get("complete", True) else "stopped"
            values = dict(event["values"])
            limits = _named(self._limits, event.get("constraints", ()))
            counts["infeasible"] += not Fitness.of_event(event).feasible
            counts["stopped"] += status == "stopped"
            standing.learn(asked["digest"], event)
            if "pooled" in event:
                standing.learn(asked["digest"], event["pooled"], again=True)
        else:
            counts["failed"] += 1
        candidate = Candidate(
            step=self._step,
            id=event["id"],
            search=search,
            generation=asked["generation"],
            digest=asked["digest"],
            params=self._params(asked["genome"]) if search == "search" else {},
            status=status,
            values=self._told(values, event),
            constraints=limits,
            stages=self._stages.pop(event["id"], {}),
            metrics=dict(self._metrics(search, standing, values, event)),
            began=max(asked["time"], event["time"] - seconds["merge"] - seconds["answer"]),
            ended=event["time"],
        )
        self._step += 1
        return candidate

    def _told(self, values: Mapping[str, float], event: Event) -> dict[str, float]:
        """The values by objective; of a scalarised study what the objectives come to together."""
        if not values or self._study is None:
            return {}
        if len(values) > 1 and not self._several:
            return {self._study.objectives[0][0]: event["fitness"][0]}
        return {name: values[name] for name, _ in self._study.objectives}

    def _metrics(
        self, search: str, standing: _Standing, values: Mapping[str, float], event: Event
    ) -> Iterator[tuple[str, float]]:
        for name, value in values.items():
            yield f"{search}/{name}", value
        if standing.best_digest:
            for name, value in standing.known[standing.best_digest][1].items():
                yield f"{search}/best {name}", value
        if values and not self._several:
            yield f"{search}/fitness", event["fitness"][0]
            yield f"{search}/standard error", event["stderr"][0]
        if self._several:
            yield f"{search}/front", len(standing.front)
        for name, count in standing.counts.items():
            yield f"{search}/{name}", count
        yield f"{search}/seconds merging", event["seconds"]["merge"]
        yield f"{search}/seconds answering", event["seconds"]["answer"]

    def _params(self, genome: Sequence[float]) -> dict[str, float | int | str]:
        dimensions = self._study.dimensions if self._study else ()
        if len(dimensions) != len(genome):  # a genome of pieces
            return {}
        out: dict[str, float | int | str] = {}
        for d, number in zip(dimensions, genome, strict=True):
            number = min(max(number, d["low"]), d["high"])
            whole = d.get("kind", "real") != "real"
            choices = d.get("choices")
            out[d["name"]] = (
                choices[round(number)] if choices else round(number) if whole else number
            )
        return out


def read_results(run_dir: Path) -> dict[str, float]:
    """The numbers of `results.json` on held-out items, by name; empty without that file."""
    file = run_dir / "results.json"
    if not file.is_file():
        return {}
    results = json.loads(file.read_text("utf-8"))
    out: dict[str, float] = {}
    for model, found in results["models"].items():
        for task, splits in found["scores"].items():
            if "test" in splits:
                for key in ("value", "low", "high"):
                    suffix = "" if key == "value" else f" {key}"
                    out[f"held-out/{task}/{model}{suffix}"] = splits["test"][key]
        for name, value in found.get("objectives", {}).get("test", {}).items():
            if value is not None:
                out[f"held-out objectives/{name}/{model}"] = value
    for task, test in results.get("paired_tests", {}).items():
        for key in ("difference", "low", "high", "p"):
            out[f"best merge against best source/{task}/{key}"] = test[key]
    return {name: float(value) for name, value in out.items() if value is not None}


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as dotted keys, without secrets, logins and what concerns trackers."""
    flat = _flat({k: v for k, v in config.items() if k != "trackers" and k[:1] != "_"})
    return {
        key: HIDDEN if _is_secret(key) else _LOGIN.sub("", v) if isinstance(v, str) else v
        for key, v in flat.items()
    }


def _is_secret(key: str) -> bool:
    return any(_SECRET.search(p) and not _COUNTS.search(p) for p in key.split("."))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            out |= _flat({str(i): v for i, v in enumerate(value)}, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(names, values, strict=True)) if len(names) == len(values) else {}
