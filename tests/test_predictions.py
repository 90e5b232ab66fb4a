"""What results and reports say of surrogates: units, notes, and nested MAP's tree."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from studies import quick_config

from evomerge.optimizers.nested_map import NestedMap
from evomerge.predictions import fitted, replayed, surrogate_results
from evomerge.report.objectives import read_objectives
from evomerge.report.page import _asset
from evomerge.report.surrogate import prediction_keys, predictions_markdown, read_predictions
from evomerge.setup import Setup, make_optimizer, make_setup

SEARCH = ("optimizer.population=12", "optimizer.generations=3")
MAP = ("optimizer=map", "optimizer.design=12", "optimizer.verify=4", *SEARCH)
BAYESIAN = ("optimizer=bayesian_map", "optimizer.startup=12", "optimizer.verify_every=2", *SEARCH)
NESTED = ("optimizer=nested_map", "optimizer.pair=7", "optimizer.verify=2")
NAMES = ("math", "polite", "sort")


def study(run_dir: Path, *overrides: str) -> Setup:
    fixed = ("+experiment=map_tiny", "budget.candidates=24", "front.budgets=[]")
    return make_setup(quick_config(run_dir, *fixed, *overrides))


def values_of(genome: np.ndarray) -> list[float]:
    """Of three objectives, each with a place of its own; the second one never changes."""
    first, last = (float(0.9 - ((genome - at) ** 2).mean()) for at in (0.2, 0.8))
    return [first, 0.5, last]


def played(setup: Setup, count: int) -> list[dict[str, Any]]:
    """The events of a study whose candidates are measured by a formula."""
    optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
    events: list[dict[str, Any]] = []
    number = 0
    while number < count:
        genomes = optimizer.ask(min(optimizer.batch, count - number))
        asked = [{"id": number + i, "genome": g.tolist()} for i, g in enumerate(genomes)]
        events.append({"event": "ask", "search": "search", "candidates": asked})
        for one in asked:
            values = values_of(np.array(one["genome"]))
            told = {"fitness": values, "stderr": [0.05] * 3}
            told |= {"values": dict(zip(NAMES, values, strict=True))}
            events.append(
                {"event": "result", "search": "search", "id": one["id"], "status": "ok", **told}
            )
        number += len(genomes)
        optimizer = replayed(setup, events)
    return events


@pytest.mark.parametrize(
    ("kind", "verifying"), [(MAP, range(12, 24)), (BAYESIAN, [*range(16, 20)])]
)
def test_candidates_of_rounds_that_verify_are_forecast(
    kind: tuple[str, ...], verifying: Any, tmp_path: Path
) -> None:
    setup = study(tmp_path, *kind)
    told = surrogate_results(setup, setup.goals, played(setup, 24))
    assert told is not None and told["candidates"] == list(verifying)
    assert told["notes"][0] == "polite never changed: no surrogate is needed"
    assert "unit" not in told["objectives"]["math"]


def test_a_weighted_log_likelihood_is_part_of_the_unit(tmp_path: Path) -> None:
    setup = study(tmp_path, *MAP, "task.loglik_weight=0.1")
    told = surrogate_results(setup, setup.goals, played(setup, 24))
    assert told is not None
    assert told["objectives"]["math"]["unit"] == "score + 0.1 x log-likelihood"
    assert "unit" not in told["objectives"]["sort"]
    results = {"surrogate": told, "objectives": [vars(o) for o in setup.goals.objectives]}
    objectives = read_objectives(results, {})
    text = predictions_markdown(results, objectives)
    assert "math (score + 0.1 x log-likelihood) |" in text.replace("\\", "")
    rows = {row.split("|")[1].split()[0]: row for row in text.splitlines() if row[:3] != "|--"
            and row.startswith("| ")}  # fmt: skip
    assert "%" not in rows["math"] and "%" in rows["sort"]
    found = read_predictions(results, objectives, ())
    assert found is not None and [k.label for k in prediction_keys(found)] == ["polite", "sort"]


def test_notes_are_shown_and_escaped() -> None:
    surrogate = {"kind": "constant", "predicted": [], "measured": []}
    results = {
        "surrogate": {
            "results": 3, "unknowns": 6, "notes": ["<b>never</b> changed", "few results"],
            "objectives": {"a": surrogate},
        }
    }  # fmt: skip
    page = shown(results)
    assert "&lt;b&gt;never&lt;/b&gt; changed" in page and "<b>never" not in page
    assert "few results" in page and "few results" in predictions_markdown(results, ())


def test_the_tree_of_nested_map_is_told_and_shown(tmp_path: Path) -> None:
    setup = study(tmp_path, *NESTED, "task.loglik_weight=0.1")
    events = played(setup, 3 + 2 * 7)
    optimizer = replayed(setup, events)
    assert isinstance(optimizer, NestedMap)
    told = surrogate_results(setup, setup.goals, events)
    assert told is not None and len(told["tree"]) == len(optimizer.tree) == 5
    for node, one in zip(told["tree"], optimizer.tree, strict=True):
        assert one.fitness is not None
        assert "+".join(node["members"]) == one.name
        assert node["coefficients"] == pytest.approx(one.coefficients, abs=1e-6)
        assert list(node["measured"].values()) == pytest.approx(one.fitness.values, abs=1e-6)
        assert list(node["predicted"].values()) == pytest.approx(one.predicted, abs=1e-6)
        assert len(node["r2"]) == len(one.r2)
    assert told["units"] == {"math": "score + 0.1 x log-likelihood"}
    root = told["tree"][-1]
    assert sorted(root["members"]) == sorted(setup.config["models"]["sources"])
    page = shown({"surrogate": told, "objectives": [vars(o) for o in setup.goals.objectives]})
    assert " + ".join(root["members"]) in page
    assert "math (score + 0.1 x log-likelihood), predicted" in page
    assert f"{root['measured']['math']:.3f}" in page
    assert f"{100 * root['measured']['sort']:.1f}%" in page


def test_a_damaged_tree_is_no_error() -> None:
    for tree in (3, [4], [{"members": 3, "children": [9, "x"], "coefficients": [None]}]):
        shown({"surrogate": {"tree": tree, "units": 3, "notes": 7}})


def test_nested_map_of_many_weights_has_no_common_surrogate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their quadratics would not fit into memory."""
    setup = study(tmp_path, *NESTED)
    events = played(setup, 5)
    assert fitted(setup, events) is not None
    monkeypatch.setattr("evomerge.predictions._MOST", 9)
    assert fitted(setup, events) is None


def shown(results: dict[str, Any]) -> str:
    """The section of the report, rendered as a page is."""
    import jinja2

    from evomerge.report import numbers

    found = read_predictions(results, read_objectives(results, {}), ())
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )  # fmt: skip
    environment.globals["fmt"] = numbers
    content = SimpleNamespace(predictions=found, prediction_keys=[], charts={})
    return environment.get_template("surrogate.html.j2").render(content=content)
