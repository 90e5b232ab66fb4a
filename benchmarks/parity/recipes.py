"""The recipes that both programs carry out, as data in mergekit's form.

`base`, `a`, `b` and `c` stand for the models' folders until a recipe is written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checkpoints import ARCHITECTURES

Kind = Literal["exact", "random", "structure", "tokenizer"]

MODES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16 by float32": {"dtype": "float32", "out_dtype": "bfloat16"},
    "as in the files": {},
}
"""Keys of a recipe that say in what type mergekit computes and what it writes."""


@dataclass(frozen=True)
class Case:
    """A recipe with where it is tried.

    Attributes:
        name: of the row in the table.
        recipe: in mergekit's form, without dtype.
        kind: `exact`: with a float64 reference; `random`: compared in distribution;
            `structure`: only compared with one another; `tokenizer`: rows by token.
        architectures: keys of `ARCHITECTURES`, or the families `vocabularies`.
        modes: keys of `MODES`.
    """

    name: str
    recipe: dict[str, Any]
    kind: Kind = "exact"
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    modes: tuple[str, ...] = field(default=("float32", "bfloat16"))

    @property
    def method(self) -> str:
        """The operator's name."""
        return str(self.recipe["merge_method"])

    def written(self, mode: str, folder: Path) -> dict[str, Any]:
        """The recipe with the folders of its models."""
        recipe = _with_paths(copy.deepcopy(self.recipe), folder)
        return {**recipe, **MODES[mode]}


def _with_paths(node: Any, folder: Path) -> Any:
    if isinstance(node, list):
        return [_with_paths(item, folder) for item in node]
    if not isinstance(node, dict):
        return node
    out = {}
    for key, value in node.items():
        named = key in ("model", "base_model") or (
            key in ("tokenizer_source", "source") and value not in ("union", "base")
        )
        if named and isinstance(value, str):
            out[key] = "+".join(str(folder / part) for part in value.split("+"))
        else:
            out[key] = _with_paths(value, folder)
    return out


def _models(names: str, **columns: list[Any]) -> list[dict[str, Any]]:
    """Models by their letters with a column of values a parameter."""
    out: list[dict[str, Any]] = []
    for i, name in enumerate(names.split()):
        parameters = {k: v[i] for k, v in columns.items() if v[i] is not None}
        out.append({"model": name, **({"parameters": parameters} if parameters else {})})
    return out


def _recipe(method: str, models: list[dict[str, Any]], base: bool, **shared: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"merge_method": method, "models": models}
    if base:
        out["base_model"] = "base"
    if shared:
        out["parameters"] = {k.rstrip("_"): v for k, v in shared.items()}
    return out


_W = [0.5, 0.3, 0.4]
_P = [0.5, 0.4, 0.7]
_ALL = ("float32", "bfloat16", "bfloat16 by float32")
_SOME = ("Llama", "Phi-3", "GPT-NeoX")


def _three(method: str, base: bool = True, **shared: Any) -> dict[str, Any]:
    return _recipe(method, _models("a b c"), base, **shared)


def _weighted(method: str, base: bool = True, **shared: Any) -> dict[str, Any]:
    return _recipe(method, _models("a b c", weight=_W), base, **shared)


def _sparse(method: str, **shared: Any) -> dict[str, Any]:
    return _recipe(method, _models("a b c", weight=_W, density=_P), True, **shared)


def _lone(method: str, **shared: Any) -> dict[str, Any]:
    return _recipe(method, _models("a", weight=[1.0], density=[0.6]), True, **shared)


def _pair(method: str, base: bool, **shared: Any) -> dict[str, Any]:
    return _recipe(method, _models("a b", weight=[0.3, 0.6]), base, **shared)


_EXACT = {
    "linear": _weighted("linear", False),
    "linear, not normalised": _weighted("linear", False, normalize=False),
    "task_arithmetic": _weighted("task_arithmetic", lambda_=0.7),
    "task_arithmetic, normalised": _weighted("task_arithmetic", normalize=True),
    "slerp": _recipe("slerp", _models("a"), True, t=0.3),
    "nuslerp": _pair("nuslerp", False),
    "nuslerp, base": _pair("nuslerp", True),
    "nuslerp, rows": _pair("nuslerp", True, nuslerp_flatten=False),
    "nuslerp, columns": _pair("nuslerp", False, nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": _weighted("multislerp", False),
    "multislerp, base": _weighted("multislerp"),
    "karcher": _three("karcher", False),
    "ties": _sparse("ties"),
    "ties, not normalised": _sparse("ties", normalize=False, lambda_=0.8),
    "ties, rescaled": _sparse("ties", rescale=True),
    "breadcrumbs": _recipe(
        "breadcrumbs", _models("a b c", weight=_W, density=_P, gamma=[0.02, 0.01, 0.05]), True
    ),
    "breadcrumbs_ties": _recipe(
        "breadcrumbs_ties", _models("a b c", weight=_W, density=_P, gamma=[0.02, 0.0, 0.4]), True
    ),
    "model_stock": _three("model_stock"),
    "model_stock, filter-wise": _three("model_stock", filter_wise=True),
    "sce": _three("sce", select_topk=0.6),
    "sce, all": _three("sce"),
    "nearswap": _recipe("nearswap", _models("a"), True, t=0.005),
    "arcee_fusion": _recipe("arcee_fusion", _models("a"), True),
    "ram": _three("ram"),
    "ramplus_tl": _three("ramplus_tl", r=0.2, alpha=0.5),
    "passthrough": _recipe("passthrough", _models("a", scale=[0.9]), False),
}

_RANDOM = {
    **{f"{m}, one source": _lone(m) for m in ("dare_linear", "dare_ties")},
    **{f"{m}, one source": _lone(m, epsilon=0.2) for m in ("della_linear", "della")},
    **{m: _sparse(m) for m in ("dare_linear", "dare_ties", "della_linear", "della")},
    **{
        f"{m}, not rescaled": _sparse(m, rescale=False)
        for m in ("dare_linear", "dare_ties", "della_linear", "della")
    },
}


def _run(models: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    sources = [{"model": m, "layer_range": [start, stop]} for m in models.split()]
    return {"sources": sources, **({"parameters": parameters} if parameters else {})}


_BY_NAME = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
_DAMPED = {"scale": [{"filter": "o_proj", "value": 0.7}, {"filter": "down_proj", "value": -0.5},
                     {"value": 1.0}]}  # fmt: skip
_STRUCTURE = {
    "gradients: ties": (
        _recipe(
            "ties",
            _models("a b c", weight=[[0, 0.3, 0.7, 1], 0.5, [1, 0.2]],
                    density=[[1, 0.7, 0.1], 0.5, [0.33, 0.9]]),
            True, normalize=True,
        ),
        _SOME,
    ),
    "filters: slerp": (_recipe("slerp", _models("base a"), True, t=_BY_NAME), ("Llama", "Qwen2")),
    "filters: linear": (
        _recipe(
            "linear",
            _models("a b", weight=[[{"filter": "*", "value": 0.2}],
                                   [{"filter": "norm", "value": 3}, {"value": [0.5, 1]}]]),
            False,
        ),
        ("Llama", "Gemma2", "GPT-NeoX"),
    ),
    "slices: passthrough": (
        {"merge_method": "passthrough",
         "slices": [_run("a", 0, 2), _run("b", 1, 3), _run("a", 2, 4)]},
        tuple(ARCHITECTURES),
    ),
    "slices: passthrough, scaled": (
        {"merge_method": "passthrough",
         "slices": [_run("a", 0, 2), _run("b", 1, 4, **_DAMPED), _run("a", 3, 4)]},
        ("Llama", "Llama tied", "Gemma2", "Phi-3"),
    ),
    "slices: slerp": (
        {"merge_method": "slerp", "base_model": "base",
         "slices": [_run("base a", 0, 3, t=[0, 1]), _run("base b", 2, 4, t=0.4)]},
        _SOME,
    ),
    "slices: ties": (
        {"merge_method": "ties", "base_model": "base", "parameters": {"density": 0.5},
         "slices": [_run("base a b", 0, 2, weight=0.6), _run("b c base", 1, 4, weight=[0.2, 1])]},
        ("Llama", "Qwen2"),
    ),
    "modules: linear": (
        {"merge_method": "linear",
         "modules": {"default": {"models": _models("a b", weight=[1, 2])}}},
        ("Llama",),
    ),
    "base among the models: linear": (
        _recipe("linear", _models("base a b", weight=[1, 0.5, 0.25]), True), _SOME,
    ),
    "base among the models: ties": (
        _recipe("ties", _models("base a b", weight=[None, 0.5, 0.7], density=[None, 0.6, 0.3]),
                True),
        _SOME,
    ),
    "base among the models: karcher": (_recipe("karcher", _models("a base b"), True), ("Llama",)),
    "base not among the models: linear": (
        _recipe("linear", _models("a b"), True, weight=0.5), ("Llama",),
    ),
    "model+adapter: linear": (
        _recipe("linear", _models("base+adapter a", weight=[0.5, 0.5]), False), ("Llama",),
    ),
    "density 0 and 1: ties": (
        _recipe("ties", _models("a b c", weight=[1, 1, 1], density=[0, 1, 0.5]), True), ("Llama",),
    ),
}  # fmt: skip

_VOCABULARY = ("vocabularies",)
_TOKENIZER = {
    "tokenizer_source base: linear": {
        **_recipe("linear", _models("base a b c", weight=[1, 0.5, 0.3, 0.4]), True),
        "tokenizer_source": "base",
    },
    "tokenizer_source union: linear": {
        **_recipe("linear", _models("base a b c", weight=[1, 0.5, 0.3, 0.4]), True),
        "tokenizer_source": "union",
    },
    "tokenizer_source union: ties": {
        **_sparse("ties", normalize=True), "tokenizer_source": "union",
    },
    "tokenizer_source model: slerp": {
        **_recipe("slerp", _models("a"), True, t=0.4), "tokenizer_source": "a",
    },
    "tokenizer with rules: linear": {
        **_recipe("linear", _models("base a b c", weight=[1, 0.5, 0.3, 0.4]), True),
        "tokenizer": {
            "source": "union", "pad_to_multiple_of": 32,
            "tokens": {
                "<new>": {"source": {"kind": "zero"}},
                "w3": {"source": "b", "force": True},
                "other": {"source": {"kind": "model_token", "model": "c", "token": "v1"}},
            },
        },
    },
}  # fmt: skip


def cases() -> list[Case]:
    """All recipes, those of one operator beside one another."""
    out = [Case(name, recipe) for name, recipe in _EXACT.items()]
    out += [Case(name, recipe, "random") for name, recipe in _RANDOM.items()]
    out.sort(key=lambda case: case.method)
    out = [
        *out,
        *(Case(c.name, c.recipe, c.kind, ("Llama",), ("bfloat16 by float32",)) for c in out),
    ]
    for name, (recipe, architectures) in _STRUCTURE.items():
        out.append(Case(name, recipe, "structure", architectures, ("float32",)))
    out.append(
        Case("no dtype: linear", _EXACT["linear"], "structure", ("Llama",), ("as in the files",))
    )
    for name, recipe in _TOKENIZER.items():
        out.append(Case(name, recipe, "tokenizer", _VOCABULARY, ("float32",)))
    return out
