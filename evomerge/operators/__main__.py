"""Prints the table of all operators as Markdown: `python -m evomerge.operators`."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module

from evomerge import operators
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter

_HEAD = ("operator", "result", "base", "sources", "one value a source", "one value", "from")
_LINK = re.compile(r"arXiv (\d{4}\.\d{5})|, (\d{4}\.\d{5})(?=[,)])|(https?://\S+)")


def table() -> str:
    """One line an operator, read off signatures and docstrings alone; defaults in brackets."""
    rows = [
        _HEAD,
        tuple("---" for _ in _HEAD),
        *(_row(operators.get(n)) for n in operators.names()),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(operator: Operator) -> tuple[str, ...]:
    own: list[str] = []
    shared: list[str] = []
    for key, parameter in operator.parameters.items():
        mine = isinstance(parameter, Parameter) and parameter.per_source
        (own if mine else shared).append(_parameter(operator, key, parameter))
    base = {"required": "yes", "optional": "may have one", "never": "no"}[operator.takes_base]
    cells = (
        f"`{operator.name}`", _summary(operator), base, _number(operator),
        "<br>".join(own), "<br>".join(shared), _source(operator),
    )  # fmt: skip
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _summary(operator: Operator) -> str:
    """The first sentence of the function's docstring."""
    paragraph = (inspect.getdoc(operator.function) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).removesuffix(".")


def _number(operator: Operator) -> str:
    least, most = operator.least_sources, operator.most_sources
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def _parameter(operator: Operator, key: str, parameter: Parameter | Choice) -> str:
    if parameter.inert:
        return f"`{key}`: no effect"
    if isinstance(parameter, Choice):
        text = " or ".join(map(_value, parameter.values))
        default = operator.defaults.get(key)
    else:
        whole = "whole, " if parameter.whole else ""
        text = f"{whole}{parameter.low:g} to {parameter.high:g}"
        default = operator.defaults.get(key, parameter.default)
    return f"`{key}`: {text}" + ("" if default is None else f" ({_value(default)})")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _source(operator: Operator) -> str:
    """Links to the papers that the docstrings name."""
    module = import_module(operator.function.__module__)
    text = f"{inspect.getdoc(module)}\n{inspect.getdoc(operator.function)}"
    links = []
    for found in _LINK.finditer(text):
        paper = found[1] or found[2]
        links.append(f"[{paper}](https://arxiv.org/abs/{paper})" if paper else f"<{found[3]}>")
    return ", ".join(dict.fromkeys(links))


if __name__ == "__main__":
    sys.stdout.write(table())
