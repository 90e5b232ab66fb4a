"""Builds tasks of the lm-eval harness, and refuses those that would run code unasked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import Problem, TaskError
from evomerge.tasks import lm_eval_index


@dataclass(frozen=True)
class Loaded:
    """What a name of the harness stands for.

    Attributes:
        tasks: the harness's task objects by name; of a group or tag, all that it holds.
        group: the harness's `Group`; None for a task or a tag.
        release: of the harness.
    """

    tasks: dict[str, Any]
    group: Any
    release: str


def load(name: str, include_path: str | None, allow_code: bool, key: str) -> Loaded:
    """Builds the harness's tasks, data sets included.

    Args:
        name: of a task, a group or a tag.
        include_path: a folder of task YAMLs of the user's own.
        allow_code: run Python code that these name, and metrics that are downloaded as code.
        key: config key of the task, for messages.

    Raises:
        TaskError: if the harness is absent, knows no such task, or cannot build it; if its data
            set is not there; if code would have to be run that nobody allowed.
    """
    release = lm_eval_index.installed(key)
    folder = Path(include_path).expanduser().resolve() if include_path else None
    if folder is not None and not folder.is_dir():
        raise TaskError.of(
            f"{key}.include_path", str(include_path), "a folder of task YAMLs", "Correct it."
        )
    with quiet():
        manager = lm_eval_index.find_manager(name, folder, key)
        entries = lm_eval_index.entries(manager, name)
        problems = [p for entry in entries for p in _unsafe(entry, allow_code, key)]
        if problems:
            raise TaskError(list(dict.fromkeys(problems)))
        _fill_templates(bounded=not allow_code)
        try:
            loaded = manager.load([name])
        except Exception as error:  # of the harness, of datasets, or of a task's own code
            raise TaskError.of(
                f"{key}.task", f"{name!r}, which cannot be built ({_told(error)})",
                "a task whose data set is on this machine or can be downloaded",
                "Without internet, load the data set once where there is one and copy the folder "
                "HF_HOME; or give the task's YAML files: dataset_path: json, and "
                "dataset_kwargs.data_files.",
            ) from error  # fmt: skip
    for one, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise TaskError.of(
                f"{key}.task", f"{one!r}, which runs a model's code or asks about images or sound",
                "a task of text only", "Use another one.",
            )  # fmt: skip
    return Loaded(loaded["tasks"], loaded.get("groups", {}).get(name), release)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the harness's and the data sets' progress and advice off the screen."""
    from datasets.utils import logging as shown

    logger = logging.getLogger("lm_eval")
    before, bars = logger.level, shown.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    shown.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            shown.enable_progress_bar()


def _unsafe(entry: Any, allow_code: bool, key: str) -> Iterator[Problem]:
    """What speaks against building a task, of its files alone."""
    config = _settings(entry)
    named = f"{key}.task"
    if config.get("unsafe_code"):
        yield Problem(
            named, f"{entry.name!r}, which runs the code that a model writes",
            "a task that does not", "Use another one; evomerge has no sandbox for it.",
        )  # fmt: skip
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        yield Problem(named, f"{entry.name!r}, which asks about images or sound",
                      "a task of text only", "Use another one.")  # fmt: skip
    if allow_code:
        return
    for path in _own_files(entry):
        if _has_function(path):
            yield Problem(
                f"{key}.include_path", f"Python code (!function) in {path.name}",
                "task YAMLs without code", f"Read the code, then set {key}.allow_code=true.",
            )  # fmt: skip
    if (config.get("dataset_kwargs") or {}).get("trust_remote_code"):
        yield Problem(
            named, f"{entry.name!r}, whose data set comes with code (trust_remote_code)",
            "data without code", f"Set {key}.allow_code=true if you trust it.",
        )  # fmt: skip
    for metric in _downloaded_metrics(config):
        yield Problem(
            named, f"{entry.name!r}, whose metric {metric!r} is code that would be downloaded",
            "metrics of the harness", f"Set {key}.allow_code=true if you trust the hub's evaluate.",
        )  # fmt: skip


def _settings(entry: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.yaml_path is not None:
        return dict(load_yaml(entry.yaml_path, resolve_func=False))
    return dict(entry.cfg or {})


def _downloaded_metrics(config: dict[str, Any]) -> Iterator[str]:
    import lm_eval.api.metrics  # noqa: F401, fills the registry
    from lm_eval.api.registry import metric_registry

    if config.get("process_results") is not None:
        return
    for one in config.get("metric_list") or ():
        name = one.get("metric") if isinstance(one, dict) else None
        local = isinstance(name, str) and (name in metric_registry or ".py" in name or "/" in name)
        if isinstance(name, str) and (one.get("hf_evaluate") or not local):
            yield name


def _own_files(entry: Any) -> Iterator[Path]:
    """The files of an entry that do not come with the harness: its own and what it includes."""
    import lm_eval

    package = Path(str(lm_eval.__file__)).resolve().parent
    queue, seen = [entry.yaml_path] if entry.yaml_path is not None else [], set[Path]()
    while queue:
        path = Path(queue.pop()).expanduser().resolve()
        if path in seen or package in path.parents:
            continue
        seen.add(path)
        yield path
        root = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
        for at, value in getattr(root, "value", ()):
            if getattr(at, "value", None) == "include":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                queue += [path.parent / str(part.value) for part in parts]


def _has_function(path: Path) -> bool:
    tokens = yaml.scan(path.read_bytes(), Loader=yaml.SafeLoader)
    return any(isinstance(one, yaml.TagToken) and one.value[1] == "function" for one in tokens)


def _fill_templates(bounded: bool) -> None:
    """Lets the harness compile each template once, and fill it in Jinja's sandbox if need be.

    Templates come from files. The harness compiles them for every document, which takes most of
    the time that its prompts take.

    Args:
        bounded: in the sandbox.
    """
    from jinja2 import Environment, Template
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    kind: type[Environment] = SandboxedEnvironment if bounded else Environment

    class Compiled(kind):  # type: ignore[valid-type,misc]
        @lru_cache(maxsize=1024)  # noqa: B019, as one or two of these live as long as the process
        def from_string(self, source: str) -> Template:
            return super().from_string(source)

    if type(utils.env).__mro__[1] is not kind:
        env = Compiled(
            loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=True
        )
        env.filters.update(utils.env.filters)
        utils.env = env


def _told(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]
