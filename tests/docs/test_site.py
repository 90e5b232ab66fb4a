"""The site builds without a complaint, is whole, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html

ROOT = Path(__file__).parents[2]
UNRENDERED = re.compile(r"\s*([-|] |\d+\. |#{1,6} |```|python -m evomerge )")
"""How a line begins that should have become a list, a table, a heading or a block of code."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> dict[Path, html.HtmlElement]:
    return {
        p: html.parse(p).getroot() for p in sorted(site.rglob("*.html")) if p.name != "404.html"
    }


def written() -> list[str]:
    """Every page that somebody wrote, by its path in the repository."""
    places = ("docs/*.md", "docs/notebooks/*.ipynb", "experiments/*/README.md", "slurm/README.md")
    return sorted(p.relative_to(ROOT).as_posix() for g in places for p in ROOT.glob(g))


@pytest.mark.slow
def test_links_and_anchors_of_the_site_resolve(site: Path) -> None:
    found = pages(site)
    anchors = {path: set(page.xpath("//@id | //a/@name")) for path, page in found.items()}
    broken = []
    for path, page in found.items():
        for link in page.xpath("//@href | //@src"):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "."):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            known = target.is_file() and (
                not parts.fragment
                or target not in anchors
                or unquote(parts.fragment) in anchors[target]
                or parts.fragment.startswith("__")  # the theme's own
            )
            if not known:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert len(found) > 30


@pytest.mark.slow
def test_links_to_the_outside_are_addresses(site: Path) -> None:
    outside = {
        link
        for page in pages(site).values()
        for link in page.xpath("//a/@href")
        if urlsplit(link).scheme not in ("", "mailto")
    }
    assert outside
    wrong = [u for u in outside if urlsplit(u).scheme != "https" or "." not in urlsplit(u).netloc]
    assert wrong == []


@pytest.mark.slow
def test_a_browser_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {
        str(address)
        for page in pages(site).values()
        for address in page.xpath("//script/@src | //link/@href | //img/@src | //iframe/@src")
    }
    assert loaded
    assert [a for a in loaded if urlsplit(a).scheme or urlsplit(a).netloc] == []
    styles = "".join(p.read_text("utf-8") for p in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*\)|@import[^;]*", styles) == []


@pytest.mark.slow
def test_lists_tables_and_code_are_rendered(site: Path) -> None:
    """Code hosts begin a list without a blank line before it; the site's Markdown does not."""
    raw = [
        f"{path.relative_to(site)}: {line}"
        for path, page in pages(site).items()
        for paragraph in page.xpath("//article//p")
        for line in "".join(paragraph.xpath(".//text()[not(ancestor::code)]")).split("\n")
        if UNRENDERED.match(line)
    ]
    assert raw == []


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path) -> None:
    """Where this fails: put the page into `nav` of mkdocs.yml."""
    index = html.parse(site / "index.html")
    shown = {
        str((site / unquote(urlsplit(link).path)).resolve())
        for link in index.xpath("//nav[contains(@class, 'md-nav--primary')]//a/@href")
    }
    absent = []
    for page in written():
        place = re.sub(r"\.(md|ipynb)$", ".html", page.removeprefix("docs/"))
        place = re.sub(r"README\.html$", "index.html", place)
        if str((site / place).resolve()) not in shown:
            absent.append(page)
    assert absent == []
