"""Checks a recipe against the operators' signatures, before any model is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from evomerge import operators
from evomerge.checkpoints.arguments import SEED, check_settings, likely
from evomerge.checkpoints.tokenizer_files import check_chat_template
from evomerge.errors import RecipeError
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter
from evomerge.recipe import Recipe, Settings, Source, methods_of


def check_recipe(recipe: Recipe, strict: bool = False) -> None:
    """Checks parameter names, values and ranges, those of nested merges too.

    Args:
        recipe: to check.
        strict: refuse parameters of other operators, too; recipes in the wild have many, which
            mergekit passes over.

    Raises:
        RecipeError: naming the parameter.
    """
    for nested in _nested(recipe):
        check_recipe(nested, strict)
    check_chat_template(recipe.chat_template)
    if strict:
        _check_own(recipe)
    if recipe.route is not None or recipe.pieces is not None:
        form = "route" if recipe.route is not None else "pieces"
        for key in recipe.parameters:
            if key != "seed":
                raise RecipeError.of(
                    f"parameters.{key}", f"a parameter beside {form}", "none, as it has no effect",
                    "Remove it.",
                )  # fmt: skip
        for key in ("tokenizer", "scope"):
            if getattr(recipe, key) is not None:
                raise RecipeError.of(
                    key, f"a {key} beside {form}", "none, as it has no effect",
                    "Remove it, or make this merge a source of another that has it.",
                )  # fmt: skip
        if recipe.pieces is not None:
            _check_pieces(recipe)
        return
    if recipe.scope is not None:
        _check_scope(recipe)
    every = used_operators(recipe)
    for operator in every:
        for where, settings in _shared_groups(recipe):
            _check_group(where, settings, operator)
        for where, sources, outer, base in _lists(recipe):
            for i, source in enumerate(sources):
                is_base = source.model == base and operator.takes_base != "never"
                _check_source(f"{where}[{i}].parameters", source, outer, is_base, operator)
            _check_shared(where, outer, operator)


def used_operators(recipe: Recipe) -> tuple[Operator, ...]:
    """The operators of a recipe, that of `method` first.

    Raises:
        RecipeError: if one does not exist, or they do not all take the same models.
    """
    first, *others = (operators.get(name) for name in methods_of(recipe))
    for other in others:
        if other.takes_base != first.takes_base:
            raise RecipeError.of(
                "merge_method", f"{first.name} (base: {first.takes_base}) and {other.name} "
                f"(base: {other.takes_base})", "operators that all take a base, or none of them",
                "Use operators of one kind, or nest one merge in another.",
            )  # fmt: skip
    return (first, *others)


def _check_pieces(recipe: Recipe) -> None:
    for i, source in enumerate(recipe.sources):
        for key in source.parameters:
            raise RecipeError.of(
                f"models[{i}].parameters.{key}", "a parameter beside pieces",
                "none, as it has no effect", "Remove it; the coefficients say it all.",
            )  # fmt: skip
    if recipe.base is not None:
        raise RecipeError.of(
            "base_model", "a base_model beside pieces", "none, as it has no effect",
            "Remove it; list it among the models, and give it coefficients, to merge it.",
        )  # fmt: skip


def idle_parameters(recipe: Recipe) -> tuple[str, ...]:
    """Parameters in a recipe that its operator does not have."""
    if recipe.route is not None or recipe.pieces is not None:
        return ()
    known = {key for operator in used_operators(recipe) for key in operator.parameters}
    names = {key: None for _, group in groups(recipe) for key in group}
    return tuple(k for k in names if k not in known and k != "seed")


def _check_own(recipe: Recipe) -> None:
    for key in idle_parameters(recipe):
        known = {key for operator in used_operators(recipe) for key in operator.parameters}
        names = ", ".join(methods_of(recipe))
        raise RecipeError.of(
            f"parameters.{key}", "a parameter that the operator does not have",
            f"one of {', '.join(sorted(known))} for {names}", likely(key, known),
        )  # fmt: skip


def groups(recipe: Recipe) -> Iterator[tuple[str, Settings]]:
    """All settings of a recipe of models, slices or modules, each with its field."""
    yield from _shared_groups(recipe)
    for where, sources, _, _ in _lists(recipe):
        for i, source in enumerate(sources):
            yield f"{where}[{i}].parameters", source.parameters


def _shared_groups(recipe: Recipe) -> Iterator[tuple[str, Settings]]:
    """Settings that are no single source's."""
    yield "parameters", recipe.parameters
    for i, piece in enumerate(recipe.slices):
        yield f"slices[{i}].parameters", piece.parameters
    for name, module in recipe.modules.items():
        yield f"modules.{name}.parameters", module.parameters
        for i, piece in enumerate(module.slices):
            yield f"modules.{name}.slices[{i}].parameters", piece.parameters


_List = tuple[str, tuple[Source, ...], tuple[Settings, ...], str | Recipe | None]


def _lists(recipe: Recipe) -> Iterator[_List]:
    """Every list of sources with its field, the settings around it and its base."""
    base = recipe.base
    if recipe.sources:
        yield "models", recipe.sources, (recipe.parameters,), base
    for i, piece in enumerate(recipe.slices):
        around = (piece.parameters, recipe.parameters)
        yield f"slices[{i}].sources", piece.sources, around, piece.base or base
    for name, module in recipe.modules.items():
        at, around = f"modules.{name}", (module.parameters, recipe.parameters)
        if module.sources:
            yield f"{at}.models", module.sources, around, base
        for i, piece in enumerate(module.slices):
            inside = (piece.parameters, *around)
            yield f"{at}.slices[{i}].sources", piece.sources, inside, piece.base or base


def _check_scope(recipe: Recipe) -> None:
    for key, word in (("modules", "modules"), ("tokenizer", "a tokenizer")):
        if getattr(recipe, key):
            raise RecipeError.of(
                key, f"{word} beside scope", "one of them",
                "Merge the language models first, and make that merge a source.",
            )  # fmt: skip


def _nested(recipe: Recipe) -> Iterator[Recipe]:
    lists = [recipe.sources, *(s.sources for s in recipe.slices)]
    bases = [recipe.base, *(s.base for s in recipe.slices)]
    for module in recipe.modules.values():
        lists += [module.sources, *(s.sources for s in module.slices)]
        bases += [s.base for s in module.slices]
    references = [*bases, *(s.model for sources in lists for s in sources)]
    if recipe.route is not None:
        references += [slot.model for slot in recipe.route.slots]
    for reference in references:
        if isinstance(reference, Recipe):
            yield reference


def _check_group(where: str, settings: Settings, operator: Operator) -> None:
    known: dict[str, Parameter | Choice] = {**operator.parameters, "seed": SEED}
    check_settings(where, settings, known, _others(), operator.name)


@cache
def _others() -> frozenset[str]:
    """Parameters of any operator."""
    return frozenset(key for name in operators.names() for key in operators.get(name).parameters)


def _check_source(
    where: str, source: Source, outer: Sequence[Settings], is_base: bool, operator: Operator
) -> None:
    own = {
        key: p
        for key, p in operator.parameters.items()
        if isinstance(p, Parameter) and p.per_source
    }
    for key in source.parameters:
        if key not in own and (key in operator.parameters or key == "seed"):
            raise RecipeError.of(
                f"{where}.{key}", "a parameter of the whole merge", "it below parameters",
                f"Move it to parameters.{key}.",
            )  # fmt: skip
    check_settings(where, source.parameters, dict(own), _others(), operator.name)
    if is_base:
        return
    for key, parameter in own.items():
        given = key in source.parameters or any(key in settings for settings in outer)
        if not given and parameter.default is None:
            raise RecipeError.of(
                f"{where}.{key}", "nothing", f"a number in [{parameter.low:g}, {parameter.high:g}]",
                f"Add it there or to parameters.{key}.",
            )  # fmt: skip


def _check_shared(where: str, outer: Sequence[Settings], operator: Operator) -> None:
    for key, parameter in operator.parameters.items():
        if isinstance(parameter, Parameter) and parameter.per_source:
            continue
        if key not in operator.defaults and not any(key in settings for settings in outer):
            raise RecipeError.of(
                f"parameters.{key}", f"nothing for {where}", f"a value, as {operator.name} has no "
                "default for it", "Add it.",
            )  # fmt: skip
