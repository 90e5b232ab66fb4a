"""Puts an exported folder on the Hugging Face hub, private unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, EvomergeError, UserError
from evomerge.markdown import printable


def check_upload(name: str, public: bool, flags: Sequence[str], accepted: bool) -> None:
    """Checks all that can be checked before the work: name, licences, token, the repository.

    Args:
        name: `owner/model` or `model`.
        public: whether others shall see it.
        flags: what stands against passing the merge on.
        accepted: whether the user takes that on themselves.

    Raises:
        UserError: for a name that cannot be, flags that were not accepted, no token, and a
            public repository that is to hold a private model.
        EvomergeError: if the hub cannot be asked.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError.of(
            "--push-to-hub", repr(name), "a repository such as owner/model", "Correct the name."
        ) from error
    if flags and not accepted:
        raise UserError.of(
            "--push-to-hub", " ".join(flags), "licences of the parents that permit it",
            "Clear that up first; --accept-licence-conflict uploads it all the same. Without "
            "--push-to-hub, the merge is written to this machine only.",
        )  # fmt: skip
    api = _api()
    try:
        api.whoami()
    except Exception as error:  # the hub client raises many unrelated types
        if _status(error) in (401, 403):
            raise _no_token("a token that the hub refuses") from error
        raise _unreachable(name, error) from error
    try:
        private = bool(api.model_info(name).private)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise _unreachable(name, error) from error
    if not private and not public:
        raise UserError.of(
            "--push-to-hub", f"the public repository {name}", "a private one, or a new name",
            "Choose another name, or say --public.",
        )  # fmt: skip


def upload(folder: Path, name: str, public: bool, message: str) -> str:
    """Uploads a folder as one commit; returns its address.

    Raises:
        EvomergeError: if the hub does not take it; the folder stays as it is.
    """
    api = _api()
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message=message
        )
    except Exception as error:  # the hub client raises many unrelated types
        raise EvomergeError(
            f"{folder} is complete on this machine, but {name} could not be uploaded "
            f"({_reason(error)}). To try again: hf upload {name} {folder}"
        ) from error
    return str(getattr(done, "commit_url", "") or repository)


def _api() -> Any:
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise ConfigError.of(
            "--push-to-hub", "no huggingface_hub", "that package", "pip install huggingface_hub"
        ) from error
    if not get_token():
        raise _no_token("no token of the hub")
    return HfApi()


def _no_token(found: str) -> UserError:
    return UserError.of(
        "--push-to-hub", found, "one with the right to write",
        "Run hf auth login, or set HF_TOKEN.",
    )  # fmt: skip


def _unreachable(name: str, error: Exception) -> EvomergeError:
    return EvomergeError(
        f"the hub could not be asked about {name} ({_reason(error)}); nothing was written. "
        "Export without --push-to-hub, and upload the folder later: hf upload NAME OUT"
    )


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception) -> str:
    text = printable(str(error))[:200]
    return text or type(error).__name__
