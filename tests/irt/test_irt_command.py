"""The verb from answers to file, table and pictures, and what it says of mistakes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from evomerge.cli import run
from evomerge.irt.figures import curves, information, typical
from evomerge.irt.fit import fit_items
from evomerge.irt.model import ItemModel
from evomerge.irt.responses import Responses
from evomerge.irt_command import reliability

HOSTILE = '<script>&"\x1b[31m'


@pytest.fixture
def matrix(tmp_path):
    rng = np.random.default_rng(0)
    theta, beta = rng.standard_normal(40), rng.standard_normal(14)
    scores = (rng.random((40, 14)) < 1 / (1 + np.exp(beta - theta[:, None]))).astype(np.float32)
    scores[:, 13] = 0
    scores[0, 3] = np.nan
    names = [f"m{i}" for i in range(40)], [HOSTILE, *(f"q{i}" for i in range(1, 14))]
    np.savez(tmp_path / "a.npz", correct=scores, model_names=names[0], item_ids=names[1])
    return tmp_path / "a.npz"


def test_fit_writes_the_items_and_prints_what_it_found(matrix, tmp_path, capsys):
    out = tmp_path / "items.npz"
    assert run(["irt", "fit", str(matrix), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    model = ItemModel.load(out)
    assert len(model) == 14 and model.settings["models"] == 40
    assert model.settings["constant"] == ["q13"] and model.settings["source"] == "a.npz"
    for line in (
        "models            40", "items             14, 1 of them constant",
        "answers           559, 0.2% missing", "dimensions        1", "converged",
    ):  # fmt: skip
        assert line in shown
    assert "note: 1 of 14 items have the same score" in shown and str(out) in shown
    assert "\x1b" not in shown


def test_the_fit_of_the_verb_is_that_of_the_function(matrix, tmp_path):
    out = tmp_path / "items.json"
    arguments = ["--dimensions", "2", "--ability-precision", "2", "--seed", "5"]
    assert run(["irt", "fit", str(matrix), "--out", str(out), *arguments]) == 0
    with np.load(matrix) as file:
        answers = Responses(tuple(file["model_names"]), tuple(file["item_ids"]), file["correct"])
    fit = fit_items(answers, 2, ability_precision=2, seed=5)
    np.testing.assert_array_equal(ItemModel.load(out).discrimination, fit.model.discrimination)


def test_show_prints_items_with_their_errors(matrix, tmp_path, capsys):
    out = tmp_path / "items.npz"
    run(["irt", "fit", str(matrix), "--out", str(out)])
    capsys.readouterr()
    assert run(["irt", "show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "source            a.npz" in shown and "the first and last 5" in shown
    assert run(["irt", "show", str(out), "--item", "q3", "q13"]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = ItemModel.load(out)
    assert len(lines) == 3 and lines[1].startswith("q3") and lines[2].startswith("q13")
    assert f"{model.difficulty[3]:.2f} ± {model.difficulty_error[3]:.2f}" in lines[1]


def test_figures_are_drawn_beside_fit_and_show(matrix, tmp_path):
    out = tmp_path / "items.npz"
    folders = tmp_path / "one", tmp_path / "two"
    assert run(["irt", "fit", str(matrix), "--out", str(out), "--plots", str(folders[0])]) == 0
    arguments = ["--item", "q1", HOSTILE, "--plots", str(folders[1])]
    assert run(["irt", "show", str(out), *arguments]) == 0
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(f"{n}.{s}" for n in ("item_curves", "information")
                               for s in ("png", "svg"))  # fmt: skip
        for name in names:
            if name.endswith("svg"):
                assert not list(ET.parse(folder / name).iter("{http://www.w3.org/2000/svg}script"))
            else:
                assert (folder / name).read_bytes().startswith(b"\x89PNG")


def fitted(dimensions=1, models=80):
    rng = np.random.default_rng(1)
    theta, beta = rng.standard_normal(models), np.linspace(-2, 2, 30)
    p = 1 / (1 + np.exp(beta - theta[:, None]))
    scores = (rng.random((models, 30)) < p).astype(np.float32)
    answers = Responses(
        tuple(f"m{i}" for i in range(models)), tuple(f"q{i}" for i in range(30)), scores
    )
    return fit_items(answers, dimensions), scores


def test_curves_hold_the_model_and_dots_the_answers():
    fit, scores = fitted()
    rows = curves(fit.model, np.array([4]), (fit.abilities, scores))["data"]["values"]
    line = [r for r in rows if r["kind"] == "curve"]
    x = np.array([[r["ability"]] for r in line])
    np.testing.assert_allclose(
        [r["probability"] for r in line], fit.model.probability(x)[:, 4], atol=1e-3
    )
    dots = [r for r in rows if r["kind"] == "seen"]
    assert len(dots) == 10  # groups of 8 of the 80 models
    assert np.mean([d["mean"] for d in dots]) == pytest.approx(scores[:, 4].mean(), abs=1e-3)
    assert all(d["bottom"] <= d["mean"] <= d["top"] for d in dots)


def test_information_is_the_sum_over_items_and_over_the_best():
    fit, _ = fitted()
    rows = information(fit.model)["vconcat"][0]["data"]["values"]
    assert {r["items"] for r in rows} == {"the best 20 at that ability", "all 30 items"}
    for row in rows[::17]:
        each = np.sort(fit.model.information([row["ability"]]))[::-1]
        n = 20 if "20" in row["items"] else 30
        assert row["information"] == pytest.approx(each[:n].sum(), rel=1e-3)


def test_typical_items_go_from_easy_to_hard():
    fit, _ = fitted()
    chosen = typical(fit.model, 5)
    assert len(set(chosen)) == 5 and (np.diff(fit.model.difficulty[chosen]) > 0).all()
    assert len(typical(fit.model, 100)) == 30


def test_reliability_is_the_squared_correlation_with_the_truth():
    rng = np.random.default_rng(2)
    theta = rng.standard_normal(1500)
    scores = rng.random((1500, 40)) < 1 / (1 + np.exp(rng.standard_normal(40) - theta[:, None]))
    names = tuple(map(str, range(1500))), tuple(map(str, range(40)))
    fit = fit_items(Responses(*names, scores.astype(np.float32)))
    truth = np.corrcoef(fit.abilities[:, 0], theta)[0, 1] ** 2
    assert reliability(fit)[0] == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "{matrix}", "--out", "items.pkl"], "found the suffix '.pkl'"),
        (["fit", "{matrix}", "--out", "absent/items.npz"], "no folder"),
        (["fit", "absent.csv", "--out", "items.npz"], "nothing there"),
        (["fit", "{matrix}", "--out", "items.npz", "--dimensions", "40"], "40 with 40 models"),
        (["fit", "{matrix}", "--out", "items.npz", "--min-answers", "99"], "99 answers each"),
        (["fit", "{matrix}", "--out", "items.npz", "--ability-precision", "0"], "above 0"),
        (["show", "absent.npz"], "missing or damaged"),
        (["show", "{matrix}"], "missing or damaged"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(
    matrix, tmp_path, capsys, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    assert run(["irt", *(a.format(matrix=matrix) for a in arguments)]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]


def test_an_unknown_item_is_named(matrix, tmp_path, capsys):
    out = tmp_path / "items.npz"
    run(["irt", "fit", str(matrix), "--out", str(out)])
    assert run(["irt", "show", str(out), "--item", "q99"]) == 2
    assert "q99" in capsys.readouterr().err
