"""An operator for every layer group, and the parameters of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge import operators
from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.operators import Operator
from evomerge.operators.parameters import Parameter
from evomerge.recipe import Case, Recipe, Scalar, Setting, Settings, Source, method_of
from evomerge.spaces.grid import ALL, Grid, Groups, Place, layer_groups, setting_of
from evomerge.spaces.landmarks import (
    distinct,
    fixed_or_searched,
    has_effect,
    interpolates,
    landmarks,
    left_out,
)
from evomerge.spaces.merge_space import check_genome, found_values, read_parameters
from evomerge.spaces.searched import Searched, check_searchable, read_searched
from evomerge.types import FloatArray

OPERATOR = "operator"
"""The parameter of the dimensions that choose."""


class OperatorSpace:
    """Chooses an operator per layer group (or one for the whole model), and its parameters.

    The operators share base and sources. Each searched parameter has the same dimensions as in
    a `MergeSpace`; one that the chosen operator lacks has no effect, and is not in the recipe.
    With one operator for all groups the recipe is that of a `MergeSpace` of that operator.
    """

    def __init__(
        self,
        operators: Mapping[str, Mapping[str, Scalar] | None],
        parameters: Mapping[str, Mapping[str, Any]],
        base: str | None,
        sources: Mapping[str, str],
        groups: Groups,
        granularity: str | int = "layer",
        start: str | None = None,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        """Lays out the dimensions: the operators' first, then the parameters'.

        Args:
            operators: name of each operator to the parameters that do not vary for it.
            parameters: as in `MergeSpace`; each belongs to all operators that have it.
            base: model reference of the base.
            sources: name to model reference.
            groups: layer group to the tensor-name substrings that pick it.
            granularity: layer (an operator per group), global (one for the whole model), or how
                many blocks in a row share one.
            start: the operator that a search begins with; default: the first.
            dtype: of the merged tensors.
            seed: of the random masks.

        Raises:
            ConfigError: naming the key at fault.
        """
        self.groups = layer_groups(granularity, groups)
        self.fixed, self._operators = _read_operators(operators)
        searched = read_parameters(parameters)
        for one in searched:
            _check_parameter(one, self._operators)
        for name, fixed in self.fixed.items():
            _check_fixed(name, fixed, [one.name for one in searched])
        self.base = base
        self.sources = dict(sources)
        self.dtype = dtype
        self.seed = seed
        spec = {"choices": list(self.fixed), "start": start}
        self._chooser = Grid(
            [read_searched("space.operators", OPERATOR, spec)], (), (), tuple(self.groups)
        )
        own = [
            p.name for p in searched for o in self._operators.values() if o.is_per_source(p.name)
        ]
        self._grid = Grid(searched, own, tuple(self.sources), tuple(self.groups))
        self.dimensions: tuple[Dimension, ...] = (
            *self._chooser.dimensions,
            *self._grid.dimensions,
        )

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome; its `method` is the head's operator, `methods` says the others'.

        Raises:
            ValueError: if it has another length or holds NaN or infinity.
        """
        chosen, values = self._values(genome)
        rest = next(group for group, patterns in self.groups.items() if None in patterns)
        method = chosen[rest]
        methods = tuple(
            Case(pattern, name)
            for group, name in chosen.items()
            if name != method
            for pattern in self.groups[group]
        )
        own = [p for p in self._grid.searched if not self._grid.is_shared(p)]
        sources = [
            Source(ref, self._settings(own, name, chosen, values))
            for name, ref in self.sources.items()
        ]
        shared = [p for p in self._grid.searched if p not in own]
        common: dict[str, Setting] = {
            **self._fixed_settings(chosen),
            **self._settings(shared, ALL, chosen, values),
            "seed": self.seed,
        }
        return Recipe(method, tuple(sources), self.base, common, self.dtype, methods=methods)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe that this space made.

        A parameter that the chosen operator lacks is at its start, values of a simplex sum to 1.
        """
        chosen = {
            group: method_of(recipe, patterns[0] or "") for group, patterns in self.groups.items()
        }
        values = found_values(recipe, self._grid, self.sources, self.groups)
        kept = {p: v for p, v in values.items() if has_effect(self._operators[chosen[p[2]]], p[0])}
        genes = self._chooser.genome({(OPERATOR, ALL, g): name for g, name in chosen.items()})
        return np.concatenate([genes, self._grid.genome(kept)])

    def anchors(self) -> tuple[FloatArray, ...]:
        """What `MergeSpace` has, by the start's operator; then the start by every operator."""
        first = np.array([d.start for d in self._chooser.dimensions])
        start = np.array([d.start for d in self._grid.dimensions])
        arc = all(map(interpolates, self._operators))
        found = [
            np.concatenate([first, genes])
            for genes in (*landmarks(self._grid, tuple(self.sources), arc), start)
        ]
        found += [
            np.concatenate([np.full(len(first), float(i)), start])
            for i in range(len(self._operators))
        ]
        return distinct(self.encode(self.decode(genome)) for genome in found)

    def sparsity(self, genome: FloatArray) -> float:
        """Share in [0, 1] of the sources' changes that a genome leaves out; see `left_out`."""
        chosen, values = self._values(genome)

        def lookup(place: Place) -> Scalar | None:
            name = chosen[place[2]]
            return fixed_or_searched(self._operators[name], self.fixed[name], values, place)

        return left_out(lookup, self._grid, tuple(self.sources))

    def _values(self, genome: FloatArray) -> tuple[dict[str, str], dict[Place, Scalar]]:
        """The operator of every group, and the parameters' values."""
        check_genome(genome, len(self.dimensions))
        count = len(self._chooser.dimensions)
        chosen = self._chooser.values(genome[:count])
        return {p[2]: str(v) for p, v in chosen.items()}, self._grid.values(genome[count:])

    def _settings(
        self,
        parameters: list[str],
        source: str,
        chosen: Mapping[str, str],
        values: Mapping[Place, Scalar],
    ) -> dict[str, Setting]:
        """Searched values of the groups whose operators make use of them."""
        out = {}
        for parameter in parameters:
            used = {
                group: values[parameter, source, group]
                for group, name in chosen.items()
                if has_effect(self._operators[name], parameter)
            }
            if used:
                out[parameter] = setting_of(self.groups, used)
        return out

    def _fixed_settings(self, chosen: Mapping[str, str]) -> Settings:
        """Fixed values of the chosen operators; one value where all that have it agree.

        A case without a filter reaches every group that has none of its own, so that operators
        that have the parameter, but do not fix it, get their default written out.
        """
        out: dict[str, Setting] = {}
        for key in dict.fromkeys(k for name in chosen.values() for k in self.fixed[name]):
            used: dict[str, Scalar] = {}
            for group, name in chosen.items():
                operator = self._operators[name]
                if key in self.fixed[name]:
                    used[group] = self.fixed[name][key]
                elif key in operator.parameters:
                    used[group] = _default(operator, key)
            same = len({(type(v), v) for v in used.values()}) == 1
            out[key] = next(iter(used.values())) if same else setting_of(self.groups, used)
        return out


def _read_operators(
    given: Any,
) -> tuple[dict[str, dict[str, Scalar]], dict[str, Operator]]:
    """Fixed parameters and operators by name."""
    if not isinstance(given, Mapping) or len(given) < 2:
        raise ConfigError.of(
            "space.operators", repr(given), "at least two operators",
            "For example space.operators={task_arithmetic: {}, ties: {normalize: false}}.",
        )  # fmt: skip
    fixed = {}
    for name, settings in given.items():
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError.of(
                f"space.operators.{name}", repr(settings), "a mapping of its fixed parameters",
                f"For example space.operators.{name}={{}}.",
            )  # fmt: skip
        fixed[str(name)] = dict(settings or {})
    found = {name: operators.get(name) for name in fixed}
    first = next(iter(found.values()))
    for name, one in found.items():
        if one.takes_base != first.takes_base:
            raise ConfigError.of(
                f"space.operators.{name}", f"base: {one.takes_base}",
                f"{first.takes_base}, as of {first.name}", "Search over operators of one kind.",
            )  # fmt: skip
    return fixed, found


def _check_parameter(one: Searched, found: Mapping[str, Operator]) -> None:
    """Checks that some operator has a parameter, and that all which have it mean the same."""
    field = f"space.parameters.{one.name}"
    users = [operator for operator in found.values() if has_effect(operator, one.name)]
    if not users:
        known = {
            key: None for o in found.values() for key, p in o.parameters.items() if not p.inert
        }
        raise ConfigError.of(
            field, "a parameter that none of the operators has or makes use of",
            f"one of {', '.join(known)}", "Correct the name.",
        )  # fmt: skip
    for operator in users:
        check_searchable(one, operator, field)
        parameter = operator.parameters[one.name]
        if one.choices or not isinstance(parameter, Parameter):
            continue
        if not parameter.low <= one.low <= one.high <= parameter.high:
            raise ConfigError.of(
                field, f"low={one.low:g}, high={one.high:g}",
                f"bounds in [{parameter.low:g}, {parameter.high:g}] for {operator.name}",
                "Correct the bounds.",
            )  # fmt: skip
    if len({operator.is_per_source(one.name) for operator in users}) > 1:
        raise ConfigError.of(
            field, "a parameter that some of the operators have per source, others once",
            "one of the same kind in all of them", "Search over one kind of operators.",
        )  # fmt: skip


def _check_fixed(name: str, fixed: Mapping[str, Scalar], searched: list[str]) -> None:
    twice = [key for key in fixed if key in searched]
    if twice:
        raise ConfigError.of(
            f"space.operators.{name}.{twice[0]}", "a parameter that varies",
            "one that does not vary", f"Remove it there or from space.parameters.{twice[0]}.",
        )  # fmt: skip


def _default(operator: Operator, key: str) -> Scalar:
    """What an operator takes where a recipe says nothing."""
    parameter = operator.parameters[key]
    if isinstance(parameter, Parameter) and parameter.per_source:
        default = parameter.default
    else:
        default = operator.defaults.get(key)
    if default is None:
        raise ConfigError.of(
            f"space.operators.{operator.name}.{key}", "nothing",
            "a value, as it has no default and another operator's is fixed", "Add it.",
        )  # fmt: skip
    value: Scalar = default
    return value
