"""What a model's own files say of it: its name and revision on the hub, and its licence."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from evomerge.errors import UserError
from evomerge.markdown import printable, short_name

_LONGEST = 60  # characters of a licence's name
_MOST = 200_000  # bytes that are read of a file that others wrote
_FILES = (
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "LICENCE.txt",
    "COPYING",
    "COPYING.txt",
)
_TEXTS = (
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution 4\.0", "cc-by-4.0"),
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"gnu general public license\s+version 2", "gpl-2.0"),
    (r"mozilla public license,? version 2\.0", "mpl-2.0"),
    (r"llama 2 community license", "llama2"),
    (r"llama 3 community license", "llama3"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"gemma terms of use", "gemma"),
    (r"research license|non-?commercial", "other non-commercial or research licence"),
    (r"permission is hereby granted, free of charge, to any person obtaining", "mit"),
    (r"redistribution and use in source and binary forms[\s\S]*neither the name", "bsd-3-clause"),
    (r"redistribution and use in source and binary forms", "bsd-2-clause"),
)  # fmt: skip
"""What the text of a licence says, and what the hub calls it; the first that fits."""


def model_origin(ref: str, folder: Path) -> tuple[str, str]:
    """Name and revision of a model, by where the hub's client put it."""
    name, _, revision = ref.partition("@")
    parts = folder.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if not revision and note.is_file():
        first = _text(note).split("\n", 1)[0].strip()
        revision = first if re.fullmatch(r"[0-9a-f]{40}", first) else ""
    return short_name(name), printable(revision)


def read_licence(folder: Path) -> tuple[str, str]:
    """The licence of a model's folder and the file that names it; empty texts if none does.

    Looked for in the head of README.md (`license`, and `license_name` beside `other`), in
    `license` of config.json, and in the text of a LICENSE file.
    """
    for file, read in (("README.md", _from_card), ("config.json", _from_mapping)):
        path = folder / file
        if path.is_file() and (licence := read(_text(path))):
            return licence, file
    for file in _FILES:
        path = folder / file
        if path.is_file():
            text = " ".join(_text(path).lower().split())
            licence = next((name for form, name in _TEXTS if re.search(form, text)), "")
            return licence or "other", file
    return "", ""


def _from_card(text: str) -> str:
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    return _from_mapping(found[1]) if found else ""


def _from_mapping(text: str) -> str:
    """The licence that YAML or JSON names."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""  # a damaged card names none
    if not isinstance(data, dict):
        return ""
    named = data.get("license")
    names = named if isinstance(named, list) else [named]
    texts = [printable(str(name)) for name in names if isinstance(name, str) and name.strip()]
    if texts == ["other"] and isinstance(data.get("license_name"), str):
        texts = [printable(data["license_name"])]
    return " and ".join(texts)[:_LONGEST]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST).decode("utf-8", "replace")
    except OSError as error:
        raise UserError.of(str(path), str(error), "a file that can be read", "Mend it.") from error
