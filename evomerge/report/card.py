"""The model card (README.md) that goes with a merged model."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.markdown import fenced, front_matter, markdown_text, printable, without_paths
from evomerge.report.content import commands
from evomerge.report.reading import Json, mapping
from evomerge.report.table import results_markdown
from evomerge.report.verdict import verdict


def model_card(results: Json, recipe_yaml: str, files: Mapping[str, str] | None = None) -> str:
    """The README.md of the chosen merge: what it is made of, what it scored, how to redo it.

    Args:
        results: `results.json`; without models, the card says that nothing was measured.
        recipe_yaml: the recipe in the mergekit format; paths on the author's disk are shortened
            to their last part, since a card is made to be published.
        files: name to text of the recipe files that it names, which are shown, too.
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
            front_matter(sources),
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
            fenced(without_paths(recipe_yaml), "yaml"),
            "",
            *(
                line
                for file, text in (files or {}).items()
                for line in (f"`{file}` in it:", "", fenced(without_paths(text), "yaml"), "")
            ),
            "## Held-out results",
            "",
            results_markdown(results),
            "The merge was chosen on the search items, so its search score is optimistic; the",
            "held-out items had no part in the choice. Intervals are in brackets.",
            "",
            "## Reproduce",
            "",
            fenced("\n".join(commands(name, "" if seed is None else str(seed))), "sh"),
            "",
        ]
    )
