"""What a study with several objectives, or one that is no plain score, found; in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.report.front import Model, Point, front_budgets, front_points, mark, models_of
from evomerge.report.numbers import NONE, p_value, points, points_interval, whole
from evomerge.report.objectives import Constraint, Objective, read_constraints
from evomerge.report.reading import Json, mapping, number
from evomerge.report.words import listed


def front_verdict(
    results: Json, objectives: Sequence[Objective]
) -> tuple[str, str, str, tuple[str, ...]]:
    """Kind, badge, headline and sentences of the verdict.

    It says what was measured, objective by objective. Nothing is called better as a whole: of
    several objectives there is no one order, and their differences were not tested together.
    """
    name = str(results.get("best", ""))
    models = models_of(results, objectives)
    chosen = next((model for model in models if model.chosen), None)
    every = front_points(results, objectives)
    point = next((p for p in every if p.chosen), None)
    constraints = read_constraints(results, {})
    broken = [c for c in constraints if c.satisfied is False]
    several = len(objectives) > 1
    kind, badge = "untested", "Several objectives" if several else "Objective in its own unit"
    if broken:
        kind, badge = "worse", "Breaks a constraint on held-out items"
    if chosen is None:
        headline = f"The chosen merge, “{name}”, has no held-out values."
        return kind, badge, headline, tuple(constraint_sentences(constraints))
    headline = f"The chosen merge, “{name}”, has {_measured(objectives, chosen, point)}."
    sentences = [
        *([_preference(objectives)] if several else []),
        *_front(results, objectives, every),
        *constraint_sentences(constraints),
        *_sources(objectives, models, chosen),
        _dominating(objectives, models, chosen),
        *_paired(results),
    ]
    return kind, badge, headline, tuple(sentences)


def constraint_sentences(constraints: Sequence[Constraint]) -> list[str]:
    """Whether the chosen merge keeps the constraints on the held-out items."""
    broken = [c for c in constraints if c.satisfied is False]
    unknown = [c for c in constraints if c.satisfied is None]
    kept = [c for c in constraints if c.satisfied]
    sentences = []
    if broken:
        parts = listed([f"{c.name} (found {c.shown}, allowed {c.condition})" for c in broken])
        sentences.append(f"On the held-out items it breaks {parts}.")
    if kept:
        parts = listed([f"{c.name} ({c.shown}, allowed {c.condition})" for c in kept])
        sentences.append(f"On the held-out items it keeps {parts}.")
    if unknown:
        names = listed([c.name for c in unknown])
        sentences.append(f"Not measured on the held-out items: {names}.")
    return sentences


def _measured(objectives: Sequence[Objective], chosen: Model, point: Point | None) -> str:
    parts = []
    for place, objective in enumerate(objectives):
        low = point.low[place] if point else None
        shown = objective.show_interval(low, point.high[place] if point else None)
        between = "" if shown == NONE else f" {shown}"
        parts.append(f"{objective.name} {objective.show(chosen.test[place])}{between}")
    bracket = " (95% intervals in brackets)" if any("[" in part for part in parts) else ""
    return f"{listed(parts)} on the held-out test items{bracket}"


def _preference(objectives: Sequence[Objective]) -> str:
    lower = [o.name for o in objectives if o.minimised]
    higher = [o.name for o in objectives if not o.minimised]
    parts = [f"higher is better in {listed(higher)}"] if higher else []
    parts += [f"lower is better in {listed(lower)}"] if lower else []
    text = listed(parts)
    direction = f"{text[0].upper()}{text[1:]}."
    weights = [f"{o.name} {o.weight:g}" for o in objectives if o.weight is not None]
    if len(weights) < len(objectives):
        return direction
    return f"{direction} It was chosen from the front by the preference weights {listed(weights)}."


def _front(results: Json, objectives: Sequence[Objective], every: Sequence[Point]) -> list[str]:
    budgets = front_budgets(results)
    if not budgets or len(objectives) < 2:
        return []
    last = [p for p in every if p.candidate in budgets[max(budgets)]]
    marked = mark(objectives, last)
    best, broken = sum(p.best for p in marked), sum(p.violation > 0 for p in marked)
    noun = "candidate is" if len(last) == 1 else "candidates are"
    text = (
        f"After {whole(max(budgets))} candidates {whole(len(last))} {noun} on the front of the "
        f"search items; {whole(best)} of them stay non-dominated on the held-out items"
    )
    return [text + (f" and {whole(broken)} break a constraint there." if broken else ".")]


def _sources(objectives: Sequence[Objective], models: Sequence[Model], chosen: Model) -> list[str]:
    sources = [model for model in models if model.role == "source"]
    sentences = []
    for place, objective in enumerate(objectives if sources else ()):
        pick = min if objective.minimised else max
        best = pick(sources, key=lambda source: source.test[place])
        value, mine = best.test[place], chosen.test[place]
        relation = "the same as" if mine == value else "worse than"
        if objective.better(mine, value):
            relation = "better than"
        sentences.append(
            f"In {objective.name} the best source is “{best.name}” with {objective.show(value)}: "
            f"the merge, with {objective.show(mine)}, is {relation} that."
        )
    return sentences


def _dominating(objectives: Sequence[Objective], models: Sequence[Model], chosen: Model) -> str:
    others = [model for model in models if not model.chosen]
    above = [m.name for m in others if _dominates(objectives, m.test, chosen.test)]
    below = [m.name for m in others if _dominates(objectives, chosen.test, m.test)]
    if not others:
        return "No other model was measured on these objectives: no claim is made."
    parts = [
        f"At least as good in every objective and better in one: {_quoted(above)}."
        if above
        else "No source or control is at least as good in every objective and better in one."
    ]
    if below:
        parts.append(f"The merge is that to {_quoted(below)}.")
    parts.append("These are measured values; the differences were not tested.")
    return " ".join(parts)


def _dominates(objectives: Sequence[Objective], a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(objectives, a, b, strict=True))
    return not any(o.better(y, x) for o, x, y in pairs) and any(o.better(x, y) for o, x, y in pairs)


def _paired(results: Json) -> list[str]:
    paired = mapping(results.get("paired_test"))
    difference, p = number(paired.get("difference")), number(paired.get("p"))
    if difference is None or not results.get("objective"):
        return []
    figures = points_interval(number(paired.get("low")), number(paired.get("high")))
    return [
        f"The plain score on {results['objective']} alone differs from that of "
        f"“{paired.get('against')}” by {points(difference)} ({figures}, {p_value(p)})."
    ]


def _quoted(names: Sequence[str]) -> str:
    return listed([f"“{name}”" for name in names])
