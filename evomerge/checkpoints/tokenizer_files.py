"""The files of tokenizers and their chat templates."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints.model import Model
from evomerge.errors import RecipeError, SourceError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
SLOW_FILES = (
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "spiece.model",
    "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tekken.json", "tiktoken.model",
    "*.tiktoken", "vocab.bpe", "bpe.codes",
)  # fmt: skip
"""They cannot say what was added, so that they stay behind when the tokenizer changes."""

_MORE_TEMPLATES = "additional_chat_templates"
"""A folder of templates with names, such as `tool_use.jinja`."""

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEMPLATES = {"chatml": _CHATML}


def copy_tokenizer(source: Path, folder: Path, names: Sequence[str] = FILES + SLOW_FILES) -> None:
    """Copies the files of a tokenizer, and further chat templates, into a folder that exists.

    Args:
        source: folder of a model.
        folder: of the output.
        names: of the files, as patterns.

    Raises:
        OSError: if the disk fills or fails.
    """
    for file in sorted({file for name in names for file in source.glob(name)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    for file in sorted((source / _MORE_TEMPLATES).glob("*.jinja")):
        (folder / _MORE_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / _MORE_TEMPLATES / file.name)


def write_chat_template(folder: Path, template: str) -> None:
    """Puts a chat template where both older and newer readers look for it."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.is_file():
            write_object(path, {**read_object(path, None), "chat_template": template})


def choose_chat_template(spec: str | None, models: Mapping[str, Model]) -> str | None:
    """Finds the chat template that a recipe asks for.

    Args:
        spec: Jinja text, a name (`chatml`), `auto` for the most frequent one of the models (the
            first of these), or None.
        models: in the recipe's order.

    Returns:
        Jinja text, or None to leave what is there.

    Raises:
        RecipeError: if the name is not known.
    """
    check_chat_template(spec)
    if not spec:
        return None
    if spec == "auto":
        found = Counter(t.strip() for m in models.values() if (t := _chat_template(m)))
        return found.most_common(1)[0][0] if found else None
    return _TEMPLATES.get(spec, spec)


def check_chat_template(spec: str | None) -> None:
    """Checks that a recipe's chat template is one, without any model.

    Raises:
        RecipeError: if the name is not known or the text is not Jinja, with the line.
    """
    if not spec or spec == "auto" or spec in _TEMPLATES:
        return
    if "{" not in spec:
        raise RecipeError.of(
            "chat_template", repr(spec),
            f"`auto`, {', '.join(_TEMPLATES)} or the text of a Jinja template",
            "Write out the template, or choose one of these.",
        )  # fmt: skip
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """Knows the tag `generation`, by which templates mark an assistant's turns."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=[Generation, "jinja2.ext.loopcontrols"]).parse(spec)
    except TemplateSyntaxError as error:
        raise RecipeError.of(
            "chat_template", f"text that is not Jinja: line {error.lineno}: {error.message}",
            "a Jinja template", "Correct it there.",
        ) from error  # fmt: skip


def _chat_template(model: Model) -> str | None:
    """The default template of a model, from its own file or its tokenizer's settings."""
    if (model.path / "chat_template.jinja").is_file():
        return (model.path / "chat_template.jinja").read_text(encoding="utf-8")
    found = read_object(model.path / "tokenizer_config.json", model).get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def read_object(path: Path, model: Model | None) -> dict[str, Any]:
    """A JSON object; empty if there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError.of(
            model.field if model else str(path), f"{path.name} that is damaged ({error})",
            "valid JSON", "Download or write the model again.",
        ) from error  # fmt: skip
    return data if isinstance(data, dict) else {}


def write_object(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
