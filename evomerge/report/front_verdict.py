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
        *([_preference(objectives, bool(every))] if several else []),
        *_front(results, objectives, every),
        *constraint_sentences(constraints),
        *_sources(objectives, models, chosen),
        *_optimism(objectives, point),
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
        if chosen.test[place] is not None:
            parts.append(f"{objective.name} {objective.show(chosen.test[place])}{between}")
    bracket = " (95% intervals in brackets)" if any("[" in part for part in parts) else ""
    return f"{listed(parts)} on the held-out test items{bracket}"


def _preference(objectives: Sequence[Objective], front: bool) -> str:
    lower = [o.name for o in objectives if o.minimised]
    higher = [o.name for o in objectives if not o.minimised]
    parts = [f"higher is better in {listed(higher)}"] if higher else []
    parts += [f"lower is better in {listed(lower)}"] if lower else []
    text = listed(parts)
    direction = f"{text[0].upper()}{text[1:]}."
    weights = [f"{o.name} {o.weight:g}" for o in objectives if o.weight is not None]
    if len(weights) < len(objectives):
        return direction
    how = "It was chosen from the front by" if front else "The search combined them by"
    return f"{direction} {how} the preference weights {listed(weights)}."


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


def _optimism(objectives: Sequence[Objective], point: Point | None) -> list[str]:
    """The optimism gap of each objective: how much better the search items made the merge look."""
    if point is None or point.test is None or point.search is None:
        return []
    parts = []
    for objective, found, tested in zip(objectives, point.search, point.test, strict=True):
        side = "better" if objective.better(found, tested) else "worse"
        seen = f"{objective.show_gap(found, tested)} {side}" if found != tested else "the same"
        parts.append(f"{seen} in {objective.name}")
    return [
        "Optimism gap, search items minus held-out items: on the search items it was "
        f"{listed(parts)}. Better is expected there, because the search chose it on those items."
    ]


def _sources(objectives: Sequence[Objective], models: Sequence[Model], chosen: Model) -> list[str]:
    sentences = []
    for place, objective in enumerate(objectives):
        known = [
            (value, model.name)
            for model in models
            if model.role == "source" and (value := model.test[place]) is not None
        ]
        mine = chosen.test[place]
        if not known or mine is None:
            continue
        value, name = min(known) if objective.minimised else max(known)
        relation = "the same as" if mine == value else "worse than"
        if objective.better(mine, value):
            relation = "better than"
        sentences.append(
            f"In {objective.name} the best source is “{name}” with {objective.show(value)}: "
            f"the merge, with {objective.show(mine)}, is {relation} that."
        )
    return sentences


def _dominating(objectives: Sequence[Objective], models: Sequence[Model], chosen: Model) -> str:
    mine = _all(chosen)
    others = [(m.name, test) for m in models if not m.chosen and (test := _all(m)) is not None]
    if not others or mine is None:
        return "No other model was measured on all objectives: no claim is made on all together."
    above = [name for name, test in others if _dominates(objectives, test, mine)]
    below = [name for name, test in others if _dominates(objectives, mine, test)]
    parts = [
        f"At least as good in every objective and better in one: {_quoted(above)}."
        if above
        else "No source or control is at least as good in every objective and better in one."
    ]
    if below:
        parts.append(
            f"Compared with {_quoted(below)} it is at least as good in every objective and "
            "better in one."
        )
    parts.append("These are measured values; the differences were not tested together.")
    return " ".join(parts)


def _dominates(objectives: Sequence[Objective], a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(objectives, a, b, strict=True))
    return not any(o.better(y, x) for o, x, y in pairs) and any(o.better(x, y) for o, x, y in pairs)


def _all(model: Model) -> tuple[float, ...] | None:
    known = tuple(value for value in model.test if value is not None)
    return known if len(known) == len(model.test) else None


def _paired(results: Json) -> list[str]:
    """The paired tests, task by task; those of several tasks are not corrected for that."""
    tests = mapping(results.get("paired_tests"))
    if not tests and results.get("objective"):
        tests = {str(results["objective"]): results.get("paired_test")}
    sentences = []
    for task, paired in ((task, mapping(test)) for task, test in tests.items()):
        difference, p = number(paired.get("difference")), number(paired.get("p"))
        if difference is not None:
            figures = points_interval(number(paired.get("low")), number(paired.get("high")))
            sentences.append(
                f"The plain score on {task} alone differs from that of “{paired.get('against')}” "
                f"by {points(difference)} ({figures}, {p_value(p)})."
            )
    return sentences


def _quoted(names: Sequence[str]) -> str:
    return listed([f"“{name}”" for name in names])
