"""The digits experiment: its searches, its files, its picture."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn holds the digits")

from evomerge import mating
from evomerge.digits import __main__ as digits_main
from evomerge.digits import figure, methods, records, search
from evomerge.digits.elites import CellElites
from evomerge.digits.records import Plan, Record
from evomerge.errors import ConfigError, JournalError
from evomerge.mating import Mating
from evomerge.types import Fitness, Observation
from evomerge.zoo import digits

SEEDED = [m for m in methods.METHODS if m != "sep_cma_es"]  # 19 210 dimensions take cma 5 s


def command(*arguments):
    return digits_main.main([str(a) for a in arguments])


@pytest.mark.parametrize("start", figure.STARTS)
@pytest.mark.parametrize("method", SEEDED)
def test_every_method_runs_and_repeats(method, start):
    plan = Plan(method, start, 40, 1)
    heard = []
    one, two = search.run(plan, lambda *a: heard.append(a)), search.run(plan)
    assert [r.evaluations for r in one] == [40]
    assert [(r.train, r.test) for r in one] == [(r.train, r.test) for r in two]
    assert heard[-1] == (40, one[-1].train)
    assert 0 < one[-1].train < 1


def test_a_longer_search_begins_alike():
    short, long = (
        search.run(Plan("m2n2", "scratch", 100, 0)),
        search.run(Plan("m2n2", "scratch", 150, 0)),
    )
    assert [r.evaluations for r in long] == [100, 150]
    assert (short[0].train, short[0].test) == (long[0].train, long[0].test)


def test_m2n2_keeps_its_population_and_no_more():
    train, _ = digits.load()
    plan = Plan("m2n2", "scratch", 60, 0)
    made = methods.make(plan, search.beginnings(plan, train), train.labels, batch=4)
    classifier = digits.Classifier(train)
    for _ in range(15):
        for at, vector in enumerate(made.propose(4)):
            right = classifier.correct(vector)
            made.hear(at, right)
        assert len(made._members) <= methods.POPULATION + 4
    accuracy, vector = made.best()
    assert classifier.accuracy(vector) == accuracy
    alive = [classifier.accuracy(made._members[n]) for n in made._optimizer.archive]
    assert accuracy == max(alive)


def test_the_best_of_trained_seeds_is_no_worse_than_either():
    train, _ = digits.load()
    seeds = digits.pretrained(0, train)
    (record,) = search.run(Plan("ga", "pretrained", 60, 0))
    assert record.train >= max(map(digits.Classifier(train).accuracy, seeds))


class Vector(methods.Search):
    """Ends after three proposals."""

    def __init__(self):
        self.left = 3

    def propose(self, most):
        self.left -= 1
        return [digits.fresh(0, 0)] if self.left >= 0 else []

    def hear(self, at, correct):
        pass

    def best(self):
        return 0.5, digits.fresh(0, 0)


def test_a_search_that_ends_early_keeps_its_accuracy(monkeypatch):
    monkeypatch.setattr(methods, "make", lambda *_: Vector())
    rows = search.run(Plan("sep_cma_es", "scratch", 500, 0))
    assert [r.evaluations for r in rows] == [100, 300, 500]
    assert {r.train for r in rows} == {0.5}


def test_direct_search_remembers_its_best():
    class Counts:
        batch = 3
        told: list

        def ask(self, n):
            return [np.full(4, float(i)) for i in range(n)]

        def tell(self, observations):
            self.told = [*getattr(self, "told", []), *observations]

    made = methods.DirectSearch(Counts())
    vectors = made.propose(2)
    assert len(vectors) == 2 and vectors[0].dtype == np.float32
    made.hear(0, np.array([True, True, False, False]))
    made.hear(1, np.array([True, False, False, False]))
    assert made.best()[0] == 0.5 and np.array_equal(made.best()[1], vectors[0])
    assert [o.fitness.values for o in made._optimizer.told] == [(0.5,), (0.25,)]


def test_box_holds_the_first_network():
    start = digits.fresh(0, 0)[:50]
    domain = methods.box(start)
    np.testing.assert_allclose(domain.start, start)
    assert (domain.step == methods.MUTATION).all()
    assert (np.abs(domain.start) < domain.high).all()


def elites(cells=10):
    return CellElites(mating.domain(2), 0, np.array([False, False, True, True]), cells=cells)


def tell(optimizer, genome, scores):
    scores = np.array(scores, dtype=np.float64)
    optimizer.tell([Observation(genome, Fitness((scores.mean(),), (0.0,)), scores)])


def test_elites_keep_the_best_of_each_cell():
    made = elites(cells=2)
    scores = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]]
    for row in scores:
        tell(made, made.ask(1)[0], row)
    # cells by halves: 0 and 1 in (high, low), 2 in (low, high); 3 and 5 in (high, high)
    assert set(made.archive) == {1, 2, 5}


def test_elites_mate_two_different_ones():
    made = elites()
    for row in ([1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]):
        tell(made, made.ask(1)[0], row)
    matings = [Mating.from_genome(g) for g in made.ask(300)]
    pairs = [(m.first, m.second) for m in matings]
    assert set(pairs) == {(0, 1), (1, 0)}  # the third solves nothing
    assert abs(pairs.count((0, 1)) / 300 - 2 / 3) < 0.1
    for drawn in ([m.share for m in matings], [m.split for m in matings]):
        assert 0 <= min(drawn) < 0.05 and 0.95 < max(drawn) <= 1


def test_elites_begin_with_the_seeds():
    made = elites()
    first, second, third = (Mating.from_genome(g) for g in made.ask(3))
    assert first.is_seed and second.is_seed and not third.is_seed


def test_elites_need_two_halves():
    with pytest.raises(ValueError, match="both halves"):
        CellElites(mating.domain(2), 0, np.zeros(4, bool))


def test_a_finished_search_is_not_run_again(tmp_path, monkeypatch, capsys):
    asked = "--method", "m2n2", "ga", "--seed", 0, 1, "--evaluations", 10, "--dir", tmp_path
    assert command(*asked) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    before = [f.read_bytes() for f in files]
    monkeypatch.setattr(search, "run", None)
    assert command(*asked) == 0
    assert [f.read_bytes() for f in sorted(tmp_path.iterdir())] == before
    assert "is there" in capsys.readouterr().err


def test_an_interruption_leaves_finished_files_only(tmp_path, monkeypatch, capsys):
    real = search.run

    def run(plan, report):
        if plan.seed == 1:
            raise KeyboardInterrupt
        return real(plan, report)

    monkeypatch.setattr(search, "run", run)
    assert command("--seed", 0, 1, "--evaluations", 5, "--dir", tmp_path) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["m2n2-scratch-5-seed0.csv"]
    assert "the same command goes on" in capsys.readouterr().err


def test_another_search_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "one.csv"
    assert command("--evaluations", 5, "--out", out) == 0
    before = out.read_bytes()
    assert command("--evaluations", 6, "--out", out) == 2
    assert "m2n2-scratch-5-seed0" in capsys.readouterr().err
    out.write_text("something else\n")
    assert command("--evaluations", 5, "--out", out) == 2
    assert out.read_text() == "something else\n" and before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--evaluations", 1), "--evaluations"),
        (("--seed", -1), "--seed"),
        (("--seed", 0, 1, "--out", "x.csv"), "--out"),
    ],
)
def test_mistakes_are_told_at_once(arguments, message, capsys):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_method(capsys):
    with pytest.raises(SystemExit) as stop:
        command("--method", "annealing")
    assert stop.value.code == 2 and "m2n2" in capsys.readouterr().err


def test_help_names_the_methods(capsys):
    with pytest.raises(SystemExit) as stop:
        command("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in methods.METHODS)


def test_without_scikit_learn(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        digits_main, "find_spec", lambda name: None if name == "sklearn" else real(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[digits\]'"):
        digits_main.check(10, [0], False)


def test_files_hold_what_was_written(tmp_path):
    plan = Plan("ga", "pretrained", 300, 7, angle="global")
    rows = [Record(100, 0.1234567890123, 0.5, 1.25), Record(300, 1 / 3, 2 / 3, 9.0)]
    path = tmp_path / "new" / f"{plan.name}.csv"
    records.write(path, plan, rows)
    assert path.name == "ga-pretrained-global-300-seed7.csv"
    assert records.read(path) == (plan, rows)
    assert records.finished(path, plan)
    with pytest.raises(JournalError, match="ga-pretrained-300-seed7"):
        records.finished(path, Plan("ga", "pretrained", 300, 7))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", ",".join(records.HEAD) + "\nga,scratch\n"])
def test_damaged_files_are_named(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(JournalError, match=r"x\.csv"):
        records.read(path)


def test_checkpoints():
    assert records.checkpoints(1000) == (100, 300, 1000)
    assert records.checkpoints(1001) == (100, 300, 1000, 1001)
    assert records.checkpoints(50_000) == records.CHECKPOINTS


def two_seeds():
    return [
        (Plan("m2n2", "scratch", 300, 0), [Record(100, 0, 0.2, 0), Record(300, 0, 0.4, 0)]),
        (Plan("m2n2", "scratch", 300, 1), [Record(100, 0, 0.4, 0), Record(300, 0, 0.9, 0)]),
        (Plan("m2n2", "scratch", 100, 1), [Record(100, 0, 0.4, 0)]),
    ]


def test_summary_is_mean_and_range_over_seeds():
    first, second = figure.summary(two_seeds())
    assert (first["evaluations"], first["seeds"]) == (100, 2)
    np.testing.assert_allclose([first["mean"], first["low"], first["high"]], [30, 20, 40])
    np.testing.assert_allclose([second["mean"], second["low"], second["high"]], [65, 40, 90])


def test_plot_writes_png_and_svg(tmp_path, capsys):
    for plan, rows in two_seeds():
        records.write(tmp_path / f"{plan.name}.csv", plan, rows)
    assert command("--plot", tmp_path) == 0
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "accuracy.svg").read_text()
    assert drawn.startswith("<svg") and "m2n2" in drawn and "evaluations" in drawn
    shown = capsys.readouterr().out
    assert "accuracy.png" in shown
    assert "| scratch | `m2n2` | 30.0 \\[20.0, 40.0\\] (2) | 65.0 \\[40.0, 90.0\\] (2) |" in shown
    assert not list(tmp_path.glob("*.part"))


def test_plot_refuses_nothing_and_unlike_results(tmp_path, capsys):
    assert command("--plot", tmp_path) == 2
    for plan, rows in two_seeds():
        records.write(tmp_path / f"{plan.name}.csv", plan, rows)
    other = Plan("m2n2", "scratch", 100, 0, pixels="unit")
    records.write(tmp_path / "other.csv", other, [Record(100, 0, 0, 0)])
    assert command("--plot", tmp_path) == 2
    assert "2 kinds" in capsys.readouterr().err


def test_every_method_has_a_colour_of_its_own():
    assert set(figure.COLOURS) == set(methods.METHODS)
    assert len(set(figure.COLOURS.values())) == len(figure.COLOURS)


def test_curves_end_where_seeds_are_missing():
    """Of two seeds one goes on to twice the evaluations; the table has that, the curve does not."""
    short, long = Plan("ga", "scratch", 1000, 0), Plan("ga", "scratch", 2000, 1)
    results = [
        (short, [Record(1000, 0.5, 0.5, 1.0)]),
        (long, [Record(1000, 0.5, 0.7, 1.0), Record(2000, 0.9, 0.9, 2.0)]),
    ]
    assert [r["evaluations"] for r in figure.summary(results)] == [1000, 2000]
    (kept,) = figure.of_all_seeds(figure.summary(results))
    assert kept["mean"] == pytest.approx(60) and kept["seeds"] == 2
    (panel,) = figure.chart(results)["hconcat"]
    assert [row["evaluations"] for row in panel["data"]["values"]] == [1000]


def test_the_chart_is_plain_data():
    spec = figure.chart(two_seeds())
    assert json.loads(json.dumps(spec)) == spec
    (panel,) = spec["hconcat"]
    assert panel["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"
