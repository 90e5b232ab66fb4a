"""Models of different vocabularies: which tokens the merge gets and where their rows come from.

What `tokenizer_source` and `tokenizer` of mergekit's YAML mean, with these differences on purpose:

- Union: new tokens get their ids model by model in the recipe's order and by id within a model.
  There both orders are those of hash tables and change from run to run.
- A token whose id is beyond the model's rows is absent; there it is a KeyError outside the base.
- A token that a rule adds is new to the base, too; there, with source `base`, the base is taken
  to have it in a spare row of its padding.
- `default` rules, with `force` or without, choose the row as if there were no rule; there they
  are not implemented.
- Ids of special tokens in the config follow their tokens; there only `vocab_size` changes.
- Means are taken in float32, there in the dtype of the file.
- Stripping tokens without a row works for all kinds of tokenizer, there for BPE only, and not if
  one is the result of a BPE merge.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.remapped import (
    ABSENT,
    Donor,
    check_widths,
    donor_of,
    is_size,
    remap_rows,
    rows_of,
    text_parts,
    vocabulary_tensors,
)
from evomerge.checkpoints.tokenizer_files import (
    FILES,
    SLOW_FILES,
    choose_chat_template,
    copy_tokenizer,
    read_object,
    write_chat_template,
    write_object,
)
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.weight import Weight
from evomerge.recipe.data import Tokenizer

_ID = re.compile(r"_token_(id|index)$")


@dataclass(frozen=True, eq=False)
class VocabularyPlan:
    """The vocabulary of a merge.

    Attributes:
        tokens: of the output, to their ids.
        rows: of the output's embeddings; beyond the tokens there is padding.
        mappings: for each model int64 of length `rows`, output row to the model's row or -1.
        vocabularies: for each model the tokens that have a row, to that row.
        members: models that are merged; others only give a tokenizer.
        base: whose row a model gets for a token that it lacks and several others have.
        donors: output rows with a rule.
        template: the model whose config the output starts from.
        start: the model whose tokenizer files the output starts from.
        tokenizer: the output's `tokenizers.Tokenizer`.
        changed: whether it differs from the one of `start`.
        notes: what the user should know, sentence by sentence.
    """

    tokens: Mapping[str, int]
    rows: int
    mappings: Mapping[str, Tensor]
    vocabularies: Mapping[str, Mapping[str, int]]
    members: tuple[str, ...]
    base: str
    donors: Mapping[int, Donor]
    template: Model
    start: Model
    tokenizer: Any
    changed: bool
    notes: tuple[str, ...]

    def remap(
        self, weights: Mapping[str, Weight], members: Sequence[str] | None = None
    ) -> dict[str, Weight]:
        """One tensor of all models, each with the rows of the output's vocabulary.

        Args:
            weights: model to `its rows x ...`; models that only rules name may be among them.
            members: the models that are merged into this tensor, the plan's by default. A missing
                row comes from the only member that has the token, else from the base if it is
                a member and has it, else from the mean of those that have it.

        Raises:
            SourceError: if the shapes differ beyond the rows, or a rule's donor is missing.
        """
        merged = [ref for ref in (members or self.members) if ref in weights]
        return remap_rows(weights, self.mappings, merged, self.base, self.donors, self.tokens)


def plan_vocabulary(
    spec: Tokenizer,
    models: Mapping[str, Model],
    base: str | None,
    members: Iterable[str] | None = None,
) -> VocabularyPlan:
    """Decides which tokens the merge has and where each model has them.

    Args:
        spec: from the recipe.
        models: all models of the recipe by reference, the base included, in the recipe's
            order; one that is only `spec.source` or a rule's donor as well.
        base: the base's reference; None for the first of the members.
        members: models that are merged, a union being of these and the base; None for all.

    Raises:
        RecipeError: if the source, a rule's model or its token do not exist, a row is out of
            range or the padding is below 1.
        SourceError: if a tokenizer is missing that is needed or widths differ.
    """
    merged = tuple(models if members is None else members)
    base = merged[0] if base is None else base
    pad = spec.pad_to_multiple_of
    if pad is not None and pad < 1:
        raise RecipeError.of(
            "tokenizer.pad_to_multiple_of", str(pad), "a number of rows, 1 or more", "Correct it."
        )
    known = "`base`, `union` or one of " + ", ".join(models)
    if spec.source not in ("base", "union") and spec.source not in models:
        raise RecipeError.of("tokenizer.source", repr(spec.source), known, "Correct the name.")
    taken = {ref: vocabulary_tensors(models[ref]) for ref in merged}
    check_widths({ref: {n: models[ref].shapes[n] for n in taken[ref]} for ref in merged}, models)
    notes: list[str] = []
    limits = {ref: rows_of(model) for ref, model in models.items()}
    vocabularies = _vocabularies(models, base, limits, notes)
    start = models[base if spec.source in ("base", "union") else spec.source]
    tokenizer = start.tokenizer()
    if tokenizer is None:
        raise SourceError.of(
            start.field, f"no tokenizer.json in {start.ref}", "one, as the merge starts from it",
            "Save its tokenizer with transformers once, or choose another tokenizer.source.",
        )  # fmt: skip
    before = tokenizer.to_str()
    if spec.source in ("base", "union"):
        tokenizer = _strip(tokenizer, limits[base], start)
    if spec.source == "union":
        joined = {ref: m for ref, m in models.items() if ref in merged or ref == base}
        _add_union(tokenizer, joined, base, vocabularies, notes)
    for token in spec.tokens:
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_tokens([token])
    tokens = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    _check_ids(tokens, start)
    rows = max(len(tokens), max(tokens.values(), default=-1) + 1)
    rows = -(-rows // (pad or 1)) * (pad or 1)
    mappings = {ref: _mapping(tokens, vocabularies[ref], rows) for ref in models}
    donors = {
        tokens[token]: donor_of(token, rule, models, vocabularies, limits)
        for token, rule in spec.tokens.items()
    }
    nowhere = [t for t in tokens if all(t not in vocabularies[ref] for ref in merged)]
    nowhere = [t for t in nowhere if donors.get(tokens[t], Donor(default=True)).default]
    if nowhere:
        notes.append(f"No model has {_some(nowhere)}: the rows are zero.")
    return VocabularyPlan(
        tokens=tokens,
        rows=rows,
        mappings=mappings,
        vocabularies=vocabularies,
        members=merged,
        base=base,
        donors=donors,
        template=models[base],
        start=start,
        tokenizer=tokenizer,
        changed=tokenizer.to_str() != before,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class VocabularyDifference:
    """How the vocabularies of two models differ.

    Attributes:
        differing: tokens that only one has or that have another id.
        clashing: ids that mean one token in one model and another in the other; while it is
            0, rows can be merged by their numbers.
        example: one of them in words, a clashing one if there is any.
    """

    differing: int = 0
    clashing: int = 0
    example: str | None = None


def same_vocabulary(one: Model, other: Model) -> VocabularyDifference:
    """Compares two vocabularies; a model without `tokenizer.json` has any other's."""
    if _same_file(one, other):  # parsing takes a second for a large vocabulary
        return VocabularyDifference()
    a, b = one.vocabulary, other.vocabulary
    if not a or not b or a == b:
        return VocabularyDifference()
    differing = [t for t in a.keys() | b.keys() if a.get(t) != b.get(t)]
    names_a, names_b = {i: t for t, i in a.items()}, {i: t for t, i in b.items()}
    clashing = [i for i, t in sorted(names_a.items()) if i in names_b and names_b[i] != t]
    if clashing:
        i = clashing[0]
        example = f"id {i} is {names_a[i]!r} in {one.ref} and {names_b[i]!r} in {other.ref}"
    elif differing:
        token = min(differing, key=lambda t: (a.get(t, b.get(t, 0)), t))
        example = " and ".join(
            f"{token!r} has {'no id' if token not in v else f'id {v[token]}'} in {m.ref}"
            for v, m in ((a, one), (b, other))
        )
    return VocabularyDifference(len(differing), len(clashing), example if differing else None)


def _same_file(one: Model, other: Model) -> bool:
    """Whether two checkpoints have equal tokenizer files."""
    if not (isinstance(one, Checkpoint) and isinstance(other, Checkpoint)):
        return False  # a merge may have a tokenizer that is in no file
    a, b = one.path / "tokenizer.json", other.path / "tokenizer.json"
    return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)


def config_changes(plan: VocabularyPlan, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Entries of a config to replace, `text_config` whole if it has one.

    The vocabulary's size, and ids of special tokens that moved. A special token that the output
    lacks gives way to the one that the model of the tokenizer names. `config` is the template's
    `config.json` as other changes left it, or None for the file's.
    """
    config = plan.template.config if config is None else config
    parts = {key: config[key] for key in text_parts(config)}
    out: dict[str, Any] = {key: {**part, **_changes(plan, part)} for key, part in parts.items()}
    out.update(_changes(plan, config))
    if not any(is_size(k, v) for part in (config, *parts.values()) for k, v in part.items()):
        out["vocab_size"] = plan.rows
    return out


def _changes(plan: VocabularyPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {key: plan.rows for key, value in config.items() if is_size(key, value)}
    return {**sizes, **moved_ids(plan, config)}


def moved_ids(plan: VocabularyPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    """New values for the ids of special tokens in a config (or `generation_config.json`)."""
    names = {i: t for t, i in plan.vocabularies[plan.base].items()}
    start = plan.start.config
    other = {k: v for key in text_parts(start) for k, v in start[key].items()} | start
    stays = plan.start is plan.template

    def moved(i: int) -> int | None:
        if i in names:
            return plan.tokens.get(names[i])
        return i if stays and i < plan.rows else None

    out: dict[str, Any] = {}
    for key, value in config.items():
        if not _ID.search(key) or isinstance(value, bool):
            continue
        new: Any = value
        if isinstance(value, int):
            new = moved(value)
        elif isinstance(value, list) and all(isinstance(i, int) for i in value):
            new = [n for n in map(moved, value) if n is not None] or None
        if new is None and not stays:
            new = other.get(key)
        if new != value:
            out[key] = new
    return out


def write_tokenizer(plan: VocabularyPlan, folder: Path, chat_template: str | None = None) -> None:
    """Writes the tokenizer's files into a folder that exists.

    An unchanged tokenizer is copied file by file. Otherwise `tokenizer.json` is written anew and
    the files of slow tokenizers are left out, as they would not know the added tokens.

    Args:
        plan: of the merge.
        folder: of the output.
        chat_template: Jinja text in place of the one that is there.

    Raises:
        OSError: if the disk fills or fails.
    """
    copy_tokenizer(plan.start.path, folder, FILES if plan.changed else FILES + SLOW_FILES)
    if plan.changed:
        (folder / "tokenizer.json").write_text(plan.tokenizer.to_str(pretty=True), "utf-8")
        settings = read_object(folder / "tokenizer_config.json", plan.start)
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(i): {
                    "content": token.content,
                    "lstrip": token.lstrip,
                    "normalized": token.normalized,
                    "rstrip": token.rstrip,
                    "single_word": token.single_word,
                    "special": token.special,
                }
                for i, token in sorted(plan.tokenizer.get_added_tokens_decoder().items())
            }
            write_object(folder / "tokenizer_config.json", settings)
    if chat_template is not None:
        write_chat_template(folder, chat_template)


def _vocabularies(
    models: Mapping[str, Model], base: str, limits: Mapping[str, int | None], notes: list[str]
) -> dict[str, dict[str, int]]:
    """Tokens that have a row, for each model."""
    out: dict[str, dict[str, int]] = {}
    for ref in (base, *(r for r in models if r != base)):
        whole, limit = models[ref].vocabulary, limits[ref]
        if not whole and not out:
            raise SourceError.of(
                models[ref].field, f"no tokenizer.json in {ref}", "one, to match tokens by",
                "Save its tokenizer with transformers once, or name another base_model.",
            )  # fmt: skip
        if not whole:
            whole = out[base]
            notes.append(f"{ref} has no tokenizer.json: taken to have the vocabulary of {base}.")
        out[ref] = {t: i for t, i in whole.items() if limit is None or i < limit}
        beyond = [t for t in whole if t not in out[ref]]
        if beyond:
            notes.append(f"{ref} has no row for {_some(beyond)}, which counts as absent there.")
    return out


def _strip(tokenizer: Any, rows: int | None, model: Model) -> Any:
    """The tokenizer without tokens whose id is `rows` or more; itself if there are none."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    gone = {t for t, i in ids.items() if rows is not None and i >= rows}
    if not gone:
        return tokenizer
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in gone]
    inner = data["model"]
    if isinstance(inner["vocab"], dict):
        inner["vocab"] = {t: i for t, i in inner["vocab"].items() if t not in gone}
    else:  # Unigram: a list in the order of the ids
        inner["vocab"] = inner["vocab"][:rows]
    if "merges" in inner:
        prefix = inner.get("continuing_subword_prefix") or ""

        def stays(merge: Any) -> bool:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            return not gone & {left, right, left + right.removeprefix(prefix)}

        inner["merges"] = [m for m in inner["merges"] if stays(m)]
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except Exception as error:  # the library raises nothing more precise
        raise SourceError.of(
            model.field, f"{_some(sorted(gone))} without a row in {model.ref}, which its tokenizer "
            f"cannot do without ({error})", "a row for every token", "Choose another base.",
        ) from error  # fmt: skip


def _add_union(
    tokenizer: Any,
    models: Mapping[str, Model],
    base: str,
    vocabularies: Mapping[str, Mapping[str, int]],
    notes: list[str],
) -> None:
    """Adds the tokens of these models to the base's: ordinary ones first, then added ones."""
    ordinary: dict[str, None] = {}
    added: dict[str, Any] = {}
    for ref in (base, *(r for r in models if r != base)):
        own = models[ref].tokenizer()
        marked = {} if own is None else {
            t.content: t for _, t in sorted(own.get_added_tokens_decoder().items())
        }  # fmt: skip
        by_id = vocabularies[ref].items() if own is not None else ()
        for token, _ in sorted(by_id, key=lambda item: item[1]):
            if token not in marked:
                ordinary.setdefault(token)
            elif token not in added:
                added[token] = marked[token]
            elif added[token] != marked[token]:
                notes.append(f"{token!r} is added with other settings in {ref}: not used.")
    have = tokenizer.get_vocab(with_added_tokens=True)
    tokenizer.add_tokens([t for t in ordinary if t not in added and t not in have])
    tokenizer.add_tokens(list(added.values()))


def _check_ids(tokens: Mapping[str, int], model: Model) -> None:
    """Refuses ids that two tokens have, which adding to a vocabulary with gaps can bring about."""
    names: dict[int, str] = {}
    own = model.vocabulary
    for token, i in tokens.items():
        first = names.setdefault(i, token)
        if first != token and not own.get(first) == own.get(token) == i:
            raise SourceError.of(
                model.field, f"id {i} for both {first!r} and {token!r}, as one of them was added",
                f"a vocabulary without gaps in {model.ref}", "Choose another tokenizer.source.",
            )  # fmt: skip


def _mapping(tokens: Mapping[str, int], own: Mapping[str, int], rows: int) -> Tensor:
    """Output row to the model's row, int64 of length `rows`."""
    out = torch.full((rows,), ABSENT, dtype=torch.int64)
    both = [(i, own[t]) for t, i in tokens.items() if t in own]
    if both:
        pairs = torch.tensor(both, dtype=torch.int64)
        out[pairs[:, 0]] = pairs[:, 1]
    return out


def _some(tokens: Sequence[str]) -> str:
    """One token, and how many others."""
    rest = f" and {len(tokens) - 1} more" if len(tokens) > 1 else ""
    return f"token {min(tokens)!r}{rest}"


__all__ = [
    "VocabularyDifference", "VocabularyPlan", "choose_chat_template", "config_changes", "moved_ids",
    "plan_vocabulary", "same_vocabulary", "write_tokenizer",
]  # fmt: skip
