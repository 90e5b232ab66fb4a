"""The comparison of several runs for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from evomerge.markdown import markdown_text, printable
from evomerge.report.comparison import Comparison, Measure, Summary
from evomerge.report.numbers import NONE, UNITS, duration, indicator, p_value, points, whole
from evomerge.report.statistics import Mean, PairTest
from evomerge.report.words import listed

if TYPE_CHECKING:
    from rich.console import Group


def headings(comparison: Comparison) -> list[str]:
    """The columns of the summary table, for people."""
    if comparison.several:
        return ["Group", "Candidates", "Seeds", "Hypervolume", "IGD", "IGD+", "Front size"]
    return ["Group", "Seeds", comparison.objectives[0].title, "Wall-clock time"]


def cells(comparison: Comparison, summary: Summary) -> list[str]:
    """A row of the summary table: means over seeds, with 95% t intervals."""
    if not comparison.several:
        return [
            summary.group,
            whole(summary.seeds),
            _mean(comparison, summary.main),
            duration(summary.seconds.value),
        ]
    size = summary.front.value
    return [
        summary.group,
        "last" if summary.budget is None else whole(summary.budget),
        whole(summary.seeds),
        _mean(comparison, summary.main),
        _mean(comparison, summary.igd),
        _mean(comparison, summary.igd_plus),
        NONE if size is None else f"{size:.1f}",
    ]


def comparison_table(comparison: Comparison) -> Group:
    """The summary for the terminal, and what it does not show, in sentences."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title(comparison))),
        title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for place, heading in enumerate(headings(comparison)):
        table.add_column(
            Text(printable(heading)),
            overflow="fold",
            justify="right" if place else "left",
            no_wrap=place > 0 and comparison.several,
        )
    for summary in comparison.summaries:
        row = cells(comparison, summary)
        if comparison.several:  # a terminal has no room for both ends of three intervals
            row[3:6] = map(_short, (summary.main, summary.igd, summary.igd_plus))
        table.add_row(*(Text(printable(cell)) for cell in row))
    lines = [*tested(comparison), *comparison.notes, *comparison.left_out]
    return Group(table, *(Text(printable(line)) for line in lines))


def comparison_markdown(comparison: Comparison) -> str:
    """The summary as a Markdown table with its test sentences; ends with a newline."""
    names = [markdown_text(heading) for heading in headings(comparison)]
    lines = [f"| {' | '.join(names)} |", f"|---{'|---:' * (len(names) - 1)}|"]
    for summary in comparison.summaries:
        row = [markdown_text(cell) for cell in cells(comparison, summary)]
        lines.append(f"| {' | '.join(row)} |")
    sentences = [*tested(comparison), *comparison.notes, *comparison.left_out]
    text = "\n".join([*lines, "", f"{markdown_text(title(comparison))}."])
    return "\n\n".join([text, *map(markdown_text, sentences)]) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """One row a run and budget; numbers in full, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [printable(objective.name) for objective in comparison.objectives]
    writer.writerow(
        ["experiment", "optimizer", "seed", "budget", "hypervolume", "igd", "igd_plus",
         "front_size", *(f"test:{name}" for name in names), "constraints_kept", "seconds",
         "group", "run"]
    )  # fmt: skip
    for measure in comparison.measures:
        writer.writerow(["" if value is None else value for value in _record(comparison, measure)])
    return text.getvalue()


def title(comparison: Comparison) -> str:
    """What the summary table holds."""
    if comparison.several:
        return "Quality of the fronts on held-out items: means over seeds with 95% t intervals"
    objective = comparison.objectives[0]
    return f"Held-out value of the chosen merge, {objective.direction}: means over seeds"


def tested(comparison: Comparison) -> list[str]:
    """What the rank tests say, at the last budget."""
    tests = comparison.tests
    sentences = []
    if tests.friedman is not None:
        sentences.append(
            f"Friedman's test over {tests.seeds} common seeds: {p_value(tests.friedman)} "
            "(chi-squared approximation, rough with few seeds)."
        )
    if tests.pairs:
        found = [pair for pair in tests.pairs if pair.significant]
        quantity = "hypervolume" if comparison.several else "held-out value"
        after = "" if comparison.last is None else f" after {whole(comparison.last)} candidates"
        what = f"{tests.method} on the {quantity}{after}, two-sided"
        what += ", Holm's correction" if len(tests.pairs) > 1 else ""
        if found:
            parts = listed([pair_text(comparison, pair) for pair in found])
            sentences.append(f"{what}: {parts}.")
        else:
            sentences.append(f"{what}: no significant difference between any two groups.")
    return [*sentences, *tests.warnings]


def pair_text(comparison: Comparison, pair: PairTest) -> str:
    """A significant difference in words, better group first."""
    lower_is_better = not comparison.several and comparison.objectives[0].minimised
    first_better = (pair.difference > 0) != lower_is_better
    better, other = (pair.first, pair.second) if first_better else (pair.second, pair.first)
    gap = gap_text(comparison, abs(pair.difference))
    return f"{better} is better than {other} (by {gap} in the median, {p_value(pair.adjusted)})"


def gap_text(comparison: Comparison, gap: float) -> str:
    """A difference in the unit of what was tested."""
    if comparison.several:
        return indicator(gap)
    objective = comparison.objectives[0]
    return objective.show(gap) if objective.metric in UNITS else points(gap, sign=False)


def _short(mean: Mean) -> str:
    """A mean and half the width of its interval: "0.544±0.049"."""
    if mean.value is None or mean.high is None:
        return NONE if mean.value is None else f"{mean.value:.3f}"
    return f"{mean.value:.3f}±{mean.high - mean.value:.3f}"


def _mean(comparison: Comparison, mean: Mean) -> str:
    if comparison.several:
        if mean.low is None or mean.high is None:
            return indicator(mean.value)
        return f"{indicator(mean.value)} [{indicator(mean.low)}, {indicator(mean.high)}]"
    objective = comparison.objectives[0]
    if mean.low is None or mean.high is None:
        return objective.show(mean.value, unit=False)
    shown = objective.show_interval(mean.low, mean.high)
    return f"{objective.show(mean.value, unit=False)} {shown}"


def _record(comparison: Comparison, measure: Measure) -> list[object]:
    run = measure.run
    chosen = run.chosen or (None,) * len(comparison.objectives)
    budget = measure.budget
    if budget is None:
        budget = max(run.budgets, default=run.candidates)
    return [
        printable(run.experiment), printable(run.optimizer), printable(run.seed), budget,
        measure.hypervolume, measure.igd, measure.igd_plus, measure.front, *chosen, run.kept,
        run.seconds, printable(measure.group), run.name,
    ]  # fmt: skip
