"""The result table for the terminal and as Markdown, and the model card."""

from __future__ import annotations

import io

import pytest
import report_runs as runs
import yaml
from rich.console import Console

from evomerge.report import model_card, results_markdown, results_table
from evomerge.report.table import markdown_text


def shown(results: dict[str, object]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table(results))
    return console.file.getvalue()


def test_table() -> None:
    lines = shown(runs.results()).splitlines()
    assert "jp_math_tiny, seed 0" in lines[0]
    (best,) = [line for line in lines if "evolved merge" in line]
    assert "62.0% [56.0%, 68.0%]" in best
    assert "66.0% [60.0%, 72.0%]" in best
    assert lines.index(best) == 4


def test_table_with_several_tasks_names_them() -> None:
    results = runs.results()
    results["models"]["math"]["scores"]["en_math"] = {"test": runs.score(0.4, 90)}
    lines = shown(results).splitlines()
    (heading,) = [line for line in lines if "en_math" in line]
    below = lines[lines.index(heading) :]
    assert not any("40%" in line for line in lines[: lines.index(heading)])
    assert any(line.split()[:2] == ["math", "40%"] for line in below)


def test_table_fits_a_narrow_terminal() -> None:
    results = runs.results()
    for task in ("en_math_tiny", "polite_tiny", "sort_tiny"):
        for model in results["models"].values():
            model["scores"][task] = {"test": runs.score(0.4, 90)}
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(results))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("62.0% [56.0%, 68.0%]" in line for line in lines)


def test_names_do_not_act_in_the_terminal() -> None:
    results = runs.results()
    results["models"]["[red]x[/red]\x1b[31m\nnew"] = results["models"].pop("TIES")
    text = shown(results)
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


def test_markdown() -> None:
    lines = results_markdown(runs.results()).splitlines()
    assert lines[0] == "| Model | Role | Held-out (test) | Items | Search | Items |"
    assert lines[2] == (
        "| **evolved merge** | chosen merge | 62.0% [56.0%, 68.0%] | 250 "
        "| 66.0% [60.0%, 72.0%] | 150 |"
    )
    assert len(lines) == 10


def test_markdown_is_escaped() -> None:
    results = runs.results()
    results["models"][f"a|b {runs.EVIL} `c` [d](e)\nf"] = results["models"].pop("TIES")
    text = results_markdown(results)
    assert "a\\|b &lt;script&gt;alert(1)&lt;/script&gt; \\`c\\` \\[d\\](e) f" in text
    assert len(text.splitlines()) == 10


def test_underscores_are_escaped_where_they_would_act() -> None:
    assert markdown_text("a_b _c_ __d") == "a_b \\_c\\_ \\_\\_d"


def test_markdown_of_a_task_that_was_not_searched_has_no_search_columns() -> None:
    results = runs.results()
    results["models"]["math"]["scores"]["en_math"] = {"test": runs.score(0.4, 90)}
    table = results_markdown(results).split("en_math:\n\n")[1]
    assert table.splitlines() == [
        "| Model | Role | Held-out (test) | Items |",
        "|---|---|---:|---:|",
        "| math | source | 40.0% [34.0%, 46.0%] | 90 |",
    ]


def test_card_publishes_no_path_of_the_recipe() -> None:
    recipe = "base_model: /data/x/base\nmodels:\n- model: '/data/x/math'\n- model: org/name\n"
    card = model_card(runs.results(), recipe)
    assert "base_model: base\nmodels:\n- model: math\n- model: org/name\n" in card


def test_markdown_without_models() -> None:
    assert results_markdown({}) == "No model has been measured.\n"


def front_matter(card: str) -> dict[str, object]:
    _, text, _ = card.split("---\n", 2)
    return yaml.safe_load(text)


def test_card() -> None:
    card = model_card(runs.results(), runs.RECIPE)
    assert front_matter(card) == {
        "library_name": "transformers",
        "base_model": ["math", "japanese"],
        "tags": ["merge", "evomerge"],
    }
    for part in (
        "# jp_math_tiny\n", "- math\n", f"```yaml\n{runs.RECIPE.strip()}\n```",
        "62.0%", "python -m evomerge +experiment=jp_math_tiny seed=0",
    ):  # fmt: skip
        assert part in card, part


@pytest.mark.parametrize(
    ("name", "shown_name"),
    [
        ("org/model", "org/model"),
        ("/home/someone/models/model", "model"),
        ("../model", "model"),
        ("x: [1]\ny", "x: [1] y"),
    ],
)
def test_card_names_parents_but_no_paths(name: str, shown_name: str) -> None:
    results = runs.results()
    results["models"][name] = results["models"].pop("math")
    names = front_matter(model_card(results, ""))["base_model"]
    assert isinstance(names, list)
    assert shown_name in names


def test_card_keeps_the_recipe_in_its_fence() -> None:
    card = model_card(runs.results(), "a: b # ``` \n# <script>\n")
    assert "````yaml\na: b # ``` \n# <script>\n````" in card


def test_card_without_results() -> None:
    assert "No model has been measured." in model_card({}, runs.RECIPE)
