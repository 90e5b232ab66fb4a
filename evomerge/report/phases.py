"""Where a study's time, items and tokens went, and how busy its workers were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from evomerge.report.marks import Spec, axis, glyph, plot, titles, tooltip
from evomerge.report.numbers import percent, whole
from evomerge.report.reading import Json, RunFiles, count, mapping, number

SAMPLE = 200
"""The most answer files of candidates that are read to estimate their tokens."""

BINS = 40
"""Stretches of the search of which the use of the workers is drawn."""

LONG = 900.0
"""Seconds between two events from which on a gap counts as an interruption of the study."""


@dataclass
class Phase:
    """What one part of a study used; seconds by what they were spent on.

    Attributes:
        name: what was done.
        models: candidates or models evaluated.
        items: items that they were scored on.
        answered: those that a model answered, not known from before.
        tokens: generated; None if not known.
        estimated: whether the tokens are an estimate from a sample.
        elapsed: wall-clock.
        merge: putting weights in place, summed over the workers.
        answer: generating and scoring, summed over the workers.
        overhead: handing over and deciding.
    """

    name: str
    models: int = 0
    items: int = 0
    answered: int = 0
    tokens: float | None = None
    estimated: bool = False
    elapsed: float = 0.0
    merge: float = 0.0
    answer: float = 0.0
    overhead: float = 0.0

    @property
    def timed(self) -> bool:
        """Whether the workers' own times are known."""
        return self.merge + self.answer > 0


@dataclass(frozen=True)
class Use:
    """How busy the workers were during the searches.

    Attributes:
        workers: how many there were; None if the run does not say.
        busy: seconds that they merged and answered.
        elapsed: seconds that the searches took.
        each: busy seconds by worker, where the journal names them.
        course: (candidates so far, workers busy on average) stretch by stretch.
    """

    workers: int | None
    busy: float
    elapsed: float
    each: Mapping[str, float] = field(default_factory=dict)
    course: tuple[tuple[int, float], ...] = ()

    @property
    def mean(self) -> float:
        """How many workers were busy on average."""
        return self.busy / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def sentence(self) -> str:
        """The same in words."""
        if not self.busy:
            return "The journal holds no times of the workers."
        if self.workers is None:
            return f"On average {self.mean:.2f} workers were busy while the searches ran."
        share = min(1.0, self.mean / self.workers)
        noun = "worker" if self.workers == 1 else "workers"
        return (
            f"{whole(self.workers)} {noun}, busy {percent(share)} of the time that the searches "
            f"took and idle {percent(1 - share)} of it."
        )


def phases(run: RunFiles) -> list[Phase]:
    """The parts of a study in the order in which they began."""
    found: dict[str, Phase] = {}
    files: dict[str, list[str]] = defaultdict(list)
    before: float | None = None
    asked = False
    for event in run.events:
        kind, moment = event.get("event"), number(event.get("time"))
        asked |= kind == "ask"
        if kind in ("result", "recheck"):
            name = str(event.get("search") or "search")
            name = f"{name}: more items for the best" if kind == "recheck" else name
            phase = found.setdefault(name, Phase(name))
            _add(phase, event, _items(event))
            seconds = mapping(event.get("seconds"))
            for part in ("elapsed", "merge", "answer", "overhead"):
                value = (number(seconds.get(part)) or 0.0) + getattr(phase, part)
                setattr(phase, part, value)
        elif kind == "measure":
            name = _measured(event, asked)
            phase = found.setdefault(name, Phase(name))
            _add(phase, event, _measured_items(event))
            gap = 0.0 if before is None or moment is None else moment - before
            phase.elapsed += gap if 0 <= gap < LONG else 0.0
        if kind in ("result", "recheck", "measure") and event.get("file"):
            files[name].append(str(event["file"]))
        before = moment if moment is not None else before
    for name, phase in found.items():
        phase.tokens, phase.estimated = _tokens(run.folder, files[name])
    return list(found.values())


def _add(phase: Phase, event: Json, items: int) -> None:
    phase.models += 1
    phase.items += items
    answered = count(event.get("answered"))
    phase.answered += items if answered is None else answered


def _items(event: Json) -> int:
    given = event.get("items")
    if isinstance(given, Mapping):  # a recheck lists them
        return sum(len(v) for v in given.values() if isinstance(v, list))
    if (asked := count(given)) is not None:
        return asked
    return sum(count(mapping(v).get("items")) or 0 for v in mapping(event.get("scores")).values())


def _measured_items(event: Json) -> int:
    scores = mapping(event.get("scores"))
    return sum(
        count(mapping(part).get("items")) or 0
        for splits in scores.values()
        for part in mapping(splits).values()
    )


def _measured(event: Json, asked: bool) -> str:
    splits = {s for parts in mapping(event.get("scores")).values() for s in mapping(parts)}
    if "test" in splits:
        return "held-out test"
    if "validation" in splits:
        return "validation of the finalists"
    return "search items of the models" if asked else "sources before the search"


def _tokens(folder: Path | None, files: Sequence[str]) -> tuple[float | None, bool]:
    """Tokens in these files, and whether that is an estimate from an even choice of them."""
    if folder is None or not files:
        return None, False
    step = -(-len(files) // SAMPLE)
    known = [n for name in files[::step] if (n := _file_tokens(folder / name)) is not None]
    if not known:
        return None, False
    return float(np.mean(known)) * len(files), step > 1


def _file_tokens(path: Path) -> int | None:
    """Tokens in an answer file; None if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(path, columns=["tokens"]).column("tokens")
    except (OSError, KeyError, pa.ArrowException):
        return None
    return int(pc.sum(column).as_py() or 0)


def use_of_workers(run: RunFiles, workers: int | None) -> Use:
    """How busy the workers were, from the times in the journal's results."""
    rows: list[tuple[float, float]] = []
    each: dict[str, float] = defaultdict(float)
    for event in run.events:
        if event.get("event") != "result":
            continue
        seconds = mapping(event.get("seconds"))
        busy = sum(number(seconds.get(part)) or 0.0 for part in ("merge", "answer"))
        rows.append((busy, number(seconds.get("elapsed")) or 0.0))
        if (worker := event.get("worker")) is not None:
            each[str(worker)] += busy
    if not rows:
        return Use(workers, 0.0, 0.0)
    busy, elapsed = np.array(rows).T
    edges = np.unique(np.linspace(0, len(rows), min(BINS, max(1, len(rows) // 4)) + 1).astype(int))
    course = [
        (int(stop), float(busy[start:stop].sum() / elapsed[start:stop].sum()))
        for start, stop in pairwise(edges.tolist())
        if elapsed[start:stop].sum() > 0
    ]
    known = len(each) if each and workers is None else workers
    return Use(known, float(busy.sum()), float(elapsed.sum()), dict(each), tuple(course))


def use_chart(use: Use) -> Spec:
    """Workers busy over candidates, with a dashed line at how many there are."""
    x, y = axis("candidates", ",d", 8), axis("busy", ".2~f")
    x["axis"] |= {"grid": False, "tickMinStep": 1}
    y["scale"] = {"zero": True, "nice": True}
    rows = [{"candidates": n, "busy": b, "workers": f"{b:.2f}"} for n, b in use.course]
    line = {"type": "line", "interpolate": "step-before", "strokeWidth": 2, "color": "#2f7fd6"}
    layers: list[Spec] = [
        {"data": {"values": rows}, "mark": line, "encoding": {"x": x, "y": y}},
        {
            "data": {"values": rows}, "mark": glyph("circle", "#2f7fd6", 30),
            "encoding": {"x": x, "y": y, "tooltip": tooltip("candidates", "workers")},
        },
    ]  # fmt: skip
    if use.workers:
        rule = {"type": "rule", "strokeDash": [5, 4], "color": "#7a8794"}
        every = {"data": {"values": [{"busy": use.workers}]}, "mark": rule, "encoding": {"y": y}}
        layers.insert(0, every)
    return plot([*layers, *titles("candidates", "workers busy")], 160)


PARTS = (("answer", "#2f7fd6"), ("merge", "#2a9d8f"), ("other", "#7a8794"))
"""What a phase's time goes into, by the share of each among the workers' seconds."""


def phase_chart(parts: Sequence[Phase]) -> Spec:
    """Wall-clock by phase as bars, split by what the workers did in it."""
    rows = []
    for rank, phase in enumerate(parts):
        inside = phase.merge + phase.answer + phase.overhead
        shares = {"answer": phase.answer, "merge": phase.merge, "other": phase.overhead}
        if not phase.timed:
            shares, inside = {"answer": 1.0}, 1.0
        rows += [
            {"phase": phase.name, "rank": rank, "part": part, "order": at,
             "seconds": phase.elapsed * share / inside,
             "what": {"other": "overhead"}.get(part, part),
             "share of the time": percent(share / inside)}
            for at, (part, share) in enumerate(shares.items())
        ]  # fmt: skip
    return {
        "width": "container",
        "height": 34 * max(1, len(parts)),
        "data": {"values": rows},
        "mark": {"type": "bar", "height": 18},
        "encoding": {
            "x": {
                "field": "seconds", "type": "quantitative", "stack": "zero",
                "axis": {"title": "seconds", "tickCount": 6, "format": ",~f"},
            },
            "y": {
                "field": "phase", "type": "nominal", "sort": {"field": "rank", "op": "min"},
                "axis": {"title": None, "domain": False, "ticks": False, "grid": False},
            },
            "order": {"field": "order", "type": "quantitative"},
            "color": {
                "field": "part", "type": "nominal",
                "scale": {"domain": [p for p, _ in PARTS], "range": [c for _, c in PARTS]},
                "legend": {"title": None, "orient": "top"},
            },
            "tooltip": tooltip("phase", "what", "share of the time"),
        },
    }  # fmt: skip
