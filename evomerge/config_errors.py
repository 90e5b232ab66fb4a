"""What Hydra and OmegaConf say of a mistake, in the form of this program's messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError

CONFIG_MODULE = "evomerge.conf"
_KINDS = {
    "integer": "a whole number", "int": "a whole number", "float": "a number",
    "boolean": "true or false", "bool": "true or false", "string": "a text", "str": "a text",
}  # fmt: skip


def explained(
    error: Exception,
    beside: Callable[[str], list[str]] = lambda parent: [],
    directory: Path | None = None,
) -> ConfigError:
    """Hydra's and OmegaConf's messages in the form of this program's.

    Args:
        error: of theirs.
        beside: what names the keys below a dotted one.
        directory: of the user's own YAML files.
    """
    text = str(error)
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}\n{cause}"
    missing = re.search(r"Could not find '([\w@.]+)/([^']+)'", text)
    if missing:
        group, name = missing.groups()
        known = options(group.split("@")[0], directory)
        close = get_close_matches(name, known, n=1)
        return ConfigError.of(
            group, repr(name), f"one of {', '.join(known)}",
            f"Did you mean {close[0]}?" if close else "Add a YAML file, or correct the name.",
        )  # fmt: skip
    key = re.search(r"full_key: (\S+)", text)
    named = re.search(r"(?:override|find) '?([\w./@]+)'?", text)
    field = key.group(1) if key else named.group(1) if named else "config"
    bare = re.search(r"Error parsing override '([^'=]*)'", text)
    if bare:
        return ConfigError.of(
            bare[1], "a word without a value", "KEY=VALUE",
            _experiment_meant(bare[1], directory) or f"Write {bare[1]}=VALUE.",
        )  # fmt: skip
    plus = re.search(r"To append to your default list use (\+[^\s=]+)=", text)
    if plus:
        return ConfigError.of(
            field, "a choice that the experiment does not make", f"{plus[1]}=NAME, with a plus",
            f"Write {plus[1]}=NAME.",
        )  # fmt: skip
    if "is not in struct" in text:
        parent, _, last = field.rpartition(".")
        close = get_close_matches(last, beside(parent), n=1)
        if close:
            return ConfigError.of(
                field, "an unknown key", "a key that is there", f"Did you mean {parent}.{close[0]}?"
            )
        return ConfigError.of(
            field, "a key that the YAML does not hold", "one of its keys",
            f"Correct the name, or add it with a plus: +{field}=VALUE.",
        )  # fmt: skip
    if (other := _another_kind(field, text)) is not None:
        return other
    dropped = r"(full_key|object_type|reference_type|To append|Config search path|provider=)"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(dropped, line)]
    known = _keys_beside(field)
    close = get_close_matches(field.split(".")[-1], known, n=1, cutoff=0.6)
    unknown = field.split(".")[-1] not in known
    hint = f"Did you mean {close[0]}?" if close and unknown else "See python -m evomerge --help."
    expected = f"one of {', '.join(known)}" if known and unknown else "a value of the schema"
    return ConfigError.of(field, "; ".join(dict.fromkeys(kept))[:600], expected, hint)


def _another_kind(field: str, text: str) -> ConfigError | None:
    """A value of another kind than its key takes; None if the message says something else."""
    key = re.search(r"override '?([\w./@]+)'?=", text)
    below = re.search(r"Cannot convert 'dict' to (\w+)|of type 'dict' could not .* to (\w+)", text)
    if below:
        kind = _KINDS.get((below[1] or below[2]).lower(), "a value")
        inner = key[1] if key else f"{field}.KEY"
        return ConfigError.of(
            field, f"a key below it, {inner}", f"{kind}: it has no keys", f"Write {field}=VALUE."
        )
    value = re.search(r"Value '(.*)' (?:of type '\w+' could not .* to|is not a valid) (\w+)", text)
    if not value:
        return None
    return ConfigError.of(
        field, repr(value[1]), _KINDS.get(value[2].lower(), value[2]), f"Write {field}=VALUE."
    )


def study_meant(word: str) -> str:
    """What to write instead of a word that is neither a verb nor KEY=VALUE."""
    name = Path(word).stem
    if word.endswith((".yaml", ".yml")):
        return f"A study of your own: --config-dir DIR +experiment={name}, of DIR/experiment/."
    return _experiment_meant(word) or (
        "A study is run without a verb: python -m evomerge +experiment=NAME."
    )


def _experiment_meant(word: str, directory: Path | None = None) -> str:
    """A question whether the experiment of that name was meant; empty if there is none."""
    known = word in options("experiment", directory)
    return f"Did you mean +experiment={word}?" if known else ""


def options(group: str, directory: Path | None = None) -> list[str]:
    """Names of a group: those of `conf/`, and of the same folder of the user's own directory."""
    from importlib.resources import files

    folders = [files(CONFIG_MODULE), *([directory] if directory else [])]
    names = [
        f.name for d in folders if d.joinpath(group).is_dir() for f in d.joinpath(group).iterdir()
    ]
    return sorted({n.removesuffix(".yaml") for n in names if n.endswith(".yaml")})


def _keys_beside(field: str) -> list[str]:
    """Keys of the schema at the level of a dotted field; none where any key may stand."""
    from dataclasses import fields, is_dataclass

    from evomerge.config import Config

    node: Any = Config()
    for part in field.split(".")[:-1]:
        node = getattr(node, part, None)
    return [f.name for f in fields(node)] if is_dataclass(node) else []
