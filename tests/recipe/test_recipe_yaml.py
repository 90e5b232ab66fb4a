"""YAML files: mergekit's as they are, and the traps of the format."""

import time

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Case, Module, Recipe, Route, Slice, Slot, Source, Tokenizer, TokenRule


def read(tmp_path, text):
    path = tmp_path / "m.yaml"
    path.write_text(text, encoding="utf-8")
    return Recipe.from_yaml(path)


def test_reads_a_merge_of_models(tmp_path):
    recipe = read(
        tmp_path,
        """
merge_method: ties
base_model: org/base
models:
  - model: org/a
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - value: 1
  - model: org/b+org/adapter
    parameters: {weight: 1e-5, density: [0.2, 0.7]}
parameters: {normalize: true, lambda: 1.2, int8_mask: true}
dtype: float32
out_dtype: bfloat16
tokenizer_source: org/a
""",
    )
    assert recipe == Recipe(
        "ties",
        (
            Source("org/a", {"weight": (Case("mlp", 0.5), Case(None, 1))}),
            Source("org/b+org/adapter", {"weight": 1e-5, "density": (0.2, 0.7)}),
        ),
        "org/base",
        {"normalize": True, "lambda": 1.2, "int8_mask": True},
        "bfloat16",
        tokenizer=Tokenizer("org/a"),
    )
    assert recipe.models() == ("org/base", "org/a", "org/b+org/adapter")


def test_reads_slices_with_gradients(tmp_path):
    recipe = read(
        tmp_path,
        """
slices:
  - sources:
      - {model: org/a, layer_range: [0, 16]}
      - model: {model: {path: org/b, revision: main}, override_architecture: LlamaForCausalLM}
        layer_range: [16, 32]
        parameters: {weight: "0.25"}
    base_model: org/c
    residual_weight: null
    parameters: {t: {filter: mlp, value: [0, 0.5, 1]}}
merge_method: slerp
base_model: org/a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - value: 0.5
dtype: torch.bfloat16
""",
    )
    assert recipe == Recipe(
        "slerp",
        base="org/a",
        slices=(
            Slice(
                (
                    Source("org/a", {}, (0, 16)),
                    Source("org/b@main", {"weight": 0.25}, (16, 32)),
                ),
                "org/c",
                {"t": (Case("mlp", (0, 0.5, 1)),)},
            ),
        ),
        parameters={"t": (Case("self_attn", (0, 0.5, 0.3, 0.7, 1)), Case(None, 0.5))},
    )


def test_reads_modules_tokens_and_anchors(tmp_path):
    recipe = read(
        tmp_path,
        """
merge_method: linear
modules:
  text_decoder:
    models:
      - {model: a, parameters: &half {weight: 0.5}}
      - {model: b, parameters: {<<: *half, extra: 2}}
  vision_tower:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
    parameters: *half
tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: {kind: model_token, model: b, token: <s>}, force: true}
    <|pad|>: {source: {kind: zero}}
    <|x|>: {source: {model: a, lora: l}}
    <|y|>: {}
  pad_to_multiple_of: 64
chat_template: chatml
""",
    )
    assert recipe == Recipe(
        "linear",
        dtype=None,
        modules={
            "text_decoder": Module(
                (Source("a", {"weight": 0.5}), Source("b", {"weight": 0.5, "extra": 2}))
            ),
            "vision_tower": Module(
                slices=(Slice((Source("a", {}, (0, 2)),)),), parameters={"weight": 0.5}
            ),
        },
        tokenizer=Tokenizer(
            "union",
            {
                "<|im_start|>": TokenRule("model_token", "b", "<s>", None, True),
                "<|pad|>": TokenRule("zero"),
                "<|x|>": TokenRule("model", "a+l"),
                "<|y|>": TokenRule(),
            },
            64,
        ),
        chat_template="chatml",
    )


def test_reads_a_route_over_a_nested_merge(tmp_path):
    recipe = read(
        tmp_path,
        """
base_model: a
route:
  depth: 4
  slots:
    - {model: a, layer: 3, scale: 5e-1}
    - {model: {merge_method: linear, models: [{model: a}, {model: b}]}, layer: 0, scale: -1}
    - {identity: true}
""",
    )
    inner = Recipe("linear", (Source("a"), Source("b")), dtype=None)
    slots = (Slot("a", 3, 0.5), Slot(inner, 0, -1.0), Slot(None))
    route = Route(slots, "block_output", 4)
    assert recipe == Recipe("passthrough", base="a", dtype=None, route=route)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 2001-13-45",
        "{1: 2",
        "\t- x",
        "? [a]\n: b",
        "!!python/object:os.system {}",
        "!!bool maybe",
        "!!timestamp x",
        "!!int ''",
        "!!set {a, b}",
        "a: =",
        "a: 0x_",
        "a: " + "9" * 5000,
        "--- {a: 1}\n--- {a: 2}",
        "&a [*a]",
        "&a {merge_method: x, models: *a}",
        "",
    ],
)
def test_unreadable_yaml_names_the_file(tmp_path, text):
    with pytest.raises(RecipeError, match=r"m\.yaml"):
        read(tmp_path, text)


def test_missing_and_binary_files_are_named(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.yaml").write_bytes(b"#" * (4 * 2**20 + 1))
    for name in ("none.yaml", "b.yaml", "long.yaml", ""):
        with pytest.raises(RecipeError) as raised:
            Recipe.from_yaml(tmp_path / name)
        assert raised.value.problems[0].field == str(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("merge_method: a\nmodels: [{model: a}]\nmerge_method: b", 3, "merge_method"),
        ("merge_method: a\nmodels:\n- model: a\n  parameters: {weight: 1, weight: 2}", 4, "weight"),
        ('models: [{model: a}]\n"models": []', 2, "models"),
    ],
)
def test_a_key_given_twice_is_an_error(tmp_path, text, line, key):
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, text)
    [problem] = raised.value.problems
    assert problem.field.endswith(f"m.yaml: line {line}")
    assert key in problem.found


def bomb(entry, width=10, levels=12):
    lines = [f"x0: &x0 {entry}"]
    for i in range(1, levels):
        inner = ", ".join([f"*x{i - 1}"] * width)
        lines.append(f"x{i}: &x{i} [{inner}]")
    return "\n".join(lines) + f"\nmerge_method: linear\nmodels: *x{levels - 1}\n"


def merge_bomb(width=10, levels=12):
    lines = ["x0: &x0 {a: 1}"]
    for i in range(1, levels):
        inner = ", ".join([f"*x{i - 1}"] * width)
        lines.append(f"x{i}: &x{i} {{<<: [{inner}]}}")
    return "\n".join(lines)


def nest_bomb():
    lines = ["x0: &x0 {model: a}"]
    for i in range(1, 12):
        inner = ", ".join([f"*x{i - 1}"] * 10)
        lines.append(f"x{i}: &x{i} {{model: {{merge_method: linear, models: [{inner}]}}}}")
    return "\n".join(lines) + "\nmerge_method: linear\nmodels: [*x11]\n"


@pytest.mark.parametrize(
    "text",
    [
        bomb("{model: a}"),
        bomb("[a, a]"),
        merge_bomb(),
        nest_bomb(),
        "[" * 100_000,
        "- " * 50_000,
        "models: " + "[" * 5000 + "]" * 5000,
        "\n".join(f"x{i}: &x{i} {'[' * 20}{f'*x{i - 1}' if i else 1}{']' * 20}" for i in range(50)),
    ],
)
def test_bombs_are_errors_at_once(tmp_path, text):
    start = time.process_time()
    with pytest.raises(RecipeError, match=r"m\.yaml: line"):
        read(tmp_path, text)
    assert time.process_time() - start < 20  # written out, the first would take years


def test_data_that_refers_to_itself_is_refused():
    entry = {"model": "a"}
    for _ in range(12):
        entry = {"model": {"merge_method": "linear", "models": [entry] * 10}}
    circle = {"merge_method": "linear", "models": []}
    circle["models"].append({"model": circle})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for data in ({"merge_method": "linear", "models": [entry]}, circle, deep, {"models": deep}):
        with pytest.raises(RecipeError, match="recipe"):
            Recipe.from_dict(data)


def nested(levels):
    """Merges in merges in the form that takes most levels of YAML."""
    model = "a"
    for _ in range(levels):
        run = {"sources": [{"model": model, "layer_range": [0, 2]}]}
        model = {"merge_method": "linear", "modules": {"m": {"slices": [run]}}}
    return model


def test_merges_nest_sixteen_deep(tmp_path):
    recipe = Recipe.from_dict(nested(16))
    assert recipe.models() == ("a",)
    assert read(tmp_path, recipe.to_yaml()) == recipe
    with pytest.raises(RecipeError, match="16 levels") as raised:
        Recipe.from_dict(nested(17))
    assert raised.value.problems[0].field.endswith(".model")
