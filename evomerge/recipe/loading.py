"""YAML files, without its traps: doubled keys, endless aliases, bottomless nesting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import RecipeError

BYTES = 4 * 2**20
NODES = 1_000_000
DEPTH = 150
"""Largest file, most values with every alias written out, deepest nesting of collections."""


class TooMuchError(Exception):
    """Data that is too large, too deep or contains itself; the text says which."""


def load_yaml(path: Path) -> Any:
    """Plain data of a YAML file.

    Raises:
        RecipeError: naming the file, and the line where there is one.
    """
    try:
        if path.stat().st_size > BYTES:
            raise RecipeError.of(
                str(path), f"{path.stat().st_size} bytes", f"at most {BYTES}", "Check the path."
            )
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        field = f"{path}: line {mark.line + 1}" if mark else str(path)
        found = " ".join(f"{error.problem or error} {error.context or ''}".split())
        raise _unreadable(field, found) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(str(path), " ".join(str(error).split())) from error


def check_size(root: Any, children: Callable[[Any], Iterable[Any]]) -> None:
    """Refuses data whose parts, counted as often as they are referred to, are too many.

    Takes time in the number of distinct parts, so a few lines that stand for billions of
    values through aliases of aliases are refused at once.

    Raises:
        TooMuchError: if there are more than `NODES`, nested deeper than `DEPTH`, or in a circle.
    """
    sizes: dict[int, tuple[int, int]] = {}
    open_: set[int] = set()

    def visit(part: Any, depth: int) -> tuple[int, int]:
        if id(part) in sizes:
            return sizes[id(part)]
        if id(part) in open_:
            raise TooMuchError("a value that contains itself")
        if depth > DEPTH:
            raise TooMuchError(f"values nested more than {DEPTH} deep")
        open_.add(id(part))
        count, height = 1, 1
        for child in children(part):
            more, below = visit(child, depth + 1)
            count, height = count + more, max(height, below + 1)
            if count > NODES:
                raise TooMuchError(f"more than {NODES} values")
            if height > DEPTH:
                raise TooMuchError(f"values nested more than {DEPTH} deep")
        open_.remove(id(part))
        sizes[id(part)] = count, height
        return count, height

    visit(root, 1)


class _Loader(yaml.SafeLoader):
    """Reads one document whose nodes have passed the checks."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEPTH:
            raise _yaml_error(f"values nested more than {DEPTH} deep", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            try:
                check_size(node, self._children)
            except TooMuchError as error:
                raise _yaml_error(f"{error}, with all aliases written out", node) from error
        return node

    def _children(self, node: Any) -> list[Any]:
        """Nodes below one; each node comes here once, whatever refers to it."""
        # Tags are checked since a wrong one (`!!bool maybe`) makes PyYAML fail in odd ways.
        text = isinstance(node, yaml.ScalarNode) and node.tag == self.DEFAULT_SCALAR_TAG
        if not text and node.tag != self.resolve(type(node), node.value, (True, False)):
            raise _yaml_error(f"the tag {node.tag}", node)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    raise _yaml_error(f"the key {key.value[:80]} a second time", key)
                if isinstance(key, yaml.ScalarNode):
                    seen.add((key.tag, key.value))
            return [part for pair in node.value for part in pair]
        return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _yaml_error(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unreadable(field: str, found: str) -> RecipeError:
    return RecipeError.of(field, found, "a readable YAML file", "Check the path and the syntax.")
