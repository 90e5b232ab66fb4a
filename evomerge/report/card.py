"""The model card (README.md) that goes with a merged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.markdown import (
    fenced,
    front_matter,
    markdown_text,
    printable,
    short_name,
    without_paths,
)
from evomerge.report.content import commands
from evomerge.report.licences import UNKNOWN, Parent, licence_flags, merged_licence
from evomerge.report.reading import Json, mapping
from evomerge.report.table import results_markdown
from evomerge.report.verdict import verdict

_SHOWN = 12  # hex digits of a fingerprint
_OPTIMISM = """\
The merge was chosen on the search items, so its search score is optimistic; the
held-out items had no part in the choice. Intervals are in brackets."""


_SETTINGS = """\
Settings of the study that are not those of the experiment's file are in `config.yaml` of its run
directory."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a merge that is not the study's chosen one.

    Attributes:
        name: of the merge, such as `candidate 7`.
        sentences: what it is, and whether it was measured on held-out items.
        table: Markdown with what it scored, ends with a newline.
    """

    name: str
    sentences: tuple[str, ...]
    table: str


@dataclass(frozen=True)
class Adaptation:
    """What makes a card that of an adapter.

    Attributes:
        base: the model that it is added to.
        sentences: how well base and adapter stand for the merge.
    """

    base: str
    sentences: tuple[str, ...]


def model_card(
    results: Json,
    recipe_yaml: str,
    files: Mapping[str, str] | None = None,
    *,
    parents: Sequence[Parent] = (),
    evidence: Evidence | None = None,
    adaptation: Adaptation | None = None,
    how: Sequence[str] = (),
) -> str:
    """The README.md of a merge: what it is made of, what it scored, how to redo it.

    Args:
        results: `results.json`; without models, the card says that nothing was measured.
        recipe_yaml: the recipe in the mergekit format; paths on the author's disk are shortened
            to their last part, since a card is made to be published.
        files: name to text of the recipe files that it names, which are shown, too.
        parents: the models that it is made of; by default the sources of the results.
        evidence: of another merge than the chosen one.
        adaptation: where an adapter is written in the place of the merge.
        how: further commands that make it again.
    """
    sources = [
        name
        for name, model in mapping(results.get("models")).items()
        if mapping(model).get("role") == "source"
    ]
    names = list(dict.fromkeys(p.name for p in parents)) if parents else sources
    name = printable(str(results.get("experiment") or "merged model"))
    seed = results.get("seed")
    judged = verdict(results)
    said = evidence.sentences if evidence else (judged.headline, *judged.sentences)
    title = name if evidence is None else f"{name}, {evidence.name}"
    what = "adapter (LoRA) that stands for a merge" if adaptation else "merge"
    flags = licence_flags(parents)
    again = [*commands(name, "" if seed is None else str(seed)), *how]
    return "\n".join(
        [
            "---",
            front_matter([adaptation.base] if adaptation else names, _head(parents, adaptation)),
            "---",
            "",
            f"# {markdown_text(title)}",
            "",
            *_warning(flags),
            f"{'An' if adaptation else 'A'} {what} of fine-tuned models, found by evomerge. No "
            "gradient training was done.",
            "",
            *[markdown_text(text) for text in said],
            "",
            *_adapter_section(adaptation),
            "## Parents",
            "",
            *(_parents_table(parents) or _listed(names)),
            "",
            "## Recipe",
            "",
            fenced(without_paths(recipe_yaml), "yaml"),
            "",
            *(
                line
                for file, text in (files or {}).items()
                for line in (f"`{file}` in it:", "", fenced(without_paths(text), "yaml"), "")
            ),
            "## Held-out results",
            "",
            results_markdown(results) if evidence is None else evidence.table,
            *([_OPTIMISM] if evidence is None else []),
            "",
            "## Reproduce",
            "",
            fenced("\n".join(again), "sh"),
            "",
            _SETTINGS,
            "",
            *_versions(mapping(results.get("versions"))),
        ]
    )  # fmt: skip


def _head(parents: Sequence[Parent], adaptation: Adaptation | None) -> dict[str, object]:
    """What the front matter has besides the parents."""
    head: dict[str, object] = {}
    if adaptation:
        head["library_name"] = "peft"
    if parents:
        licence = merged_licence(parents)
        head["license"] = licence
        if licence == "other":
            head["license_name"] = "see-parents"
        head["base_model_relation"] = "adapter" if adaptation else "merge"
    return head


def _warning(flags: Sequence[str]) -> list[str]:
    """A block that nobody overlooks; empty without flags."""
    if not flags:
        return []
    lines = [f"> - {markdown_text(flag)}" for flag in flags]
    return ["> **Licence warning.** Look at the parents' terms before you use or pass this on.",
            ">", *lines, ""]  # fmt: skip


def _parents_table(parents: Sequence[Parent]) -> list[str]:
    if not parents:
        return []
    rows = ["| Model | Revision | Fingerprint | Licence | Found in |", "|---|---|---|---|---|"]
    for parent in parents:
        licence = markdown_text(parent.licence) or f"**{UNKNOWN}**"
        if parent.kind in (UNKNOWN, "non-commercial", "no derivatives") and parent.licence:
            licence = f"**{licence}** ({parent.kind})"
        cells = [
            markdown_text(parent.name), markdown_text(parent.revision) or "-",
            f"`{parent.fingerprint[:_SHOWN]}`" if parent.fingerprint else "-", licence,
            markdown_text(parent.found_in) or "-",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _listed(names: Sequence[str]) -> list[str]:
    return [f"- {markdown_text(name)}" for name in names] or ["See the recipe."]


def _adapter_section(adaptation: Adaptation | None) -> list[str]:
    if adaptation is None:
        return []
    base = markdown_text(short_name(adaptation.base))
    return ["## Approximation", "", f"To be added to {base}.", "",
            *[markdown_text(text) for text in adaptation.sentences], ""]  # fmt: skip


def _versions(versions: Json) -> list[str]:
    """What the study ran with."""
    if not versions:
        return []
    pairs = ", ".join(f"{markdown_text(k)} {markdown_text(str(v))}" for k, v in versions.items())
    return [f"Versions: {pairs}.", ""]
