"""Text that others wrote, made safe for Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence


def printable(text: str) -> str:
    """`text` on one line, with every control and format character (such as ANSI) left out."""
    kept = (c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "".join(kept)


def markdown_text(text: str) -> str:
    """`text` on one line, with every character that means something in Markdown escaped."""
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*{}\[\]|#!~$])", r"\\\1", safe)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe)


def front_matter(sources: Sequence[str], more: Mapping[str, object] | None = None) -> str:
    """The YAML head of a model card (without its dashes) that names the parents, and says more."""
    import yaml

    values: dict[str, object] = {"library_name": "transformers"}
    names = [short_name(source) for source in sources]
    if names:
        values["base_model"] = names
    values.update(more or {})
    values["tags"] = ["merge", "evomerge"]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text.strip()


def short_name(source: str) -> str:
    """A parent's name; of a path on the author's disk, only the last part."""
    name = printable(source)
    if name.startswith(("/", "~", ".")) or "\\" in name or name.count("/") > 1:
        parts = [part for part in re.split(r"[/\\]", name) if part.strip(".~")]
        return parts[-1] if parts else "model"
    return name


def without_paths(recipe: str) -> str:
    """A recipe's YAML with paths shortened to their last part."""

    def shortened(found: re.Match[str]) -> str:
        return found[1] + short_name(found[2].strip("'\""))

    return re.sub(r"^(\s*(?:- )?(?:base_)?model: )(\S.*)$", shortened, recipe, flags=re.MULTILINE)


def fenced(text: str, language: str) -> str:
    """A code block that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
