"""The digest: what changes it, what does not, and that it stays from version to version."""

import copy

import numpy as np

from evomerge.recipe import Case, Pieces, Recipe, Route, Scope, Slice, Slot, Source, Tokenizer


def test_digests_of_version_0_1_stay():
    """Computed by the module recipe.py of commit 0.1, which knew models and parameters only."""
    ties = Recipe(
        "ties",
        (
            Source("org/a", {"weight": (Case("mlp", 0.5), Case(None, 1))}),
            Source("org/b", {"weight": 0.3, "density": 0.7}),
        ),
        "org/base",
        {"normalize": True, "lambda": 1.2},
        "bfloat16",
    )
    assert ties.digest() == "6f2904083357955b758748f7d78b3f7692297db09d12d8d43064b2e324b96078"
    assert (
        ties.digest({"org/a": "1" * 64, "org/base": "2" * 64})
        == "18da452d01926fe6b8adbe9b97528f117543595271764234205a0d76f8637bfa"
    )
    linear = Recipe(
        "linear", (Source("/models/日本", {"weight": 2.0}), Source("b")), None, {}, "float32"
    )
    assert linear.digest() == "cbd806e79634783eb289c23af72007c74654dfebb167ca024256ddebc694dc3a"


def test_digest_follows_contents_not_places():
    def at(folder):
        sources = (Source(f"{folder}/a", {"weight": 0.5}), Source(f"{folder}/b", {"weight": 0.5}))
        recipe = Recipe("ties", sources, f"{folder}/base")
        return recipe.digest({f"{folder}/{n}": n * 64 for n in ("a", "b", "base")})

    assert at("/here") == at("there/deep")


def assert_all_differ(recipe, edits):
    digests = {recipe.digest()}
    for edit in edits:
        data = copy.deepcopy(recipe.to_dict())
        edit(data)
        digests.add(Recipe.from_dict(data).digest())
    assert len(digests) == len(edits) + 1


def test_digest_changes_with_every_value():
    recipe = Recipe(
        "ties",
        (Source("a", {"weight": (Case("x", 0.5), Case(None, 1.0))}), Source("b", {"weight": 0.5})),
        "base",
        {"lambda": 1.5},
        tokenizer=Tokenizer("union"),
        scope=Scope("lm.", "rest"),
    )
    edits = [
        lambda d: d.update(merge_method="linear"),
        lambda d: d.update(base_model="other"),
        lambda d: d.update(dtype="float32"),
        lambda d: d.pop("dtype"),
        lambda d: d["parameters"].update({"lambda": float(np.nextafter(1.5, 2))}),
        lambda d: d["parameters"].update({"lambda": [1.5, 1.5]}),
        lambda d: d["parameters"].update({"normalize": True}),
        lambda d: d["models"][0].update(model="c"),
        lambda d: d["models"][0].update(model={"merge_method": "m", "models": [{"model": "a"}]}),
        lambda d: d["models"].reverse(),
        lambda d: d["models"][1]["parameters"].update(weight=0.25),
        lambda d: d["models"][0]["parameters"]["weight"][0].update(filter="y"),
        lambda d: d["models"][0]["parameters"]["weight"].reverse(),
        lambda d: d["models"].pop(),
        lambda d: d.update(tokenizer_source="base"),
        lambda d: d.update(chat_template="auto"),
        lambda d: d["scope"].update(prefix="vision."),
        lambda d: d["scope"].pop("rest"),
    ]
    assert_all_differ(recipe, edits)


def test_digest_changes_with_every_value_of_slices():
    run = Slice((Source("a", {"t": 1}, (0, 2)), Source("b", {}, (2, 4))), "base", {"t": 2})
    edits = [
        lambda d: d["slices"][0]["sources"][0].update(layer_range=[1, 3]),
        lambda d: d["slices"][0]["sources"].reverse(),
        lambda d: d["slices"][0].update(base_model="b"),
        lambda d: d["slices"][0].pop("base_model"),
        lambda d: d["slices"][0]["parameters"].update(t=1),
        lambda d: d["slices"].append(d["slices"][0]),
        lambda d: d.update(modules={"m": {"slices": d.pop("slices")}}),
    ]
    assert_all_differ(Recipe("slerp", slices=(run,)), edits)


def test_digest_changes_with_every_value_of_routes_and_pieces():
    route = Recipe("passthrough", route=Route((Slot("a", 1, 0.5), Slot(None))))
    edits = [
        lambda d: d["route"].update(scale="stream"),
        lambda d: d["route"].update(depth=2),
        lambda d: d["route"].update(depth=3),
        lambda d: d["route"]["slots"][0].update(layer=2),
        lambda d: d["route"]["slots"][0].update(scale=-0.5),
        lambda d: d["route"]["slots"][0].update(model="b"),
        lambda d: d["route"]["slots"].reverse(),
        lambda d: d["route"]["slots"].pop(),
    ]
    assert_all_differ(route, edits)
    pieces = Recipe("pieces", (Source("a"), Source("b")), pieces=Pieces((3, 5), ((1, 0), (0, 1))))
    edits = [
        lambda d: d["pieces"].update(breakpoints=[2, 5]),
        lambda d: d["pieces"].update(coefficients=[[0, 1], [1, 0]]),
    ]
    assert_all_differ(pieces, edits)


def test_digest_is_the_same_for_equal_numbers():
    one, other = (Recipe("linear", (Source("a", {"weight": w}),)) for w in (1, 1.0))
    assert one.digest() == other.digest()
    assert Recipe("linear", (Source("a", {"weight": True}),)).digest() != one.digest()
    zero, minus = (Recipe("linear", (Source("a", {"w": (0.5, w)}),)) for w in (0, -0.0))
    assert zero.digest() == minus.digest()


def test_digest_is_the_same_for_two_ways_to_say_one_thing():
    head = {"merge_method": "linear", "models": [{"model": "a@r+l"}]}
    same = [
        {**head, "dtype": "float16", "tokenizer_source": "union", "parameters": {"t": 1, "u": 2}},
        {**head, "parameters": {"u": 2, "t": "1"}, "out_dtype": "torch.float16", "dtype": "float32",
         "tokenizer": {"source": "union"}, "scope": None},
        {"models": [{"model": {"model": {"path": "a", "revision": "r"}, "lora": {"path": "l"}}}],
         "tokenizer": {}, "merge_method": "linear", "dtype": "float16",
         "parameters": {"t": 1.0, "u": 2}},
    ]  # fmt: skip
    assert len({Recipe.from_dict(data).digest() for data in same}) == 1
    filtered = [{"value": 3, "filter": "x"}, [{"filter": "x", "value": 3.0}]]
    digests = {Recipe.from_dict({**head, "parameters": {"t": f}}).digest() for f in filtered}
    assert len(digests) == 1
