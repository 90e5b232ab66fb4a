"""Prints docs/configuration.md, read off the schema, the components and their YAML files.

python -m evomerge.reference > docs/configuration.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from evomerge.build import TARGET, load_target
from evomerge.config import FREE_KEYS, MISSING, Config

GROUPS = ("space", "optimizer", "estimator", "racing", "engine", "executor", "controls")
"""Groups whose YAML files are shown whole, in the order of the page."""
NAMED = ("experiment", "models", "task")
"""Groups of which only names and first comments are shown."""
PAGES = {
    "models": "pool.md", "space": "spaces.md", "optimizer": "optimizers.md",
    "estimator": "racing.md#estimators", "racing": "racing.md#races",
    "recheck": "racing.md#re-evaluation", "pool": "pool.md", "controls": "pool.md#the-controls",
    "objectives": "objectives.md#several-objectives", "constraints": "objectives.md#constraints",
    "warm_start": "objectives.md#stages-and-warm-starts", "ledger": "ledger.md",
    "log": "live.md#in-the-terminal", "trackers": "live.md#trackers",
}  # fmt: skip
"""Where more is said of a key."""

_PLAINER = {
    "see `Source`": "see [splits](#splits)", "see `make_sampling`": "see [sampling](#sampling)",
    "see `make_scorer`": "see [scorers](#scorers)", "; see `Template`": "",
    "None for": "null for",
}  # fmt: skip
"""What docstrings say to programmers, as this page says it."""
_WORDS = {
    "str": "text", "int": "whole number", "float": "number", "bool": "true or false",
    "None": "null", "Any": "anything", "object": "anything",
}  # fmt: skip
_INTRODUCTION = """\
# Configuration

Written by `python -m evomerge.reference`; a test holds it in step with the code.

A study is one tree of keys. The [schema](#keys) below names them all, and a misspelt key or a value
of the wrong kind is refused with what was expected. Values come, later ones winning, from the
schema, from the [choices](#choices) of the groups (`optimizer=gp` takes `conf/optimizer/gp.yaml`),
from the experiment (`+experiment=NAME` takes `conf/experiment/NAME.yaml`) and from the command line
(`KEY=VALUE`; `+KEY=VALUE` for a key that is not there yet). Your own files go into a folder with
the same groups, `--config-dir DIR`. `python -m evomerge +experiment=NAME --cfg job` prints the
result.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, *_keys(), *_tasks(), *_recipes(), *_choices()]).rstrip() + "\n"


# -- the schema -------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    free = ", ".join(f"`{key}`" for key in sorted(FREE_KEYS))
    yield (
        "## Keys\n\n" + _paragraphs(Config) + "\n\n"
        f"A run may be continued with other values of {free}: they change no recorded result. "
        "Any other change is another study and needs another `run_dir`.\n"
    )
    yield from _table(("key", "value", "default", "what it is"), _rows())
    for field in fields(Config):
        kind = _nested(field)
        if kind is not None:
            yield f"### {field.name}\n\n{_paragraphs(kind)}{_more(field.name)}\n"
            yield from _table(("key", "value", "default"), _nested_rows(kind, field.name))


def _rows() -> Iterator[tuple[str, ...]]:
    """Key, value, default and meaning of each key of the top level."""
    told = described(Config, "Attributes")
    chosen = _chosen()
    for field in fields(Config):
        value, default = _kind(field.type), _default(field.default, field.default_factory)
        if _nested(field) is not None:
            value, default = f"[keys](#{field.name})", ""
        if field.name in chosen:
            choice = chosen[field.name]
            default = "required" if choice is None else f"`{choice}`"
            value = value if value.startswith("[") else "a choice"
        yield f"`{field.name}`", value, default, told.get(field.name, "") + _more(field.name)


def _nested_rows(kind: Any, prefix: str) -> Iterator[tuple[str, ...]]:
    """Key, value and default below a key of the top level; defaults of the group's first choice."""
    choice = _chosen().get(prefix)
    own = _yaml_of(prefix, choice) if choice else {}
    for field in fields(kind):
        default = _default(own.get(field.name, field.default), field.default_factory)
        yield f"`{prefix}.{field.name}`", _kind(field.type), default


def _nested(field: Field[Any]) -> Any:
    """The dataclass that a field holds; None for other fields."""
    made = field.default_factory() if field.default_factory is not NO_DEFAULT else None
    return type(made) if is_dataclass(made) else None


def _default(value: Any, factory: Any) -> str:
    value = factory() if value is NO_DEFAULT else value
    if isinstance(value, Mapping) and value:
        return "see the choices"
    return "required" if value == MISSING else f"`{_yaml(value)}`"


def _more(key: str) -> str:
    return f" ([more]({PAGES[key]}))" if key in PAGES else ""


# -- components -------------------------------------------------------------------------------


def _tasks() -> Iterator[str]:
    """The keys of a task, of its splits, of its sampling, and the scorers."""
    from evomerge.tasks import scorers
    from evomerge.tasks.item_task import ItemTask
    from evomerge.tasks.sources import Source
    from evomerge.types import Sampling

    yield f"## Tasks\n\n{_paragraphs(ItemTask)}\n"
    yield from _table(("key", "default", "what it is"), _arguments(ItemTask, "Args"))
    yield "### Splits\n\nA split (`search`, `validation`, `test`) is a path, or a mapping:\n"
    yield from _table(("key", "default", "what it is"), _arguments(Source, "Attributes"))
    yield "### Sampling\n"
    yield from _table(("key", "default", "what it is"), _arguments(Sampling, "Attributes"))
    yield (
        "### Scorers\n\n`scorer: {_target_: evomerge.tasks.scorers.NAME}`; further keys are its "
        "settings.\n"
    )
    made = inspect.getmembers(scorers, inspect.isfunction)
    own = [(n, f) for n, f in made if f.__module__ == scorers.__name__ and not n.startswith("_")]
    rows = [
        (f"`{name}`", _settings(function), _first(function))
        for name, function in own
        if name != "make_scorer"
    ]
    yield from _table(("scorer", "settings", "what it does"), rows)


def _recipes() -> Iterator[str]:
    """The parts of a recipe as objects."""
    from evomerge.recipe import data

    yield (
        "## Recipes\n\nWhat a recipe is made of in Python (`evomerge.recipe`). "
        "[Recipes](recipes.md#keys) has the keys of the YAML, [operators](operators.md) the "
        "parameters of each operator.\n"
    )
    classes = inspect.getmembers(data, inspect.isclass)
    made = [c for _, c in classes if is_dataclass(c) and c.__module__ == data.__name__]
    for part in sorted(made, key=lambda c: c is not data.Recipe):  # the whole first
        yield f"### {part.__name__}\n\n{_paragraphs(part)}\n"
        rows = [row for row in _arguments(part, "Attributes") if row[2]]
        if rows:
            yield from _table(("attribute", "default", "what it is"), rows)


def _arguments(component: Any, section: str) -> Iterator[tuple[str, ...]]:
    """Name, default and meaning of each argument but those that the program gives."""
    told = described(component, section)
    for name, parameter in inspect.signature(component).parameters.items():
        if name != "key":
            missing = parameter.default is inspect.Parameter.empty
            default = "required" if missing else f"`{_yaml(parameter.default)}`"
            text = told.get(name, "")
            for ours, plainer in _PLAINER.items():
                text = text.replace(ours, plainer)
            yield f"`{name}`", default, text


def _settings(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(f"`{p.name}`: {_yaml(p.default)}" for p in parameters)


# -- the groups -------------------------------------------------------------------------------


def _choices() -> Iterator[str]:
    yield "## Choices\n\n`GROUP=NAME` takes the file `conf/GROUP/NAME.yaml`.\n"
    for group in NAMED:
        yield f"### {_sign(group)}\n"
        rows = [(f"`{name}`", _comment(text)) for name, text in _options(group)]
        yield from _table(("name", "what it is"), rows)
    for group in GROUPS:
        yield f"### {_sign(group)}\n"
        if group in PAGES:
            yield f"See [{PAGES[group].partition('#')[0]}]({PAGES[group]}).\n"
        for name, text in _options(group):
            yield f"#### {group}={name}\n\n{_says(name, group)}```yaml\n{text.strip()}\n```\n"


def _sign(group: str) -> str:
    return f"{'+' if group == 'experiment' else ''}{group}=NAME"


def _options(group: str) -> list[tuple[str, str]]:
    """Name and text of the YAML files of a group."""
    folder: Traversable = files("evomerge.conf").joinpath(group)
    found = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return [(f.name.removesuffix(".yaml"), f.read_text(encoding="utf-8")) for f in found]


def _yaml_of(group: str, name: str) -> dict[str, Any]:
    import yaml

    node = yaml.safe_load(dict(_options(group))[name])
    return dict(node) if isinstance(node, Mapping) else {}


def _says(name: str, group: str) -> str:
    """The first sentence on the component that a YAML file names."""
    node = _yaml_of(group, name)
    return _first(load_target(node, group)) + "\n\n" if TARGET in node else ""


def _comment(text: str) -> str:
    """The first sentence of a YAML file's comments."""
    lines = [line for line in text.split("\n") if "@package" not in line]
    kept = []
    for line in lines:
        if not line.startswith("#"):
            break
        kept.append(line.lstrip("# "))
    first = " ".join(kept).split("  ")[0]
    return re.split(r"(?<=[.?!])\s", first)[0]


def _chosen() -> dict[str, str | None]:
    """Which choice each group has where nobody makes one."""
    import yaml

    text = files("evomerge.conf").joinpath("config.yaml").read_text(encoding="utf-8")
    entries: Sequence[Any] = yaml.safe_load(text)["defaults"]
    found: dict[str, str | None] = {}
    for entry in entries:
        if isinstance(entry, Mapping):
            found.update({k: v for k, v in entry.items() if not k.startswith("override")})
    return found


# -- docstrings -------------------------------------------------------------------------------


def described(component: Any, section: str) -> dict[str, str]:
    """What a section of a docstring (`Args`, `Attributes`) says of each name."""
    text = inspect.getdoc(component) or ""
    found = re.search(rf"^{section}:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    out: dict[str, str] = {}
    name = ""
    for line in found[1].split("\n") if found else ():
        if entry := re.match(r"    (\w+): (.*)", line):
            name = entry[1]
            out[name] = entry[2]
        elif line.strip() and name:
            out[name] += " " + line.strip()
    return out


def _paragraphs(component: Any) -> str:
    """A docstring without its sections."""
    text = inspect.getdoc(component) or ""
    return re.split(r"^(?:Args|Attributes|Raises|Returns):$", text, flags=re.MULTILINE)[0].strip()


def _first(component: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(component) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0]


def _table(
    head: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]
) -> Iterator[str]:
    cells = [tuple(head), tuple("---" for _ in head), *rows]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells)
    yield "\n".join(f"| {line} |" for line in lines) + "\n"


def _kind(annotation: Any) -> str:
    """A type in words."""
    text = str(annotation)
    if text.startswith("dict"):
        return "mapping or null" if text.endswith("None") else "mapping"
    if inner := re.fullmatch(r"list\[(.*)\]", text):
        return f"list ({_kind(inner[1])})"
    return " or ".join(_WORDS.get(part, part) for part in text.split(" | "))


def _yaml(value: Any) -> str:
    """A default as one would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value else '""'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    empty = value == {} or str(value) == "<factory>"  # how a signature shows a made default
    return "{}" if empty else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
