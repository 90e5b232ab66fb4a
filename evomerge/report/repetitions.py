"""Several runs as groups of repetitions: read, made sure to be comparable, and labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.markdown import printable
from evomerge.report.candidates import CandidateRecord, by_search, candidate_records
from evomerge.report.front import Point, front_budgets, front_points
from evomerge.report.objectives import (
    Constraint,
    Objective,
    read_constraints,
    read_objectives,
    read_values,
)
from evomerge.report.reading import Json, RunFiles, count, mapping, number, read_run
from evomerge.report.rows import task_names

BESIDE = ("budget", "stop", "finalists", "front", "controls", "pool")
"""Parts of a config that a study's results depend on beside what its journal says matters."""

LABEL_SETTINGS = 3
"""The most settings that a label names."""


@dataclass(frozen=True)
class Repetition:
    """One finished run.

    Attributes:
        name: the last two parts of its directory.
        experiment: what was run.
        optimizer: what proposed the candidates.
        seed: its seed, as text.
        objectives: what it optimised.
        constraints: what bound it, with what was found on the held-out items.
        chosen: held-out values of the chosen merge, one an objective, raw.
        points: its front, empty with one objective.
        budgets: numbers of the candidates on the front after so many candidates.
        records: the candidates of its own search, empty without a journal.
        settings: what it depends on, flat, without seed and run_dir: with content fingerprints
            of models and items where the journal has them, else the paths of the config.
        candidates: how many it evaluated.
        seconds: its wall-clock time.
        alone: whether it has several objectives and no front, only a chosen merge.
    """

    name: str
    experiment: str
    optimizer: str
    seed: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    chosen: tuple[float, ...] | None
    points: tuple[Point, ...]
    budgets: Mapping[int, set[int]]
    records: tuple[CandidateRecord, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    candidates: int | None = None
    seconds: float | None = None
    alone: bool = False

    @property
    def kept(self) -> bool | None:
        """Whether the chosen merge keeps every constraint on held-out items; None if unknown."""
        found = [constraint.satisfied for constraint in self.constraints]
        if False in found:
            return False
        return None if None in found or not found else True

    def front_at(self, budget: int | None) -> list[Point]:
        """The points that were on the front after `budget` candidates; None is the last budget."""
        if not self.budgets:
            return list(self.points)
        ids = self.budgets.get(max(self.budgets) if budget is None else budget, set())
        return [p for p in self.points if p.candidate in ids]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds."""

    label: str
    runs: tuple[Repetition, ...]


def read_repetitions(paths: Sequence[Path]) -> tuple[list[Repetition], list[str]]:
    """The runs that can be compared, and a sentence on each that was left out.

    Raises:
        UserError: none of them can be.
    """
    runs, left_out = [], []
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        name = run_name(path)
        try:
            files = read_run(path)
        except UserError as error:
            left_out.append(f"{name} cannot be read: found {error.problems[0].found}.")
            continue
        except (OSError, UnicodeError) as error:
            left_out.append(f"{name} cannot be read: {type(error).__name__}.")
            continue
        if files.results is None:
            left_out.append(f"{name} is not finished: it has no results.json yet.")
            continue
        run = _chosen_alone(_repetition(name, files, files.results))
        if len(run.objectives) > 1 and not run.points:
            left_out.append(f"{name} has no front in its results.json.")
        elif len(run.objectives) == 1 and run.chosen is None:
            left_out.append(f"{name} has no held-out value of its chosen merge.")
        else:
            runs.append(run)
    runs, others = _same_objectives(runs)
    left_out += others
    if not runs:
        raise UserError.of(
            "report", " ".join(left_out) or "no run", "at least one finished run",
            "Give run directories of studies that have ended.",
        )  # fmt: skip
    return runs, left_out


def make_groups(runs: Sequence[Repetition]) -> tuple[list[Group], list[str]]:
    """Groups of runs with the same settings, and a sentence on each second run of a seed.

    A group is named by experiment and optimiser as far as these differ, and by the settings in
    which runs of one experiment and optimiser differ.
    """
    differing = _differing(runs)
    members: dict[tuple[str, ...], list[Repetition]] = {}
    repeated = []
    for run in runs:
        key = (run.experiment, run.optimizer, *(run.settings.get(k, "") for k in differing))
        group = members.setdefault(key, [])
        if any(other.seed == run.seed for other in group):
            repeated.append(f"{run.name} repeats the settings and the seed of another run.")
        else:
            group.append(run)
    labels = _labels([group[0] for group in members.values()], differing)
    groups = [
        Group(label, tuple(sorted(group, key=lambda run: _seed_order(run.seed))))
        for label, group in zip(labels, members.values(), strict=True)
    ]
    return groups, repeated


def run_name(path: Path) -> str:
    """The last two parts of a run's directory: enough to find it, and nobody's home in it."""
    return printable("/".join(path.parts[-2:]).lstrip("/"))


def flat(config: Any, prefix: str = "") -> dict[str, str]:
    """A config as text by dotted key."""
    if isinstance(config, Mapping):
        return {
            key: value
            for name, part in config.items()
            for key, value in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
        }
    return {prefix: "" if config is None else str(config)}


def _repetition(name: str, files: RunFiles, results: Json) -> Repetition:
    objectives = read_objectives(results, files.study) or _plain_objective(results)
    settings = _settings(files.settings, mapping(files.study.get("matter")))
    records = next(iter(by_search(candidate_records(files.events)).values()))
    seed = results.get("seed", files.study.get("seed"))
    cost = mapping(results.get("cost"))
    parts = settings.get("optimizer._target_", "").split(".")
    optimizer = results.get("optimizer") or files.study.get("optimizer")
    return Repetition(
        name=name,
        experiment=str(results.get("experiment") or files.study.get("experiment") or "study"),
        optimizer=str(optimizer or (parts[-2] if len(parts) > 1 else "optimizer")),
        seed="-" if seed is None else str(seed),
        objectives=objectives,
        constraints=read_constraints(results, files.study),
        chosen=_chosen(results, objectives),
        points=tuple(front_points(results, objectives)),
        budgets=front_budgets(results),
        records=tuple(records),
        settings=settings,
        candidates=count(cost.get("candidates")),
        seconds=number(cost.get("seconds")),
    )


def _settings(config: Json, matter: Json) -> dict[str, str]:
    settings = flat(config)
    if matter:
        beside = {k: v for k, v in settings.items() if k.split(".")[0] in BESIDE}
        settings = {**flat(matter), **beside}
    implied = ("seed", "run_dir", "experiment", "dimensions")
    return {k: v for k, v in settings.items() if k not in implied}


def _chosen_alone(run: Repetition) -> Repetition:
    """A run with several objectives and no front as one whose front is its chosen merge."""
    if len(run.objectives) < 2 or run.points or run.chosen is None:
        return run
    point = Point("chosen merge", -1, True, run.chosen, None)
    return replace(run, points=(point,), budgets={run.candidates or 0: {-1}}, alone=True)


def _plain_objective(results: Json) -> tuple[Objective, ...]:
    """The objective of a run that lists none: the plain score on its task."""
    name = str(results.get("objective") or next(iter(task_names(results)), "score"))
    return (Objective(name=name, task=name),)


def _chosen(results: Json, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    best = mapping(mapping(results.get("models")).get(str(results.get("best"))))
    values = read_values(objectives, mapping(mapping(best.get("objectives")).get("test")))
    if values is None:
        values = next((p.test for p in front_points(results, objectives) if p.chosen), None)
    first = objectives[0]
    if values is None and len(objectives) == 1 and first.metric == "score":
        splits = mapping(mapping(best.get("scores")).get(first.task or first.name))
        score = number(mapping(splits.get("test")).get("value"))
        return None if score is None else (score,)
    return values


def _same_objectives(runs: Sequence[Repetition]) -> tuple[list[Repetition], list[str]]:
    """The runs with the most frequent objectives (of equally many, those that stand first)."""
    counts = Counter(map(_signature, runs))
    if not counts:
        return [], []
    common = counts.most_common(1)[0][0]
    kept = [run for run in runs if _signature(run) == common]
    names = ", ".join(o.name for o in kept[0].objectives)
    return kept, [
        f"{run.name} has other objectives ({', '.join(o.name for o in run.objectives)}) than "
        f"the runs that are compared ({names})."
        for run in runs
        if _signature(run) != common
    ]


def _signature(run: Repetition) -> tuple[tuple[str, str, str, bool], ...]:
    several = len(run.objectives) > 1
    return tuple((o.name if several else "", o.task, o.metric, o.minimised) for o in run.objectives)


def _differing(runs: Sequence[Repetition]) -> list[str]:
    """The settings in which runs differ, in the order of the configs."""
    known = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return [key for key in keys if len({settings.get(key, "") for settings in known}) > 1]


def _labels(firsts: Sequence[Repetition], differing: Sequence[str]) -> list[str]:
    """A name for each group, given one run of each; no two are the same."""
    experiments = len({run.experiment for run in firsts}) > 1
    optimizers = len({run.optimizer for run in firsts}) > 1
    labels: list[str] = []
    for run in firsts:
        alike = [
            r for r in firsts if (r.experiment, r.optimizer) == (run.experiment, run.optimizer)
        ]
        own = [key for key in differing if len({r.settings.get(key, "") for r in alike}) > 1]
        parts = [run.experiment] if experiments else []
        parts += [run.optimizer] if optimizers or not (experiments or own) else []
        short = [key.rsplit(".", 1)[-1] for key in own]
        for key, last in list(zip(own, short, strict=True))[:LABEL_SETTINGS]:
            name = last if short.count(last) == 1 else ".".join(key.split(".")[-2:])
            parts.append(_setting(name, run.settings.get(key, "")))
        parts += ["..."] if len(own) > LABEL_SETTINGS else []
        label = ", ".join(parts)
        same = sum(other == label or other.startswith(f"{label} (") for other in labels)
        labels.append(f"{label} ({same + 1})" if same else label)
    return labels


def _setting(name: str, value: str) -> str:
    """A setting as a label has it: of a path only the last part, of a fingerprint the first."""
    shown = value.rstrip("/").rsplit("/", 1)[-1]
    if len(shown) == 64 and not shown.strip("0123456789abcdef"):
        shown = shown[:8]
    return f"{name}={shown[:40] or 'none'}"


def _seed_order(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (1 << 62, seed)
