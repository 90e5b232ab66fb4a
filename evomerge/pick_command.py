"""The `pick` verb: which merge of a study suits a preference, without starting an engine."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.durable import write_atomic
from evomerge.errors import ConfigError, UserError
from evomerge.evidence import search_interval
from evomerge.lineage_command import check_out
from evomerge.markdown import printable
from evomerge.objectives import Objective
from evomerge.picking import Preference, ends, maximise, ranked, read_preference
from evomerge.predictions import fitted, raw_errors
from evomerge.recipe.bundle import bundled
from evomerge.recorded import find, open_recorded, read_config
from evomerge.report.candidates import candidate_records
from evomerge.report.front import front_points
from evomerge.report.objectives import Objective as Shown
from evomerge.report.objectives import read_objectives, read_values
from evomerge.report.reading import RunFiles, mapping, read_run
from evomerge.setup import Setup, make_setup
from evomerge.types import FloatArray

_WITH_SURROGATES = ("map", "bayesian_map", "nested_map")

EPILOG = """\
The weights count objectives that go from 0 (the worst value on the front) to 1 (the best).
A study by map, bayesian_map or nested_map is answered from its surrogates, too: they may know of a
better merge than any that was measured. --out then writes that one, and the measured choice where
they know of none.

example:
  python -m evomerge pick runs/map_tiny/seed0 --prefer math=2,polite=1 --at-least sort=0.5
"""


@dataclass(frozen=True)
class Measured:
    """What there is to choose from.

    Attributes:
        names: of the candidates.
        numbers: of the candidates in the study.
        raw: their values, an `m x k` array.
        low: lower ends of the 95% intervals, NaN where unknown.
        high: upper ends.
        split: the items that they were measured on.
        chosen: the name of the study's own choice, if it is among them.
    """

    names: tuple[str, ...]
    numbers: tuple[int, ...]
    raw: FloatArray
    low: FloatArray
    high: FloatArray
    split: str
    chosen: str = ""


def pick_command(arguments: Sequence[str]) -> int:
    """Runs the verb with its arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.out is not None:
        check_out(options.out)
    run = read_run(options.run)
    shown = read_objectives(run.results or {}, run.study)
    objectives = tuple(
        Objective(o.name, o.task or None, o.metric, "minimize" if o.minimised else "maximize")
        for o in shown
    )
    if not objectives:
        raise UserError.of(
            str(options.run), "a study that names no objective", "one that does", "Run it again."
        )
    preference = read_preference(objectives, options.prefer, options.at_least, options.at_most)
    measured = read_measured(run, shown, options.run)
    order = ranked(preference, measured.raw)
    modelled = run.study.get("optimizer") in _WITH_SURROGATES and not options.measured
    if not order and not modelled:
        raise _impossible(preference, measured.raw)
    for line in describe(preference, shown, measured, order):
        print(line)
    if order:
        print(f"To export it: {export_line(options.run, measured.numbers[order[0]])}")
    if options.out is None and not modelled:
        return 0
    predicted = None
    if modelled:
        setup = _setup(options.run, run)
        genome = _predicted(setup, run, preference, shown, measured.raw, bool(order))
        predicted = None if genome is None else setup.space.decode(genome)
    if options.out is not None:
        if predicted is None and modelled:
            print(f"What is written is the measured choice, {measured.names[order[0]]}.")
        study = open_recorded(options.run)
        recipe = predicted or find(study, _known(run, measured.numbers[order[0]])).recipe
        text, files = bundled(recipe, study.merger.identities)
        for name, content in files.items():
            write_atomic(options.out.parent / name, content)
        write_atomic(options.out, text)
        beside = f" and {', '.join(files)} beside it" if files else ""
        print(
            f"Wrote {options.out}{beside}; to merge it: python -m evomerge merge {options.out} OUT"
        )
    return 0


def read_measured(run: RunFiles, objectives: Sequence[Shown], run_dir: Path) -> Measured:
    """The front's points on held-out items, or all candidates on the search items.

    Args:
        run: the study.
        objectives: its objectives.
        run_dir: its directory.

    Raises:
        UserError: if there is none that keeps the study's constraints.
    """
    # A point without a number has no genome in the journal, from which its recipe is made.
    points = [
        (p, p.candidate)
        for p in front_points(run.results or {}, objectives)
        if p.test and not p.violation and p.candidate is not None
    ]
    if points:
        low, high = (
            np.array([[np.nan if v is None else v for v in side] for side in sides])
            for sides in ([p.low for p, _ in points], [p.high for p, _ in points])
        )
        return Measured(
            tuple(printable(p.name) for p, _ in points), tuple(number for _, number in points),
            np.array([p.test for p, _ in points], dtype=np.float64), low, high, "held-out test",
            next((printable(p.name) for p, _ in points if p.chosen), ""),
        )  # fmt: skip
    found = [
        (record, values)
        for record in candidate_records(run.events)
        if record.search == "search"
        and record.feasible
        and record.complete
        and (values := read_values(objectives, record.values)) is not None
    ]
    if not found:
        raise UserError.of(
            "run directory", "no candidate with a result that keeps the constraints",
            "at least one", "Let the study run on.",
        )  # fmt: skip
    raw = np.array([values for _, values in found], dtype=np.float64)
    results = {e["id"]: e for e in run.events if e.get("event") == "result"}
    told = [(o.name, o.task, -1.0 if o.minimised else 1.0) for o in objectives]
    ends_of = []
    for record, values in found:
        event = results[record.id]
        errors = raw_errors(event, told, run_dir)
        triples = zip(objectives, values, errors, strict=True)
        ends_of.append([search_interval(event, *triple) for triple in triples])
    low, high = np.moveaxis(np.array(ends_of, dtype=np.float64), 2, 0)
    return Measured(
        tuple(f"candidate {record.id}" for record, _ in found),
        tuple(record.id for record, _ in found), raw, low, high, "search",
    )  # fmt: skip


def describe(
    preference: Preference, shown: Sequence[Shown], measured: Measured, order: Sequence[int]
) -> list[str]:
    """The choice among measured merges, and why, in lines."""
    count = len(measured.names)
    head = f"{count} merge{'s' if count != 1 else ''} measured on {measured.split} items"
    if measured.split == "search":
        head += " (no proof on held-out items yet; these values are optimistic)"
    several = len(shown) > 1
    scaled = f"; objectives scaled to their range: {_weights(preference)}" if several else ""
    lines = [head + scaled]
    if not order:
        unkept = preference.unkept(measured.raw)
        return [*lines, *_wrapped(f"No measured merge keeps {unkept}.")]
    worst, best = ends(preference, measured.raw)
    scores = preference.score(measured.raw, worst, best)
    first = order[0]
    if preference.bounds:
        bounds = " and ".join(str(b) for b in preference.bounds)
        lines.append(f"{len(order)} of them keep {bounds}")
    summed = [f", weighted sum {score:.3f}" if several else "" for score in scores]
    lines.append(f"Choice: {measured.names[first]}{summed[first]}")
    for place, objective in enumerate(shown):
        value = float(measured.raw[first, place])
        low, high = (float(side[first, place]) for side in (measured.low, measured.high))
        interval = f" {objective.show_interval(low, high)}" if np.isfinite(low + high) else ""
        top = float(best[place])
        gap = f"the best of all has {objective.show(top)}" if value != top else "the best of all"
        name = printable(objective.name)
        lines.append(f"  {name:12} {objective.show(value)}{interval}; {gap}")
    if len(order) > 1:
        second = order[1]
        lines.append(f"Runner-up: {measured.names[second]}{summed[second]}")
        pairs = zip(shown, measured.raw[first], measured.raw[second], strict=True)
        parts = [_against(o, float(own), float(other)) for o, own, other in pairs]
        lines += _wrapped(f"  Against it, the choice is {', '.join(parts)}.")
    return lines


def _predicted(
    setup: Setup,
    run: RunFiles,
    preference: Preference,
    shown: Sequence[Shown],
    raw: FloatArray,
    measured: bool,
) -> FloatArray | None:
    """Prints what the surrogates would choose; returns its genome, None if they know of none.

    Raises:
        ConfigError: if no measured merge keeps the bounds, and they know of none that does.
    """
    surrogates = None if setup.goals.scalarize else fitted(setup, run.events)
    if surrogates is None:
        why = "there are no surrogates of its results"
        if setup.goals.scalarize:
            why = "the surrogate is of one fitness, in which the objectives are combined"
        if not measured:
            raise _impossible(preference, raw, f"; {why}")
        print(f"{why[0].upper()}{why[1:]}.")
        return None
    names = [c.name for c in setup.goals.constraints]
    genome, kept, unkept = maximise(
        preference, surrogates, *ends(preference, raw), constraints=names
    )
    print()
    if not kept:
        if not measured:
            raise _impossible(preference, raw, f"; nor does the surrogate know of one: {unkept}")
        print("\n".join(_wrapped(f"The surrogate knows of no merge that keeps {unkept}.")))
        return None
    means, errors = surrogates.expect(genome[None])
    count = len(surrogates.genomes)
    print(f"Predicted from {count} results, in the sampled box, at no cost; not measured yet:")
    for place, (objective, one) in enumerate(
        zip(setup.goals.objectives, surrogates.objectives, strict=True)
    ):
        value, error = objective.sign * float(means[0, place]), float(errors[0, place])
        error_text = shown[place].show(error, unit=False)
        r2 = "never changed" if one.r2 is None else f"leave-one-out R2 {one.r2:.2f}"
        print(
            f"  {printable(objective.name):12} {shown[place].show(value)} "
            f"(standard error {error_text}; {one.kind}, {r2})"
        )
    for note in surrogates.notes:
        print(f"  note: {note}")
    names = [printable(d.name) for d in surrogates.domain.dimensions]
    parts = [f"{name}={value:.3f}" for name, value in zip(names, genome, strict=True)]
    print("\n".join(_wrapped(f"Genome: {', '.join(parts)}")))
    items = setup.item_count(setup.items(0))
    seconds = _seconds(run)
    cost = "" if seconds is None else f", about {seconds:.2g} s by the study's own times"
    print(f"Verifying it on the search items would cost {items} items{cost}.")
    return genome


def export_line(run_dir: Path, number: int) -> str:
    """The command that writes a candidate as a checkpoint."""
    return f"python -m evomerge {shlex.join(['export', str(run_dir), str(number)])} OUT"


def _setup(run_dir: Path, run: RunFiles) -> Setup:
    """The study's parts, from the config that it wrote.

    Raises:
        UserError: if that is missing or damaged, and as in `make_setup`.
    """
    config = read_config(run_dir, run.config)
    try:
        return make_setup(config)
    except KeyError as error:
        raise UserError.of(
            "run directory", f"a damaged config.yaml in {run_dir}, without {error}",
            "the one that the study wrote",
            "Run the study's command again; it writes the file anew.",
        ) from error  # fmt: skip


def _known(run: RunFiles, number: int) -> str:
    """A candidate's number as text, if the journal has it."""
    asked = [c for e in run.events if e.get("event") == "ask" for c in e["candidates"]]
    if all(c["id"] != number for c in asked):
        raise UserError.of(
            "run directory", f"no candidate {number} in journal.jsonl, which results.json names",
            "files of one study", "Run the study's command again; it writes the results anew.",
        )  # fmt: skip
    return str(number)


def _seconds(run: RunFiles) -> float | None:
    """Median time of a candidate, merge and answers."""
    times = [mapping(e.get("seconds")) for e in run.events if e.get("status") == "ok"]
    known = [t["merge"] + t["answer"] for t in times if {"merge", "answer"} <= t.keys()]
    return float(np.median(known)) if known else None


def _impossible(preference: Preference, raw: FloatArray, more: str = "") -> ConfigError:
    unkept = preference.unkept(raw)
    return ConfigError.of(
        "--at-least" if any(b.at_least for b in preference.bounds) else "--at-most",
        unkept + more, "bounds that a measured merge keeps", "Ask for less.",
    )  # fmt: skip


def _weights(preference: Preference) -> str:
    pairs = zip(preference.objectives, preference.weights, strict=True)
    return ", ".join(f"{printable(o.name)} {100 * w:.0f}%" for o, w in pairs)


def _against(objective: Shown, own: float, other: float) -> str:
    name = printable(objective.name)
    if own == other:
        return f"the same in {name}"
    verb = "better" if objective.better(own, other) else "worse"
    return f"{objective.show_gap(own, other, unit=False)} {verb} in {name}"


def _wrapped(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, 100, subsequent_indent=indent + "  ", break_on_hyphens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evomerge pick",
        description="Chooses one merge of a study by weights and bounds, and says what it costs in "
        "the other objectives. Starts no engine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a study's run_dir")
    parser.add_argument(
        "--prefer", required=True, metavar="NAME=WEIGHT[,...]",
        help="how much objectives count; those that are not named count 0",
    )  # fmt: skip
    parser.add_argument(
        "--at-least", default="", metavar="NAME=VALUE[,...]",
        help="least values, in the objectives' own units (shares from 0 to 1)",
    )  # fmt: skip
    parser.add_argument(
        "--at-most", default="", metavar="NAME=VALUE[,...]",
        help="greatest values, such as of tokens or seconds",
    )  # fmt: skip
    parser.add_argument("--measured", action="store_true", help="ask no surrogate")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the recipe is written")
    return parser
