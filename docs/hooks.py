"""Puts pages that live beside the code into the site, and points links at them.

MkDocs builds one folder, but this repository's pages lie next to what they are about: README.md,
experiments/NAME/README.md, benchmarks/*.md and the notebooks. They are read on a code host, too, so
that their links are relative to the repository; here each becomes a link within the site.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
BESIDE = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/*/README.md", "slurm/README.md",
    "benchmarks/*.md", "benchmarks/parity/*.md", "evomerge/zoo/README.md", "tests/gpu/README.md",
)  # fmt: skip
"""Pages outside of `docs`, relative to the repository."""

_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```+|~~~+)")


def on_config(config: Any) -> Any:
    """Makes anchors of headings as code hosts do, so that one link serves both."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages beside the code, the notebooks as pages, and every file that a page names."""
    for page in pages_beside():
        _add(files, config, page)
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        path = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, path, content=notebook_page(notebook)))
    for file in list(files.documentation_pages()):
        page = _repository_path(file.src_uri)
        for link in _links(file.content_string):
            target = _target(link, page)
            if target is not None and (ROOT / target).is_file():
                _add(files, config, target)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Rewrites links that are relative to the repository."""
    here = page.file.src_uri
    there = _repository_path(here)

    def moved(link: str) -> str:
        target = _target(link, there)
        if target is None or files.get_file_from_path(site_path(target)) is None:
            return link
        _, mark, anchor = link.partition("#")
        return posixpath.relpath(site_path(target), posixpath.dirname(here) or ".") + mark + anchor

    return _replace_links(markdown, moved)


def pages_beside() -> list[str]:
    """Pages outside of `docs` that are there, relative to the repository."""
    found = [path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def site_path(path: str) -> str:
    """Where a file of the repository is within the site's sources."""
    if path == "README.md":
        return "index.md"
    if path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"
    return path.removeprefix("docs/")


def notebook_page(path: Path) -> str:
    """A notebook's cells as a Markdown page; outputs are left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _add(files: Files, config: Any, path: str) -> None:
    if files.get_file_from_path(site_path(path)) is None:
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))


def _repository_path(site: str) -> str:
    """The file of the repository behind a page of the site."""
    for path in pages_beside():
        if site_path(path) == site:
            return path
    return f"docs/{site}"


def _target(link: str, page: str) -> str | None:
    """The file that a page's link names, relative to the repository; None if it is no such link."""
    path = link.partition("#")[0]
    if "://" in link or link.startswith("mailto:") or not path:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if (ROOT / target).is_dir():
        target = posixpath.join(target, "README.md")
    return target


def _links(markdown: str) -> Iterator[str]:
    found: list[str] = []

    def keep(link: str) -> str:
        found.append(link)
        return link

    _replace_links(markdown, keep)
    yield from found


def _replace_links(markdown: str, change: Callable[[str], str]) -> str:
    """`markdown` with its links changed, but those within fenced blocks."""
    lines, fence = [], ""
    for line in markdown.split("\n"):
        if mark := _FENCE.match(line.lstrip()):
            if not fence:
                fence = mark[1]
            elif line.strip() == fence:
                fence = ""
        elif not fence:
            line = _LINK.sub(lambda m: f"]({change(m[1])})", line)
        lines.append(line)
    return "\n".join(lines)
