"""The page as text: escaping, policy, size, and valid charts."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_runs as runs

from evomerge.report import write_report
from evomerge.report.content import commands, prepare
from evomerge.report.page import script_json
from evomerge.report.reading import read_run


class Reader(HTMLParser):
    """Collects elements, attributes and scripts as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._script: dict[str, str | None] | None = None
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._script = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
            self._script = None
        else:
            self.text += data


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(runs.finished_run(tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(runs.evil_run(tmp_path_factory.mktemp("evil")))


def test_size(finished: str) -> None:
    assert 500_000 < len(finished.encode()) < 1_500_000


def test_size_of_a_long_study(tmp_path: Path) -> None:
    run = runs.write_run(tmp_path, runs.events(5_000, blocks=16), runs.results(), runs.RECIPE)
    assert len(page_of(run).encode()) < 2_000_000


def test_nothing_is_loaded(finished: str) -> None:
    reader = Reader(finished)
    ids = {value for name, value in reader.attributes if name == "id"}
    loading = ("src", "href", "srcset", "action", "data", "poster", "background", "formaction")
    urls = [value for name, value in reader.attributes if name in loading]
    assert urls[:2] == ["data:,", "#main"]
    assert all(url[0] == "#" and url[1:] in ids for url in urls[1:])
    assert "@import" not in finished.split("</style>")[0]
    assert "url(" not in finished.split("</style>")[0]


def test_policy_forbids_everything_but_its_own_scripts(finished: str) -> None:
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', finished)[0])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert finished.index("Content-Security-Policy") < finished.index("<style>")


def test_no_text_of_the_run_becomes_markup(evil: str, finished: str) -> None:
    assert runs.EVIL not in evil
    assert "\u2028" not in evil.split("<script")[1]
    reader, clean = Reader(evil), Reader(finished)
    assert "img" not in reader.tags
    assert reader.tags.count("script") == clean.tags.count("script") == 3
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.text.count(runs.EVIL) >= 10


def test_chart_data_comes_back_as_it_was(evil: str) -> None:
    attributes, text = Reader(evil).scripts[0]
    assert attributes["type"] == "application/json"
    assert not set("<>&") & set(text)
    assert runs.EVIL in json.dumps(json.loads(text))


def test_text_of_the_run_is_data_in_the_charts(tmp_path: Path) -> None:
    charts = prepare(read_run(runs.evil_run(tmp_path))).charts

    def outside_of_data(node: object) -> str:
        if isinstance(node, dict):
            return "".join(
                f"{key} {outside_of_data(value)}" for key, value in node.items() if key != "data"
            )
        return "".join(map(outside_of_data, node)) if isinstance(node, list) else str(node)

    assert "alert" in json.dumps(charts)
    assert "alert" not in outside_of_data(charts)


def test_script_json() -> None:
    text = script_json({"a": "</script><!--&\u2028"})
    assert text == '{"a":"\\u003c/script\\u003e\\u003c!--\\u0026\\u2028"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_charts_are_valid_vega_lite(tmp_path: Path) -> None:
    altair = pytest.importorskip("altair")
    for spec in prepare(read_run(runs.finished_run(tmp_path))).charts.values():
        altair.Chart.from_dict(spec, validate=True)


def test_tables_and_charts_are_accessible(finished: str) -> None:
    reader = Reader(finished)
    assert reader.tags.count("caption") == reader.tags.count("table") >= 5
    names = [name for name, _ in reader.attributes]
    assert names.count("scope") == reader.tags.count("th")
    assert reader.tags.count("h1") == 1
    charts = re.findall(r'<div class="chart" role="img" aria-label="[^"]{20,}"', finished)
    assert len(charts) == 7


def test_everything_of_a_finished_run_is_there(finished: str) -> None:
    text = Reader(finished).text
    for part in (
        "Better, significantly", "DARE-TIES", "the merge holds NaN in block.3",
        "merge_method: task_arithmetic", "python -m evomerge +experiment=jp_math_tiny seed=0",
        "12 min 34 s", "jp_math: 100 items", "2.9.0", "best so far of random search",
    ):  # fmt: skip
        assert part in text, part


def test_a_running_study(tmp_path: Path) -> None:
    log = runs.events(40)[:-1]
    text = Reader(page_of(runs.write_run(tmp_path, log, torn=True))).text
    assert "There is no results.json yet" in text
    assert str(tmp_path) in text.split("Verdict")[0]  # studies of one experiment differ in it
    assert "search finalist 3" in text
    assert "Values of the candidate with the best search fitness so far (candidate" in text
    assert re.search(
        r"The candidate with the best search fitness .{,30} has \d\.\d effective", text
    )
    assert "No merge has been chosen yet" in text


@pytest.mark.parametrize("log", [[], [runs.events(1)[0]], [{"event": "ask", "schema": 1}]])
def test_a_study_that_has_just_begun(tmp_path: Path, log: list[dict[str, object]]) -> None:
    text = Reader(page_of(runs.write_run(tmp_path, log))).text
    assert "0 of 0 proposed candidates" in text


def test_results_without_a_journal_or_controls(tmp_path: Path) -> None:
    outcome = runs.results(paired_test=None, not_measured=["TIES"])
    models = outcome["models"]
    outcome["models"] = {name: models[name] for name in ("evolved merge", "math")}
    text = Reader(page_of(runs.write_run(tmp_path, outcome=outcome))).text
    assert "Not compared" in text
    assert "could not be measured: TIES" in text


def test_writing_again_gives_the_same_page(tmp_path: Path) -> None:
    run = runs.finished_run(tmp_path)
    first = page_of(run)
    assert page_of(run) == first
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".")) == []


def test_command_is_quoted() -> None:
    assert commands("a; rm -rf b", "1") == ["python -m evomerge '+experiment=a; rm -rf b' seed=1"]
