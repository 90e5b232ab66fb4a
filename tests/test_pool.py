"""The pool's check: findings, relevance, pruning, the verb and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from pool_models import SIZE, ZOO, Memory, directions, model, partition, pool, zoo_models
from scipy import stats

from evomerge.cli import run
from evomerge.errors import ConfigError
from evomerge.pool import PoolSettings, check_pool, judge, prune
from evomerge.pool_geometry import measure
from evomerge.pool_relevance import gains, paired_gain
from evomerge.zoo import zoo_path


@pytest.fixture(scope="module")
def zoo():
    return zoo_models()


# -- findings -------------------------------------------------------------------------------


def kinds(findings):
    return [(f.kind, f.sources) for f in findings.findings]


def test_findings_name_what_is_wrong_with_whom():
    one, two, three = directions(3) * 2.0  # the base's norm is about sqrt(58)
    base, sources = pool(
        {
            "plain": one,
            "copy": np.zeros(SIZE),
            "twin": 1.5 * one + 0.1 * two,
            "against": -one + two,
            "away": 4 * three,
        }
    )
    found = check_pool(base, sources)
    assert kinds(found) == [
        ("equal", ("copy",)),
        ("far", ("away",)),
        ("duplicate", ("plain", "twin")),
        ("opposed", ("plain", "against")),
        ("opposed", ("twin", "against")),
        ("unrelated", ("away",)),
    ]
    by_kind = {f.kind: f for f in found.findings}
    assert by_kind["duplicate"].value == pytest.approx(1.5 / np.hypot(1.5, 0.1))
    assert by_kind["far"].value == pytest.approx(8 / found.geometry.base_norm)
    assert len(found.warnings) == 5 and len(found.notes) == 1
    assert all(f.sources[0] in f.text and f.text.endswith(".") for f in found.findings)
    assert partition(found.clusters) == {
        frozenset({0, 2}), frozenset({1}), frozenset({3}), frozenset({4})
    }  # fmt: skip
    looser = judge(found.geometry, PoolSettings(far=2.0, duplicate=0.999))
    assert {k for k, _ in kinds(looser)} == {"equal", "opposed", "unrelated"}
    assert looser.geometry is found.geometry


def test_the_zoo_gives_no_warning(zoo):
    found = check_pool(*zoo)
    assert found.warnings == () and found.clusters == (0, 1, 2)
    assert 2.9 < found.distinct < 3.0


def test_a_model_of_another_start_is_far():
    """Two independent random models differ by sqrt(2) of their norm."""
    rng = np.random.default_rng(1)
    base, other = (model(rng.normal(size=SIZE), n) for n in ("base", "other"))
    [far] = check_pool(base, {"other": other}).findings
    assert far.kind == "far" and far.value == pytest.approx(np.sqrt(2), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [("math", "en_math_tiny"), ("japanese", "polite_tiny"), ("sorter", "sort_tiny")],
)
def test_the_basins_of_the_zoo_end_before_the_default_of_far(name, task, zoo):
    """A specialist is better than the base at its task, and worse once stretched to `far`."""
    from transformers import AutoModelForCausalLM

    from evomerge.cli import compose_config
    from evomerge.setup import make_task

    base, sources = zoo
    config = compose_config(["+experiment=jp_math_tiny"])
    made = make_task(config["report_tasks"][task], "task")
    tokenizer = base.tokenizer()
    network = AutoModelForCausalLM.from_pretrained(base.ref, dtype=torch.float32)

    def loglik(stretch):
        network.load_state_dict(
            {n: base.tensor(n) + stretch * (sources[name].tensor(n).float() - base.tensor(n))
             for n in base.names}, strict=False,
        )  # fmt: skip
        found = []
        for item in made.items("search")[:30]:
            prompt = tokenizer.encode(made.prompt(item)).ids
            ids = torch.tensor([tokenizer.encode(made.prompt(item) + item.gold).ids])
            with torch.no_grad():
                logs = network(ids).logits[0, :-1].log_softmax(-1)
            picked = logs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
            found.append(float(picked.mean()))
        return np.mean(found)

    norm = float(measure(base, {name: sources[name]}).norms[0])
    assert loglik(1.0) > loglik(0.0) > loglik(PoolSettings().far / norm)


def test_the_base_in_another_dtype_is_not_equal_to_it():
    """Rounding to bfloat16 changes normal numbers by 0.0017 of their norm."""
    base, _ = pool({})
    rounded = Memory({n: t.bfloat16().double() for n, t in base.tensors.items()}, "rounded")
    found = check_pool(base, {"rounded": rounded})
    assert found.findings == () and found.geometry.norms[0] == pytest.approx(0.0017, rel=0.2)


def test_data_for_json_holds_everything_and_no_nan(zoo):
    scores = {n: {"t": [0.0] if n == "base" else [1.0]} for n in ("base", *ZOO)}
    found = check_pool(*zoo, PoolSettings(relevance=True), scores)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(plain["sources"]) == list(ZOO)
    assert plain["sources"]["math"]["norm"] == found.geometry.norms[0]
    assert plain["sources"]["math"]["gains"]["t"]["stderr"] is None
    assert np.array_equal(plain["cosines"], found.geometry.cosines)
    assert list(plain["group_cosines"]) == list(found.geometry.groups)
    assert [f["kind"] for f in plain["findings"]] == ["irrelevant"] * 3  # one item says nothing


# -- relevance and pruning --------------------------------------------------------------------


def test_a_gain_is_the_paired_difference_with_its_standard_error():
    rng = np.random.default_rng(0)
    base = rng.random(60)
    source = np.clip(base + 0.1 + 0.2 * rng.normal(size=60), 0, 1)
    gain = paired_gain(source, base)
    assert gain.gain == pytest.approx((source - base).mean())
    assert gain.stderr == pytest.approx(stats.sem(source - base))
    assert gain.p == pytest.approx(stats.ttest_rel(source, base).pvalue, abs=0.01)
    assert gain.significant and not paired_gain(base, source).significant
    assert paired_gain([1, 1, 0], [1, 0, 1]).p == 1.0


def test_scores_without_the_bases_are_refused():
    with pytest.raises(ValueError, match="none of the base"):
        dict(gains(["a"], {"a": {"t": [1.0]}}))
    with pytest.raises(ValueError, match="2 and 3"):
        dict(gains(["a"], {"a": {"t": [1.0, 0.0]}, "base": {"t": [1.0, 0.0, 0.0]}}))
    assert dict(gains(["a"], {"base": {"t": [1.0]}})) == {"a": {}}


def scored(**shares):
    """Scores of 40 items on two tasks; a share of those that the base misses are right."""
    base = np.zeros(40)
    out = {"base": {"x": base, "y": base}}
    for name, (x, y) in shares.items():
        out[name] = {"x": (np.arange(40) < 40 * x) * 1.0, "y": (np.arange(40) < 40 * y) * 1.0}
    return out


SIX = dict(zip("abcdef", directions(6), strict=True))


def test_relevance_needs_a_significant_gain_on_any_task():
    names = {n: SIX[n] for n in "abcd"}
    scores = scored(a=(0.5, 0), b=(0, 0.4), c=(0.1, 0.1), d=(0, 0))
    del scores["d"]  # could not be measured: nothing is held against it
    found = check_pool(*pool(names), PoolSettings(relevance=True), scores)
    assert [f.sources for f in found.of("irrelevant")] == [("c",)]
    assert "+0.100 +- 0.048, on x" in found.of("irrelevant")[0].text
    assert found.relevance == pytest.approx({"a": 0.5, "b": 0.4, "c": 0.1})
    kept = prune("abcd", found, PoolSettings(prune=True, relevance=True))
    assert kept.kept == ("a", "b", "d") and list(kept.dropped) == ["c"]
    assert prune("abcd", found, PoolSettings(prune=True)).kept == tuple("abcd")


def test_of_near_duplicates_the_most_relevant_one_stays():
    a, b = SIX["a"], SIX["b"]
    changes = {"a": a, "b": b, "a2": a + 0.05 * b, "a3": a - 0.05 * b, "zero": 0 * a}
    found = check_pool(*pool(changes))
    rule = PoolSettings(prune=True)
    plain = prune(list(changes), found, rule)
    assert plain.kept == ("a", "b")
    assert plain.dropped == {
        "a2": "a near duplicate of a", "a3": "a near duplicate of a", "zero": "equal to the base"
    }  # fmt: skip
    assert prune(["a3", "a2", "b"], found, rule).kept == ("a3", "b")
    rule = PoolSettings(prune=True, relevance=True)
    scores = scored(a=(0.3, 0), b=(0.3, 0), a2=(0.9, 0), a3=(0.6, 0), zero=(0, 0))
    best = prune(list(changes), check_pool(*pool(changes), rule, scores), rule)
    assert best.kept == ("b", "a2") and best.dropped["a"] == "a near duplicate of a2"


def test_keep_takes_the_most_relevant_ones():
    rule = PoolSettings(prune=True, relevance=True, keep=2)
    scores = scored(a=(0.3, 0), b=(0.5, 0.9), c=(0.6, 0), d=(0.6, 0), e=(0, 0))
    changes = {n: SIX[n] for n in "abcde"}
    kept = prune("abcde", check_pool(*pool(changes), rule, scores), rule)
    assert kept.kept == ("b", "c")  # c before d: equal, and first
    assert kept.dropped["d"] == "not among the 2 most relevant"


def test_never_all_are_dropped():
    rule = PoolSettings(prune=True, relevance=True)
    changes = {n: SIX[n] for n in "ab"}
    found = check_pool(*pool(changes), rule, scored(a=(0, 0), b=(0, 0)))
    with pytest.raises(ConfigError, match=r"pool\.prune: found no source left: a: no significant"):
        prune("ab", found, rule)
    with pytest.raises(ConfigError, match="none was given"):
        prune([], found, PoolSettings())
    with pytest.raises(ValueError, match="x is not in"):
        prune("ax", found, rule)
    with pytest.raises(ValueError, match="scores"):
        prune("ab", check_pool(*pool(changes)), rule)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("check", "yes"), ("prune", 1), ("relevance", None), ("duplicate", 0), ("duplicate", 1.5),
        ("duplicate", True), ("far", 0), ("far", float("nan")), ("far", "0.5"), ("keep", 0),
        ("keep", 2.5), ("keep", True), ("keep", 2), ("keeep", 2),
    ],
)  # fmt: skip
def test_wrong_settings(key, value):
    with pytest.raises(ConfigError, match=rf"pool\.{key}"):
        PoolSettings.of({key: value})
    assert PoolSettings.of(None) == PoolSettings.of({}) == PoolSettings()


# -- the verb ---------------------------------------------------------------------------------

COMMAND = ["pool", "+experiment=jp_math_tiny"]


def test_the_verb_prints_a_table(capsys):
    assert run(COMMAND) == 0
    out = capsys.readouterr().out
    for part in ("math", "0.1531", "embedding 0.348", "math +0.089", "2.99 of 3", "No warning"):
        assert part in out


def test_the_verb_prints_data(capsys):
    assert run([*COMMAND, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["parameters"] == 666368 and plain["findings"] == []


def test_the_verb_warns_of_what_it_finds(capsys):
    base = zoo_path("models/base")
    added = [f"models.sources.math={base}", f"+models.sources.twin={zoo_path('models/sorter')}"]
    assert run([*COMMAND, *added]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: math equals the base" in out
    assert "warning: sorter and twin are near duplicates" in out
    assert "1.89 of 4" in out  # two directions, one of them twice: exp of the entropy of 2/3, 1/3


def test_the_verb_explains_itself_and_mistakes(capsys, tmp_path):
    assert run(["pool", "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert run([*COMMAND, f"models.sources.math={tmp_path}"]) == 2
    assert "models.sources.math" in capsys.readouterr().err


def test_progress_is_told_of_as_a_phase():
    from evomerge.pool_command import reporter

    said = []
    fake = SimpleNamespace(
        start=lambda *a: said.append(("start", *a)),
        step=lambda *a: said.append(("step", *a)),
        stop=lambda: said.append(("stop",)),
    )
    report = reporter(fake)
    report(3, 6)
    report(6, 6)
    assert [s[0] for s in said] == ["start", "step", "step", "stop"]
    assert said[0] == ("start", "measuring the pool", 0, 6)


# -- docs/pool.md -----------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs/pool.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(monkeypatch, tmp_path, capsys):
    (tmp_path / "evomerge/zoo").mkdir(parents=True)
    (tmp_path / "evomerge/zoo/models").symlink_to(zoo_path("models"))
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(block, "docs/pool.md", "exec"), names)
    assert names["kept"] == ("math", "sorter")
    assert capsys.readouterr().out.startswith("() [[1.")


def test_the_table_and_settings_of_the_page_are_the_real_ones(capsys):
    [shown] = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    command, *lines = [" ".join(line.split()) for line in shown.splitlines() if line.strip()]
    assert run(command.split()[4:]) == 0
    out = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line not in out] == []
    [text] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert PoolSettings.of(yaml.safe_load(text)["pool"]) == PoolSettings()


def test_keys_of_the_config_reach_the_settings(capsys):
    assert run([*COMMAND, "++pool.far=0.1", "++pool.relevance=true"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "math lies far from the base: its change is 0.15 of the base's norm (limit 0.1" in out
    assert "Relevance needs scores" in out
    assert run([*COMMAND, "++pool.far=-1"]) == 2
    assert "pool.far" in capsys.readouterr().err
