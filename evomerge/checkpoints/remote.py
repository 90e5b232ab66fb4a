"""What a study would have to download, asked of the hub before anything is fetched."""

from __future__ import annotations

from pathlib import Path

from evomerge.checkpoints.locate import cached, hub_error, is_hub_name
from evomerge.errors import SourceError


def download_size(ref: str, field: str = "model") -> int:
    """Bytes of weights that a reference still needs from the hub; 0 if it is on this machine.

    Args:
        ref: a directory or a hub name, or two with a `+` between them (model and adapter).
        field: the config key that names it, for error messages.

    Raises:
        SourceError: if the hub does not have it in safetensors or cannot be reached.
    """
    if "+" in ref and not Path(ref).exists():
        return sum(download_size(part, field) for part in ref.rsplit("+", 1))
    if not is_hub_name(ref) or Path(ref).exists() or cached(ref) is not None:
        return 0
    from huggingface_hub import HfApi

    name, _, revision = ref.partition("@")
    try:
        info = HfApi().model_info(name, revision=revision or None, files_metadata=True, timeout=20)
    except Exception as error:  # the hub client raises many unrelated types
        raise hub_error(ref, field, error) from error
    files = [s for s in info.siblings or [] if s.rfilename.endswith(".safetensors")]
    if not files:
        raise SourceError.of(
            field, f"no safetensors files in {ref} on the hub",
            "safetensors files, since unpickling can run code",
            f"Convert it once with transformers, then set {field}=PATH.",
        )  # fmt: skip
    return sum(s.size or 0 for s in files)
