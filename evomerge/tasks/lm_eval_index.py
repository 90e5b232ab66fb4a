"""Finds tasks of the lm-eval harness by name, without reading all of its thousands of files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError

LEAST = (0, 4, 13)
"""The oldest release of the harness that this was tested with."""

_NAMES = re.compile(rb"^(?:task|group)[ \t]*:[ \t]*['\"]?([^\s'\"#\[{]+)", re.MULTILINE)
_TAGS = re.compile(rb"^tag[ \t]*:(.*(?:\n[ \t]*-[ \t]*\S+)*)", re.MULTILINE)


def installed(key: str) -> str:
    """The release of the harness.

    Raises:
        TaskError: if it is absent or too old.
    """
    try:
        found = version("lm_eval")
    except PackageNotFoundError:
        found = ""
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:3])
    if numbers < LEAST or find_spec("lm_eval") is None:
        raise TaskError.of(
            f"{key}._target_",
            f"lm_eval {found}" if found else "no lm_eval, which such a task needs",
            f"lm_eval {'.'.join(map(str, LEAST))} or newer",
            "Install it: pip install 'evomerge[lm-eval]'.",
        )
    return found


def find_manager(name: str, include_path: Path | None, key: str) -> Any:
    """The harness's `TaskManager` of a few folders that hold a task and all its members.

    The user's folder goes before the harness's own ones. Indexing all of these takes minutes on a
    busy machine, so only those are read whose files name the task.

    Args:
        name: of a task, a group or a tag.
        include_path: the user's folder of task files.
        key: config key of the task, for messages.

    Raises:
        TaskError: if there is no such task.
    """
    own = (include_path,) if include_path is not None else ()
    places = _places()
    folders: set[Path] = set()
    while True:
        manager = _manager((*sorted(folders, reverse=True), *own))
        wanted = list(_absent(manager.task_index, name))
        if not wanted:
            return manager
        more = {folder for one in wanted for folder in places.get(one, ())} - folders
        if not more:
            _refuse(name, wanted, [*places, *manager.task_index], include_path, key)
        folders |= more


def entries(manager: Any, name: str) -> list[Any]:
    """The harness's entries that a name stands for: itself, and all members of a group or tag."""
    index = manager.task_index
    out = [index[name]]
    for member in _members(index[name]):
        if member in index:
            out += entries(manager, member)
    return out


@cache
def _manager(folders: tuple[Path, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=False)


def _absent(index: Mapping[str, Any], name: str) -> Iterator[str]:
    """Names that a task needs and an index lacks."""
    if name not in index:
        yield name
        return
    for member in _members(index[name]):
        yield from _absent(index, member)


def _members(entry: Any) -> Iterator[str]:
    """Names of the direct members of a group or tag; those that are defined inline have none."""
    yield from sorted(entry.tags) if entry.kind.name == "TAG" else ()
    if entry.kind.name == "GROUP":
        yield from _listed((entry.cfg or {}).get("task"))


def _listed(members: Any) -> Iterator[str]:
    for one in [members] if isinstance(members, str) else members or ():
        if isinstance(one, str):
            yield one
        elif isinstance(one.get("task"), list):
            yield from _listed(one["task"])
        elif "dataset_path" not in one and "class" not in one:
            yield str(one.get("task") or one.get("group"))


@cache
def _places() -> dict[str, frozenset[Path]]:
    """Where the harness's own tasks are named: name of a task, group or tag to its folders."""
    import lm_eval.tasks

    root = Path(str(lm_eval.tasks.__file__)).parent
    found: dict[str, set[Path]] = {}
    for path in root.rglob("*.yaml"):
        for name in _named(path.read_bytes()):
            folder = root / path.relative_to(root).parts[0]
            found.setdefault(name, set()).add(folder)
    return {name: frozenset(folders) for name, folders in found.items()}


def _named(text: bytes) -> Iterable[str]:
    names = _NAMES.findall(text)
    for block in _TAGS.findall(text):
        names += re.findall(rb"[^\s'\"\[\],-][^\s'\"\[\],]*", block)
    return [name.decode("utf-8", "replace") for name in names]


def _refuse(
    name: str, absent: Sequence[str], known: Sequence[str], include_path: Path | None, key: str
) -> None:
    where = "the lm-eval harness" + (f" or {include_path}" if include_path else "")
    close = get_close_matches(absent[0], sorted(set(known)), n=3)
    hint = f"Did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them."
    found = repr(name) if absent[0] == name else f"{name!r}, whose member {absent[0]!r} is unknown"
    raise TaskError.of(f"{key}.task", found, f"a task, group or tag of {where}", hint)
