"""The model card (README.md) that goes with a merged model."""

from __future__ import annotations

import re

from evomerge.report.content import commands
from evomerge.report.reading import Json, mapping
from evomerge.report.table import markdown_text, printable, results_markdown
from evomerge.report.verdict import verdict


def model_card(results: Json, recipe_yaml: str) -> str:
    """The README.md of the chosen merge: what it is made of, what it scored, how to redo it.

    Args:
        results: `results.json`; without models, the card says that nothing was measured.
        recipe_yaml: the recipe in the mergekit format; paths on the author's disk are shortened
            to their last part, since a card is made to be published.
    """
    sources = [
        name
        for name, model in mapping(results.get("models")).items()
        if mapping(model).get("role") == "source"
    ]
    name = printable(str(results.get("experiment") or "merged model"))
    seed = results.get("seed")
    judged = verdict(results)
    return "\n".join(
        [
            "---",
            _front_matter(sources),
            "---",
            "",
            f"# {markdown_text(name)}",
            "",
            "A merge of fine-tuned models, found by evomerge. No gradient training was done.",
            "",
            *[markdown_text(text) for text in (judged.headline, *judged.sentences)],
            "",
            "## Parents",
            "",
            *([f"- {markdown_text(source)}" for source in sources] or ["See the recipe."]),
            "",
            "## Recipe",
            "",
            _fenced(_without_paths(recipe_yaml), "yaml"),
            "",
            "## Held-out results",
            "",
            results_markdown(results),
            "The merge was chosen on the search items, so its search score is optimistic; the",
            "held-out items had no part in the choice. Intervals are in brackets.",
            "",
            "## Reproduce",
            "",
            _fenced("\n".join(commands(name, "" if seed is None else str(seed))), "sh"),
            "",
        ]
    )


def _front_matter(sources: list[str]) -> str:
    import yaml

    values: dict[str, object] = {"library_name": "transformers"}
    names = [_hub_name(source) for source in sources]
    if names:
        values["base_model"] = names
    values["tags"] = ["merge", "evomerge"]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text.strip()


def _hub_name(source: str) -> str:
    """A parent's name; of a path on the author's disk, only the last part."""
    name = printable(source)
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1:
        parts = [part for part in re.split(r"[/\\]", name) if part.strip(".~")]
        return parts[-1] if parts else "model"
    return name


def _without_paths(recipe: str) -> str:
    def shortened(found: re.Match[str]) -> str:
        return found[1] + _hub_name(found[2].strip("'\""))

    return re.sub(r"^(\s*(?:- )?(?:base_)?model: )(\S.*)$", shortened, recipe, flags=re.MULTILINE)


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
