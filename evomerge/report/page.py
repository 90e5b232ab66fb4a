"""The self-contained HTML page of a run.

It loads nothing: scripts and styles stand in the page and a content security policy that lists
their hashes forbids anything else, so that text from a model, a config or a journal cannot run
even where escaping failed. Vega runs with its expression interpreter, without `eval`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from evomerge.durable import write_atomic
from evomerge.report.content import Content, prepare
from evomerge.report.figures import theme
from evomerge.report.files import write_files
from evomerge.report.reading import read_run

PAGE = "report.html"
SCRIPTS = ("page.js", "preference.js", "items.js")


def write_report(run_dir: Path, files: bool = False) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Args:
        run_dir: of the study.
        files: whether figures (PNG, SVG) and tables (CSV) go into `RUN/report`, too; that takes
            longer than the page.

    Works at any time of a study: before `results.json` exists the page holds what the journal
    knows and says so. The file is replaced in one step.

    Raises:
        UserError: `run_dir` is not the directory of a run, or its files are damaged.
        EvomergeError: the disk is full or fails.
    """
    page = Path(run_dir) / PAGE
    content = prepare(read_run(page.parent))
    write_atomic(page, render_page(content))
    if files:
        write_files(content, page.parent)
    return page


def render_page(content: Content) -> str:
    """The page as text; every text of `content` is escaped."""
    return render("page.html.j2", content, content.charts)


def render(template: str, content: Any, charts: dict[str, Any]) -> str:
    """A page from a template of the assets, with its charts, escaped and self-contained."""
    import jinja2
    from markupsafe import Markup

    from evomerge.report import numbers

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.globals["fmt"] = numbers
    environment.filters["trusted"] = (
        Markup  # of pictures whose texts were escaped as they were drawn
    )
    environment.filters["script_json"] = lambda value: Markup(script_json(value))
    style = _asset("page.css")
    code = "\n".join(map(_asset, SCRIPTS))
    scripts = [_bundle(), code] if charts else [code]
    return environment.get_template(template).render(
        content=content,
        policy=policy(scripts, style),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        themes={mode: theme(mode) for mode in ("light", "dark")},
    )


def script_json(value: Any) -> str:
    """`value` as JSON that is safe inside a `<script>` element: ASCII, and no `<`, `>` or `&`."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def policy(scripts: list[str], style: str) -> str:
    """The content security policy: nothing but these scripts and this style."""
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _asset(name: str) -> str:
    return (files("evomerge.report") / "assets" / name).read_text(encoding="utf-8")


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that may stand inside a page."""
    import vl_convert

    code = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    code = re.sub(r"</(script)", r"<\\/\1", code, flags=re.IGNORECASE)
    return code.replace("<!--", "\\x3c!--")
