"""The identity of an item: a hash of what it asks and of what is right."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from evomerge.types import Item


def item_digest(item: Item, prompt: str) -> str:
    """Hash of an item's content, 16 hex digits: the same in every study, order and file.

    It covers all that an answer or a score can depend on: the prompt, the target, the gold
    answer and the columns, since a scorer may read them. The id does not count, nor does a
    column that repeats it, nor anything that is empty.

    Args:
        item: of a task.
        prompt: what the task makes of it.
    """
    row = asdict(item)
    own = row.pop("id")
    row["fields"] = {name: text for name, text in item.fields.items() if text != own}
    row["prompt"] = prompt
    full = {name: value for name, value in row.items() if value}
    text = json.dumps(full, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
