"""Only this package's components are built, with arguments that they take."""

import pytest

from evomerge.build import build, load_target
from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.seeds import derive

DOMAIN = Domain((Dimension("weight/a/all", 0.0, 1.0, 0.5, 0.2),))
RANDOM = "evomerge.optimizers.random.Random"


def problem(spec, field="optimizer", **extra):
    with pytest.raises(ConfigError) as raised:
        build(spec, field, **extra)
    [found] = raised.value.problems
    return found


def test_builds_with_config_and_program_arguments():
    optimizer = build({"_target_": RANDOM, "batch": 3}, "optimizer", domain=DOMAIN, seed=1)
    assert optimizer.batch == 3
    assert optimizer.domain is DOMAIN


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "hydra.utils.instantiate",
        "evomergex.space.MergeSpace",
        ".os.system",
        "evomerge.errors.dataclass",
        "evomerge.recipe.loading.yaml.unsafe_load",
        "evomerge.checkpoints.writer.shutil",
        "evomerge.checkpoints.whole_folder.shutil.rmtree",
        "evomerge.checkpoints.adapter_merge.save_file",
        "evomerge.build.import_module",
        "evomerge.optimizers.base.np",
        "evomerge.recipe.loading.Path",
        "evomerge.types.FloatArray",
        "evomerge.types.SPLITS",
        "evomerge.types.__builtins__",
        "evomerge.types.Task",
        "evomerge.optimizers.base.Optimizer",
        "evomerge.tasks",
        "evomerge.tasks.item_task",
        "evomerge.nothing.Here",
        "evomerge.space.MergeSpacee",
        "evomerge..space",
        "evomerge.",
        "evomerge",
        "",
        None,
        5,
        ["os.system"],
    ],
)
def test_other_targets_are_refused(target):
    found = problem({"_target_": target, "batch": 3})
    assert found.field == "optimizer._target_"
    assert str(target) in found.found


def test_a_refused_target_is_not_called(tmp_path):
    witness = tmp_path / "witness"
    problem({"_target_": "os.mkdir", "path": str(witness)})
    problem({"_target_": "evomerge.checkpoints.whole_folder.os.mkdir", "path": str(witness)})
    nested = {"_target_": "pathlib.Path.touch", "self": str(witness)}
    assert problem({"_target_": RANDOM, "batch": nested}).field == "optimizer.batch._target_"
    assert not witness.exists()


def test_nodes_without_a_target_are_refused():
    assert problem({"batch": 3}).field == "optimizer._target_"
    with pytest.raises(ConfigError, match=r"task\._target_"):
        load_target("evomerge.space.MergeSpace", "task")


def test_unknown_arguments_are_named_with_a_suggestion():
    found = problem({"_target_": RANDOM, "bach": 3}, domain=DOMAIN, seed=1)
    assert (found.field, found.remedy) == ("optimizer.bach", "Did you mean optimizer.batch?")
    found = problem({"_target_": RANDOM, "zzz": 3}, domain=DOMAIN, seed=1)
    assert (found.field, found.expected) == ("optimizer.zzz", "one of batch")


def test_arguments_of_the_program_cannot_be_set():
    found = problem({"_target_": RANDOM, "seed": 3}, domain=DOMAIN, seed=1)
    assert found.field == "optimizer.seed"


def test_missing_arguments_are_named():
    assert problem({"_target_": RANDOM}, seed=1).field == "optimizer.domain"


def test_a_component_of_another_room_is_refused_by_name():
    found = problem({"_target_": "evomerge.recipe.Source"}, domain=DOMAIN, seed=1)
    assert found.field == "optimizer._target_"
    assert "domain" in found.found


def test_nested_targets_are_built_first():
    source = {"_target_": "evomerge.recipe.Source", "model": "a"}
    spec = {
        "_target_": "evomerge.recipe.Recipe",
        "method": "linear",
        "sources": [source, {**source, "model": "b"}],
        "parameters": {"deep": {"case": {"_target_": "evomerge.recipe.Case", "filter": None,
                                         "value": 1.0}}},
    }  # fmt: skip
    recipe = build(spec, "recipe")
    assert [s.model for s in recipe.sources] == ["a", "b"]
    assert recipe.parameters["deep"]["case"].value == 1.0
    assert spec["sources"][0]["_target_"].endswith("Source")


def test_errors_in_nested_targets_name_the_path():
    source = {"_target_": "evomerge.recipe.Source", "modle": "a"}
    spec = {"_target_": "evomerge.recipe.Recipe", "method": "linear", "sources": [source]}
    found = problem(spec, "recipe")
    assert found.field == "recipe.sources[0].modle"
    assert found.remedy == "Did you mean recipe.sources[0].model?"


def test_derived_seeds_differ_and_fit_63_bits():
    seeds = {
        derive(seed, purpose, number)
        for seed in (0, 1, 12)
        for purpose in ("search", "search2", "mask", "")
        for number in (0, 1, 2, 11)
    }
    assert len(seeds) == 48
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive(5, "a") == derive(5, "a", 0)
