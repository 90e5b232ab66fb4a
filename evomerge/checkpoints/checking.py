"""Checks a recipe against the operators' signatures, before any model is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from evomerge import operators
from evomerge.checkpoints.arguments import SEED, check_settings
from evomerge.errors import RecipeError
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter
from evomerge.recipe import Recipe, Settings, Source


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
        return
    operator = operators.get(recipe.method)
    _check_group("parameters", recipe.parameters, operator)
    for where, sources, outer in _lists(recipe, operator):
        for i, source in enumerate(sources):
            _check_source(f"{where}[{i}].parameters", source, outer, recipe, operator)
        _check_shared(where, outer, operator)


def idle_parameters(recipe: Recipe) -> tuple[str, ...]:
    """Parameters in a recipe that its operator does not have."""
    if recipe.route is not None or recipe.pieces is not None:
        return ()
    operator = operators.get(recipe.method)
    groups = [recipe.parameters]
    for _, sources, outer in _lists(recipe, operator):
        groups += [*outer, *(s.parameters for s in sources)]
    names = {key: None for group in groups for key in group}
    return tuple(k for k in names if k not in operator.parameters and k != "seed")


def _check_own(recipe: Recipe) -> None:
    for key in idle_parameters(recipe):
        known = operators.get(recipe.method).parameters
        raise RecipeError.of(
            f"parameters.{key}", "a parameter that the operator does not have",
            f"one of {', '.join(sorted(known))} for {recipe.method}", "Correct the name.",
        )  # fmt: skip


def _lists(
    recipe: Recipe, operator: Operator
) -> Iterator[tuple[str, tuple[Source, ...], tuple[Settings, ...]]]:
    """Every list of sources with its field and the settings around it, which are checked."""
    if recipe.sources:
        yield "models", recipe.sources, (recipe.parameters,)
    for i, piece in enumerate(recipe.slices):
        _check_group(f"slices[{i}].parameters", piece.parameters, operator)
        yield f"slices[{i}].sources", piece.sources, (piece.parameters, recipe.parameters)
    for name, module in recipe.modules.items():
        at = f"modules.{name}"
        _check_group(f"{at}.parameters", module.parameters, operator)
        around = (module.parameters, recipe.parameters)
        if module.sources:
            yield f"{at}.models", module.sources, around
        for i, piece in enumerate(module.slices):
            _check_group(f"{at}.slices[{i}].parameters", piece.parameters, operator)
            yield f"{at}.slices[{i}].sources", piece.sources, (piece.parameters, *around)


def _nested(recipe: Recipe) -> Iterator[Recipe]:
    lists = [recipe.sources, *(s.sources for s in recipe.slices)]
    for module in recipe.modules.values():
        lists += [module.sources, *(s.sources for s in module.slices)]
    references = [recipe.base, *(s.model for sources in lists for s in sources)]
    references += [s.base for s in recipe.slices]
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
    where: str, source: Source, outer: Sequence[Settings], recipe: Recipe, operator: Operator
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
    if source.model == recipe.base and operator.takes_base != "never":
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
