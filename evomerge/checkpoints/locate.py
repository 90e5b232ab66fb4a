"""From a model reference to a directory: a local path, or a model on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.errors import SourceError

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
_WANTED = ["*.safetensors", "*.json", "*.model", "tokenizer*", "*.jinja", "*.txt"]


def locate(ref: str, field: str = "model") -> Path:
    """Directory of a model; one that is on the hub only is downloaded first.

    Args:
        ref: a directory, or `organisation/name[@revision]` on the Hugging Face hub.
        field: the config key that names it, for error messages.

    Raises:
        SourceError: if it is neither here nor on a hub that can be reached.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise SourceError.of(field, f"the file {ref}", "a model's directory", "Give its folder.")
    if ref.startswith((".", "/", "~")) or not _HUB_NAME.match(ref):
        raise SourceError.of(
            field,
            f"no directory {ref}",
            "a model directory or a hub name such as org/model",
            f"Correct the path, or set it: {field}=PATH.",
        )
    return _from_hub(ref, field)


def _from_hub(ref: str, field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = ref.partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=_WANTED, local_files_only=True
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # not in the cache: ask the hub
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=_WANTED)
        )
    except Exception as error:  # the hub client raises many unrelated types
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise SourceError.of(
            field,
            f"{ref} is not on this machine and the hub did not give it ({reason})",
            "a model directory, a cached model or a reachable hub",
            f"Download it where there is a network, then set {field}=PATH.",
        ) from error
