"""Writes a merged model as an ordinary checkpoint, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.card import merge_card
from evomerge.checkpoints.merged import MergedModel
from evomerge.checkpoints.merger import Merger, Pending
from evomerge.checkpoints.parts import Assembly
from evomerge.checkpoints.tensor_file import Entry, write_shards
from evomerge.checkpoints.tokenizer_files import (
    choose_chat_template,
    copy_tokenizer,
    write_chat_template,
)
from evomerge.checkpoints.vocabulary import VocabularyPlan, moved_ids, write_tokenizer
from evomerge.checkpoints.whole_folder import check_free, whole_folder
from evomerge.errors import UserError
from evomerge.recipe import Recipe

_GENERATION = "generation_config.json"
_OTHER = (
    _GENERATION, "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
SHARD_BYTES = 5 << 30
_TITLE, _ABOUT = "Merged model", "A merge made by evomerge."

Report = Callable[[int, int], None]
"""Is told how many of how many tensors are written."""


def write_checkpoint(
    recipe: Recipe,
    merger: Merger,
    out: Path,
    extra: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report | None = None,
    assembly: Assembly | None = None,
) -> None:
    """Merges a recipe and writes it to a new directory, tokenizer and config included.

    Config and tokenizer are the base's (the first source's without a base), unless the recipe
    says otherwise; a model card names the parents.

    Args:
        recipe: what to merge.
        merger: holds the open sources.
        out: must not exist; appears only when it is complete.
        extra: further text files, name to content; `README.md` replaces the model card.
        shard_bytes: largest size of one weight file.
        report: called with the number of tensors written and that of all.
        assembly: of the recipe, where the caller has planned it already.

    Raises:
        UserError: if `out` exists or the disk has too little room.
        EvomergeError: if the disk fills or fails, or if the merged weights are not finite in
            the recipe's dtype; nothing is left behind.
    """
    check_free(out)
    assembly = assembly or merger.assemble(recipe)
    entries = [Entry(p.name, p.shape, p.dtype) for p in assembly.parts]
    check_room(out, output_bytes(assembly))
    files = {
        "README.md": merge_card(_TITLE, _ABOUT, recipe, merger.identities(recipe)),
        **(extra or {}),
    }
    with whole_folder(out, files) as temporary:
        tensors = _counted(merger.stream(assembly), len(entries), report)
        write_shards(temporary, entries, tensors, shard_bytes)
        _write_rest(recipe, merger, assembly, temporary)


def output_bytes(assembly: Assembly) -> int:
    """Bytes of the tensors that a merge writes."""
    return sum(Entry(p.name, p.shape, p.dtype).bytes for p in assembly.parts)


def check_room(out: Path, needed: int) -> None:
    """Checks that a disk has room for a file or folder.

    Raises:
        UserError: with what there is and what is needed.
    """
    free = shutil.disk_usage(existing_folder(out.absolute().parent)).free
    if free < needed:
        raise UserError.of(
            str(out), f"{free / 1e9:.2f} GB free on its disk",
            f"{needed / 1e9:.2f} GB for the merged model",
            "Free some space or choose another disk.",
        )  # fmt: skip


def existing_folder(folder: Path) -> Path:
    """The nearest folder above (or itself) that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _counted(tensors: Iterable[Pending], total: int, report: Report | None) -> Iterator[Pending]:
    for done, pending in enumerate(tensors):
        if report is not None:
            report(done, total)
        yield pending
    if report is not None:
        report(total, total)


def _write_rest(recipe: Recipe, merger: Merger, assembly: Assembly, folder: Path) -> None:
    """Config, generation config, tokenizer and chat template."""
    config = _with_dtype(assembly.config, recipe.dtype)
    if recipe.dtype is not None and "dtype" not in config and "torch_dtype" not in config:
        config["torch_dtype"] = recipe.dtype
    _write_json(folder / "config.json", config)
    donor, vocabulary = assembly.donor.path, _vocabulary(assembly)
    for name in _OTHER:
        if (donor / name).is_file():
            shutil.copyfile(donor / name, folder / name)
    if vocabulary is not None and (folder / _GENERATION).is_file():
        settings = json.loads((folder / _GENERATION).read_text(encoding="utf-8"))
        _write_json(folder / _GENERATION, {**settings, **moved_ids(vocabulary, settings)})
    models = {ref: merger.checkpoint(ref) for ref in recipe.models()}
    template = choose_chat_template(recipe.chat_template, models)
    if vocabulary is not None:
        write_tokenizer(vocabulary, folder, template)
        return
    copy_tokenizer(donor, folder)
    if template is not None:
        write_chat_template(folder, template)


def _vocabulary(assembly: Assembly) -> VocabularyPlan | None:
    """What the tokenizer is written from: the recipe's, or that of a merge in the donor's place."""
    while assembly.vocabulary is None and isinstance(assembly.donor, MergedModel):
        assembly = assembly.donor.assembly
    return assembly.vocabulary


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """A config and its parts (`text_config`) with another dtype, if any, and without a path."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            out[key] = _with_dtype(value, dtype)
        elif key != "_name_or_path":
            out[key] = dtype if dtype and key in ("dtype", "torch_dtype") else value
    return out
