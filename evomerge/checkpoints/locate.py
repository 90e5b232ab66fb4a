"""From a model reference to a directory: a local path, or a model on the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from evomerge.errors import SourceError

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_UNWANTED = ["consolidated*", "original/*"]
_WANTED = ["*.safetensors", "*.json", "*.model", "tokenizer*", "*.jinja", "*.txt"]


def locate(ref: str, field: str = "model", pickled: bool = False) -> Path:
    """Directory of a model or adapter; one that is on the hub only is downloaded first.

    Args:
        ref: a directory, or `organisation/name[@revision]` on the Hugging Face hub.
        field: the config key that names it, for error messages.
        pickled: whether `.bin` weights are wanted, too.

    Raises:
        SourceError: if it is neither here nor on a hub that can be reached.
    """
    try:
        path = Path(ref).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError.of(
            field, f"{ref} ({error})", "a model directory that can be read", "Correct the path."
        ) from error
    if is_folder and ref:
        return path
    if exists and ref:
        raise SourceError.of(field, f"the file {ref}", "a model's directory", "Give its folder.")
    if not is_hub_name(ref):
        raise SourceError.of(
            field,
            f"no directory {ref}",
            "a model directory or a hub name such as org/model",
            "Correct the path."
            if "[" in field or "." not in field
            else f"Correct the path, or set it: {field}=PATH.",
        )
    return _from_hub(ref, field, pickled)


def is_hub_name(ref: str) -> bool:
    """Whether a reference could be `organisation/name[@revision]`, not a path."""
    return not ref.startswith((".", "/", "~")) and bool(_HUB_NAME.match(ref))


def cached(ref: str, pickled: bool = False) -> Path | None:
    """The cached snapshot of a hub model, or None if its weights are not all there."""
    from huggingface_hub import snapshot_download

    name, _, revision = ref.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if _has_weights(folder, pickled) else None


def hub_error(ref: str, field: str, error: Exception) -> SourceError:
    """What to tell of a model that the hub did not give."""
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return SourceError.of(
        field,
        f"{ref} is not on this machine and the hub did not give it ({reason})",
        "a model directory, a cached model or a reachable hub",
        f"Download it where there is a network, then set {field}=PATH.",
    )


def _from_hub(ref: str, field: str, pickled: bool) -> Path:
    from huggingface_hub import snapshot_download

    here = cached(ref, pickled)
    if here is not None:
        return here
    name, _, revision = ref.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=[*_WANTED, *(["*.bin"] if pickled else [])],
                ignore_patterns=_UNWANTED,
            )
        )
    except Exception as error:  # the hub client raises many unrelated types
        raise hub_error(ref, field, error) from error


def _has_weights(folder: Path, pickled: bool) -> bool:
    """Whether the weight files, and every shard of an index, are in a folder."""
    singles = ["model.safetensors", "adapter_model.safetensors"]
    indices = ["model.safetensors.index.json"]
    if pickled:
        singles += ["pytorch_model.bin", "adapter_model.bin"]
        indices += ["pytorch_model.bin.index.json"]
    index = next((folder / name for name in indices if (folder / name).is_file()), None)
    if index is None:
        return any((folder / name).is_file() for name in singles)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return all((folder / str(file)).is_file() for file in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # damaged, not incomplete: the checkpoint names what is wrong
