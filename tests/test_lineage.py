"""Pedigrees of matings: shares against recipes, text, pictures, and what is not there."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from evomerge.cli import run
from evomerge.errors import ConfigError, JournalError
from evomerge.lineage import POSITIONS, read_lineage, tree
from evomerge.lineage_figure import lineage_svg
from evomerge.mating import Mating, dimensions
from evomerge.pieces import Piecewise, combine

HOSTILE = '<script>&"]]>\x1b[31m'
FAMILY = (
    Mating.of_seed(0),
    Mating.of_seed(1),
    Mating(2, 0, 1, 0.25, 0.5),
    Mating(3, 2, 0, 0.1, 1.0),
    Mating(4, 3, 2, 0.7, 0.2),
)


def write(
    run_dir, matings=FAMILY, names=("math", "japanese"), results=None, end=None, broken=(),
    told=None, **study,
):  # fmt: skip
    """A journal as a study writes it; candidate ids are member numbers + 10 from member 3 on.

    `broken` has violations, and `told` has the fitness where it is not the value, by member.
    """
    run_dir.mkdir(exist_ok=True)
    shown = [{"name": d.name, "low": d.low, "high": d.high, "kind": d.kind} for d in dimensions()]
    events = [{
        "event": "study", "schema": 1, "space": {"name": "PiecesSpace", "dimensions": shown},
        "matter": {"space.include_base": False} | {f"models.sources.{n}": "0" for n in names},
        "objectives": [{"name": "maths", "goal": "maximize"}], **study,
    }]  # fmt: skip
    for one in matings:
        number = one.member + 10 * (one.member > 2)
        asked = {"id": number, "genome": one.to_genome().tolist(), "digest": f"d{number}"}
        events.append({"event": "ask", "search": "search", "generation": 0, "candidates": [asked]})
        value = (results or {}).get(one.member, one.member / 8)
        if value is None:
            events.append({"event": "result", "search": "search", "id": number, "status": "failed"})
        elif value != "open":
            values = {"maths": value}
            events.append(
                {"event": "result", "search": "search", "id": number, "status": "ok",
                 "values": values, "fitness": (told or {}).get(one.member, [value]),
                 "constraints": [dict(broken).get(one.member, 0.0)]}
            )  # fmt: skip
    if end:
        events.append({"event": "end", "best": end})
    text = "".join(json.dumps(e) + "\n" for e in events)
    (run_dir / "journal.jsonl").write_text(text, encoding="utf-8")
    return run_dir


class NoGrams:
    def intervals(self, edges):
        raise AssertionError("lerp needs no inner products")


def test_shares_are_the_coefficients_of_plain_interpolation(tmp_path):
    """Against the combinations that the search space makes."""
    lineage = read_lineage(write(tmp_path), 14)
    known = [Piecewise.seed(k, 2, POSITIONS) for k in (0, 1)]
    for one in FAMILY[2:]:
        split = round(one.split * POSITIONS)
        first, second = known[one.first], known[one.second]
        known.append(combine(first, second, one.share, split, NoGrams(), interpolation="lerp"))
    for number, piecewise in enumerate(known):
        rows = np.repeat(piecewise.coefficients, np.diff(piecewise.breakpoints, prepend=0), axis=0)
        np.testing.assert_allclose(lineage.shares[number], rows, atol=1e-12)


def test_only_ancestors_are_there(tmp_path):
    write(tmp_path)
    assert list(read_lineage(tmp_path, 13).members) == [0, 1, 2, 3]
    assert list(read_lineage(tmp_path, 1).members) == [1]


def test_the_chosen_merge_or_else_the_best_so_far(tmp_path):
    assert read_lineage(write(tmp_path, end="d2")).root == 2
    assert read_lineage(write(tmp_path)).root == 4
    assert read_lineage(write(tmp_path, results={4: None, 3: "open"})).root == 2
    assert read_lineage(write(tmp_path, end="of another search")).root == 4
    least = [{"name": "maths", "goal": "minimize"}]
    told = {n: [-n / 8] for n in range(5)}
    assert read_lineage(write(tmp_path, objectives=least, told=told)).root == 0


def test_the_best_so_far_is_that_of_the_search(tmp_path):
    """By fitness, not by an objective's value; what breaks a constraint comes behind."""
    found = read_lineage(write(tmp_path, told={1: [9.0]}))
    assert found.root == 1 and "1 is the best so far\n" in tree(found)
    broken = {4: 0.1, 3: 0.2}
    assert read_lineage(write(tmp_path, broken=broken)).root == 2
    found = read_lineage(write(tmp_path, broken={n: 1.0 - n / 10 for n in range(4)} | broken))
    assert found.root == 4 and "; none keeps the constraints" in tree(found)


def test_of_several_objectives_the_first_counts_and_it_is_said(tmp_path):
    objectives = [{"name": "ma\x1bths", "goal": "maximize"}, {"name": "b", "goal": "maximize"}]
    told = {n: [n / 8, -n / 8] for n in range(5)} | {2: [3.0, 0.0]}
    write(tmp_path, objectives=objectives, told=told)
    assert "2 is the best so far by maths alone, the first of 2 objectives" in tree(
        read_lineage(tmp_path)
    )
    assert "best so far" not in tree(read_lineage(tmp_path, 2))


def test_text(tmp_path):
    found = tree(read_lineage(write(tmp_path, results={2: None, 3: "open"}), 14))
    assert found.splitlines() == [
        "14 (maths 0.5) = 30% 13 + 70% 2 up to 20.0%, 70% 13 + 30% 2 behind",
        "├─ 13 (no result yet) = 90% 2 + 10% math",
        "│  ├─ 2 (failed) = 75% math + 25% japanese up to 50.0%, 25% math + 75% japanese behind",
        "│  │  ├─ math (seed; maths 0)",
        "│  │  └─ japanese (seed; maths 0.125)",
        "│  └─ math (seed; maths 0)",
        "└─ 2 (see above)",
        "",
        "seeds of 14, along its parameters:",
        "  math: 53.3% on average, the largest share in 50.0%",
        "  japanese: 46.7% on average, the largest share in 50.0%",
    ]


def test_the_base_as_a_seed(tmp_path):
    matter = {"space.include_base": True, "models.base": "0", "models.sources.math": "1"}
    assert read_lineage(write(tmp_path, matter=matter), 14).seeds == ("base", "math")


def test_names_are_escaped(tmp_path):
    lineage = read_lineage(write(tmp_path, names=(HOSTILE, "b" * 80)), 14)
    assert "\x1b" not in tree(lineage)
    svg = lineage_svg(lineage)
    root = ET.fromstring(svg)
    assert not root.findall(".//{*}script") and "&lt;script&gt;" in svg


def test_the_picture_has_every_member_and_its_parents(tmp_path):
    root = ET.fromstring(lineage_svg(read_lineage(write(tmp_path), 14)))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{space}circle")) == 5
    assert len(root.findall(f".//{space}path")) == 6
    width, height = (float(root.get(k)) for k in ("width", "height"))
    for circle in root.iter(f"{space}circle"):
        assert 0 < float(circle.get("cx")) < width and 0 < float(circle.get("cy")) < height


def test_the_strip_covers_all_parameters(tmp_path):
    root = ET.fromstring(lineage_svg(read_lineage(write(tmp_path), 14)))
    bars = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("shape-rendering")]
    area = sum(float(r.get("width")) * float(r.get("height")) for r in bars)
    assert area == pytest.approx((float(root.get("width")) - 80) * 96, rel=1e-3)


@pytest.mark.parametrize("candidate", [None, 700])
def test_long_and_wide_pedigrees(tmp_path, candidate):
    rng = np.random.default_rng(0)
    chain = [Mating.of_seed(k) for k in range(30)]
    for n in range(30, 1500):
        near = int(rng.integers(max(0, n - 40), n))
        chain.append(Mating(n, n - 1, near, rng.random(), rng.random()))
    names = [f"source {k}" for k in range(30)]
    lineage = read_lineage(write(tmp_path, chain, names), candidate)
    assert len(tree(lineage).splitlines()) < 2 * len(lineage.members) + len(names) + 5
    ET.fromstring(lineage_svg(lineage))


def test_what_has_no_lineage(tmp_path):
    with pytest.raises(JournalError):
        read_lineage(tmp_path)
    with pytest.raises(ConfigError, match=r"0-2, 13-14"):
        read_lineage(write(tmp_path), 99)
    with pytest.raises(ConfigError, match="no parents"):
        read_lineage(write(tmp_path, space={"dimensions": [{"name": "weight/a/all"}]}))
    with pytest.raises(ConfigError, match="none yet"):
        read_lineage(write(tmp_path, []))


def test_the_verb(tmp_path, capsys):
    write(tmp_path / "run")
    out = tmp_path / "tree.svg"
    assert run(["lineage", str(tmp_path / "run"), "13", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("13 (maths 0.375) = 90% 2 + 10% math\n")
    ET.parse(out)
    assert (
        run(["lineage", str(tmp_path / "run"), "13", "--out", str(tmp_path / "no" / "a.svg")]) == 2
    )
    shown = capsys.readouterr()
    assert "--out" in shown.err and not shown.out
    assert run(["lineage", str(tmp_path / "run"), "13", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert ", a directory\n" in shown.err and not shown.out
    assert run(["lineage", str(tmp_path / "nothing")]) == 2
    with pytest.raises(SystemExit) as stop:
        run(["lineage", "--help"])
    assert stop.value.code == 0
