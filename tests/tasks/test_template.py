"""Templates fill columns, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.tasks.template import Template, TemplateError


@settings(deadline=None)
@given(st.text(), st.text())
def test_fills_columns_and_never_interprets_what_they_hold(one: str, two: str) -> None:
    template = Template.parse("{{{a}}} {b} {a}")
    assert template.render({"a": one, "b": two}) == "{" + one + "} " + two + " " + one
    assert template.columns == ("a", "b")


@settings(deadline=None)
@given(st.text())
def test_literal_text_survives(text: str) -> None:
    written = text.replace("{", "{{").replace("}", "}}")
    assert Template.parse(written).render({}) == text


@pytest.mark.parametrize("column", ["x.__class__", "x[0]", "x.y", "質問", "two words"])
def test_a_place_is_the_literal_name_of_a_column(column: str) -> None:
    template = Template.parse("{" + column + "}")
    with pytest.raises(TemplateError, match="the column"):
        template.render({"x": "text"})
    assert template.render({column: "cell"}) == "cell"


@pytest.mark.parametrize("text", ["{", "}", "{}", "{ }", "{x!r}", "{x:>10}", "{x:{y}}", "{x!}"])
def test_malformed_templates_are_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        Template.parse(text)
