"""From a recipe to the list of tensors that it makes, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from evomerge import operators
from evomerge.checkpoints.arguments import Scopes, arguments, seed_of
from evomerge.checkpoints.checking import idle_parameters
from evomerge.checkpoints.fit import check_common, check_fit, check_plain, check_shape
from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.region import EMBEDDING, HEAD, Region, is_derived, is_head, whole
from evomerge.checkpoints.remapped import vocabulary_tensors
from evomerge.checkpoints.route_config import routed_config
from evomerge.checkpoints.routing import fold
from evomerge.checkpoints.stretches import Member, Opener, Stretch, Track, first_source, tracks
from evomerge.checkpoints.vocabulary import VocabularyPlan, config_changes, plan_vocabulary
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.plans import Combination, Pieced, Plan
from evomerge.operators import Operator
from evomerge.pieces import Piecewise, weights_at
from evomerge.recipe import Recipe

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A tensor of a model; `key` is the model's name in the recipe."""

    model: Model
    name: str
    key: str


@dataclass(frozen=True)
class Part:
    """How one tensor of the output is made.

    Attributes:
        name: in the output.
        shape: of it.
        dtype: that it is rounded to.
        sources: what is merged; one for a copy.
        base: what task vectors start from, if the operator takes one.
        operator: makes the plan; None where `plan` is given.
        arguments: of the operator.
        keys: of random masks, one a source.
        plan: what is done where no operator says it.
        indexed: whether the rows are the vocabulary's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Input, ...]
    base: Input | None = None
    operator: Operator | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[MaskKey, ...] = ()
    plan: Plan | None = None
    indexed: bool = False


@dataclass(frozen=True)
class Assembly:
    """All that a merge writes.

    Attributes:
        parts: the tensors, in the order in which they are written.
        config: of the merged model.
        donor: whose other files (tokenizer, generation config) are copied.
        vocabulary: the output's, if the recipe gives it one.
        notes: what the user should know.
    """

    parts: tuple[Part, ...]
    config: dict[str, Any]
    donor: Model
    vocabulary: VocabularyPlan | None = None
    notes: tuple[str, ...] = ()


def key_of(reference: str | Recipe) -> str:
    """What a model or a nested merge is called inside this module."""
    return reference if isinstance(reference, str) else f"merge {reference.digest()[:16]}"


def assemble(recipe: Recipe, open_model: Opener) -> Assembly:
    """Plans a merge; reads configs and headers only (integers are compared, too).

    Raises:
        RecipeError: if the recipe asks for what cannot be.
        SourceError: if a model cannot be opened or does not fit.
    """
    if recipe.route is not None:
        return _routed(recipe, open_model)
    if recipe.pieces is not None:
        return _pieced(recipe, open_model)
    return _Assembler(recipe, open_model).assemble()


def _out_dtype(recipe: Recipe, model: Model, name: str) -> torch.dtype:
    if recipe.dtype is not None:
        return getattr(torch, recipe.dtype)
    return _DTYPES[model.dtype(name)]


def _is_float(model: Model, name: str) -> bool:
    return model.dtype(name) in _DTYPES


_COPY = Combination((1.0,))


class _Assembler:
    """Plans recipes of models, slices and modules."""

    def __init__(self, recipe: Recipe, open_model: Opener) -> None:
        self.recipe = recipe
        self.operator = operators.get(recipe.method)
        self.open = open_model
        self.vocabulary: VocabularyPlan | None = None
        self.indexed: dict[int, frozenset[str]] = {}

    def assemble(self) -> Assembly:
        recipe = self.recipe
        laid = tracks(recipe, self.operator, self.open)
        donor = self._donor(laid)
        members = {
            key_of(m.reference): m.model
            for track in laid
            for stretch in track.stretches
            for m in (*((stretch.base,) if stretch.base else ()), *stretch.members)
        }
        for model in members.values():
            check_plain(model)
        if recipe.tokenizer is not None:
            self.vocabulary = self._plan_vocabulary(members)
        parts: list[Part] = []
        for track in laid:
            parts.extend(self._track(track, donor))
        made = {p.name for p in parts}
        covered = {n for track in laid for n in track.region.names}
        order = {name: i for i, name in enumerate(donor.names)}
        for name in donor.names:
            if name not in covered:
                parts.append(self._copy(donor, name))
                made.add(name)
        parts.sort(key=lambda p: order.get(p.name, -1))
        config = dict(donor.config)
        notes: tuple[str, ...] = tuple(
            f"{key} has no effect: {recipe.method} has no such parameter."
            for key in idle_parameters(recipe)
        )
        for track in laid:
            changes, more = self._depth(track, donor)
            config |= changes
            notes += more
        if self.vocabulary is not None:
            config |= config_changes(self.vocabulary)
            notes += self.vocabulary.notes
        return Assembly(tuple(parts), config, donor, self.vocabulary, notes)

    def _donor(self, laid: list[Track]) -> Model:
        recipe = self.recipe
        if recipe.scope is not None and recipe.scope.rest is not None:
            return self.open(recipe.scope.rest, "scope.rest")
        return self.open(recipe.base or first_source(recipe).model, "base_model")

    def _plan_vocabulary(self, members: dict[str, Model]) -> VocabularyPlan:
        recipe = self.recipe
        spec = recipe.tokenizer
        assert spec is not None
        models = dict(members)
        if recipe.base is not None:
            models.setdefault(key_of(recipe.base), self.open(recipe.base, "base_model"))
        wanted = [spec.source] if spec.source not in ("base", "union") else []
        wanted += [rule.model for rule in spec.tokens.values() if rule.model is not None]
        for reference in wanted:
            models.setdefault(reference, self.open(reference, "tokenizer.source"))
        base = None if recipe.base is None else key_of(recipe.base)
        return plan_vocabulary(spec, models, base, tuple(members))

    def _track(self, track: Track, donor: Model) -> Iterator[Part]:
        first, last = track.stretches[0], track.stretches[-1]
        if len(track.stretches) == 1 and not self.recipe.slices and not self.recipe.scope:
            for member in first.members:
                if member.region.prefix == first.template.region.prefix and not self.recipe.modules:
                    check_fit(first.template.model, member.model, self.vocabulary is None)
        yield from self._outside(first, EMBEDDING, track.region)
        number = 0
        for stretch in track.stretches:
            for i in range(stretch.length):
                t = i / (stretch.length - 1) if stretch.length > 1 else 1.0
                yield from self._block(stretch, i, number, t, track.region)
                number += 1
        yield from self._outside(last, HEAD, track.region)

    def _block(
        self, stretch: Stretch, i: int, number: int, t: float, out: Region
    ) -> Iterator[Part]:
        """One block of the output; depth t of its stretch in [0, 1]."""
        template = stretch.template
        block = template.first + i
        for name in template.region.by_block.get(block, ()):
            if is_derived(name):
                continue
            found = [
                (m, template.region.moved(name, block, m.region, m.first + i))
                for m in stretch.members
            ]
            inputs = [self._input(m, n, template.region, name, indexed=False) for m, n in found]
            yield self._part(
                template.region.moved(name, block, out, number), stretch, name, inputs, t
            )

    def _outside(self, stretch: Stretch, group: str, out: Region) -> Iterator[Part]:
        template = stretch.template
        indexed = self._indexed(template.model)
        for name in template.region.outside(group):
            inputs = []
            for member in stretch.members:
                found = template.region.counterpart(name, member.region)
                if found is None and is_derived(name):
                    break
                inputs.append(
                    self._input(member, found or name, template.region, name, name in indexed)
                )
            if len(inputs) < len(stretch.members):
                yield self._copy(template.model, name)
                continue
            target = (
                name if name in out.present else (template.region.counterpart(name, out) or name)
            )
            yield self._part(target, stretch, name, inputs, 0.0)

    def _indexed(self, model: Model) -> frozenset[str]:
        if id(model) not in self.indexed:
            self.indexed[id(model)] = vocabulary_tensors(model)
        return self.indexed[id(model)]

    def _input(
        self, member: Member, found: str, template: Region, name: str, indexed: bool
    ) -> Input:
        if found not in member.region.present:
            raise SourceError.of(
                f"{member.where}.model", f"no tensor {found} in {member.model.ref}",
                f"one for {name} of {template.model.ref}",
                "Merge models of one architecture and depth.",
            )  # fmt: skip
        check_shape(template.model, name, member.model, found, self.vocabulary is None, indexed)
        return Input(member.model, found, key_of(member.reference))

    def _part(
        self, target: str, stretch: Stretch, name: str, inputs: list[Input], t: float
    ) -> Part:
        template, base = stretch.template, stretch.base
        shape = template.model.shapes[name]
        if not _is_float(template.model, name):
            for one in inputs:
                check_common(name, template.model, one.model, one.name)
            return self._copy(template.model, name, target)
        indexed = name in self._indexed(template.model)
        if indexed and self.vocabulary is not None:
            shape = (self.vocabulary.rows, *shape[1:])
        scopes = Scopes(
            tuple((m.parameters, *stretch.parameters) for m in stretch.members),
            stretch.parameters,
            tuple(f"{m.where}.parameters" for m in stretch.members),
        )
        keys: tuple[MaskKey, ...] = ()
        if self.operator.needs_keys:
            seed = seed_of(scopes, target, t)
            keys = tuple(MaskKey(seed, one.model.fingerprint, one.name) for one in inputs)
        return Part(
            name=target,
            shape=shape,
            dtype=_out_dtype(self.recipe, template.model, name),
            sources=tuple(inputs),
            base=None if base is None else Input(base.model, name, key_of(base.reference)),
            operator=self.operator,
            arguments=arguments(self.operator, scopes, target, [one.name for one in inputs], t),
            keys=keys,
            indexed=indexed,
        )

    def _copy(self, model: Model, name: str, target: str | None = None) -> Part:
        shape, indexed = model.shapes[name], name in self._indexed(model)
        if indexed and self.vocabulary is not None:
            shape = (self.vocabulary.rows, *shape[1:])
        dtype = _out_dtype(self.recipe, model, name) if _is_float(model, name) else None
        return Part(
            name=target or name,
            shape=shape,
            dtype=dtype or model.tensor(name).dtype,
            sources=(Input(model, name, model.ref),),
            plan=_COPY if dtype is not None else None,
            indexed=indexed,
        )

    def _depth(self, track: Track, donor: Model) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Changes of the config where blocks come from elsewhere than in the donor."""
        members = [
            (s.template.region, s.template.first + i)
            for s in track.stretches
            for i in range(s.length)
        ]
        own = [(track.region, i) for i in range(track.region.layout.blocks)]
        if [block for _, block in members] == [block for _, block in own]:
            return {}, ()
        if track.region.layout.prefix != donor.layout.prefix:
            raise RecipeError.of(
                "modules", f"another number of blocks below {track.region.layout.prefix}",
                "changes of the language model's depth only", "Keep the other modules' blocks.",
            )  # fmt: skip
        return routed_config(
            [(region.model, block) for region, block in members],
            [_kind(region, block) for region, block in members],
            donor,
            [_kind(region, block) for region, block in own],
        )


def _kind(region: Region, block: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a block's tensors."""
    start = f"{region.layout.prefix}.{block}."
    return frozenset(
        (n.removeprefix(start), region.model.shapes[n]) for n in region.by_block.get(block, ())
    )


def _routed(recipe: Recipe, open_model: Opener) -> Assembly:
    route = recipe.route
    assert route is not None
    models = {
        t: open_model(slot.model, f"route.slots[{t}].model")
        for t, slot in enumerate(route.slots)
        if slot.model is not None
    }
    keys = {t: key_of(s.model) for t, s in enumerate(route.slots) if s.model is not None}
    if recipe.base is not None:
        first, home = open_model(recipe.base, "base_model"), key_of(recipe.base)
    elif models:
        first, home = models[min(models)], keys[min(models)]
    else:
        raise RecipeError.of(
            "route.slots", "identities only", "at least one block, or a base_model", "Add a slot."
        )
    folded = fold(route, models, first)
    parts = []
    for made in folded.tensors:
        model = first if made.slot is None else models[made.slot]
        key = home if made.slot is None else keys[made.slot]
        floating = _is_float(model, made.source_name)
        parts.append(
            Part(
                name=made.name,
                shape=model.shapes[made.source_name],
                dtype=_out_dtype(recipe, model, made.source_name)
                if floating
                else model.tensor(made.source_name).dtype,
                sources=(Input(model, made.source_name, key),),
                plan=Combination((made.gain,), offset=made.offset) if floating else None,
            )
        )
    config = {**first.config, **folded.config}
    return Assembly(tuple(parts), config, first, None, folded.notes)


def _pieced(recipe: Recipe, open_model: Opener) -> Assembly:
    assert recipe.pieces is not None
    models = [open_model(s.model, f"models[{i}].model") for i, s in enumerate(recipe.sources)]
    keys = [key_of(s.model) for s in recipe.sources]
    first = models[0]
    for model in models[1:]:
        check_fit(first, model)
    order = FlatOrder.of(first)
    pieces = Piecewise.from_pieces(recipe.pieces)
    if pieces.total != order.total:
        raise RecipeError.of(
            "pieces.breakpoints", f"the last at {pieces.total}",
            f"{order.total}, the number of parameters of {first.ref}",
            "Use the recipe with the models that it was made for.",
        )  # fmt: skip
    parts = []
    region = whole(first)
    for name in first.names:
        inputs = []
        for model, key in zip(models, keys, strict=True):
            found = region.counterpart(name, whole(model)) or name
            inputs.append(Input(model, found, key))
        if not _is_float(first, name):
            for one in inputs[1:]:
                check_common(name, first, one.model, one.name)
            tensor = first.tensor(name)
            parts.append(Part(name, tuple(tensor.shape), tensor.dtype, (inputs[0],)))
            continue
        offset = order.offset(name)
        runs = weights_at(pieces, [order.span(name)])
        plan = Pieced(
            tuple(stop - offset for _, stop, _ in runs),
            tuple(tuple(map(float, c)) for _, _, c in runs),
        )
        dtype = _out_dtype(recipe, first, name)
        parts.append(Part(name, first.shapes[name], dtype, tuple(inputs), plan=plan))
    return Assembly(tuple(parts), dict(first.config), first)


__all__ = ["Assembly", "Input", "Part", "assemble", "is_head", "key_of"]
