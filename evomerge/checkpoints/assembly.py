"""From a recipe to the list of tensors that it makes, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.checkpoints.arguments import Scopes, arguments, check_filters, seed_of
from evomerge.checkpoints.checking import groups, idle_parameters, used_operators
from evomerge.checkpoints.fit import (
    check_common,
    check_config,
    check_fit,
    check_plain,
    check_shape,
    check_vocabulary,
)
from evomerge.checkpoints.forms import pieced, routed
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.parts import DTYPES, Assembly, Input, Part, is_float, key_of, out_dtype
from evomerge.checkpoints.region import (
    EMBEDDING,
    HEAD,
    Region,
    is_derived,
    is_head,
    may_be_tied,
)
from evomerge.checkpoints.remapped import text_parts, vocabulary_tensors
from evomerge.checkpoints.route_config import routed_config
from evomerge.checkpoints.stretches import Member, Opener, Stretch, Track, home, tracks
from evomerge.checkpoints.vocabulary import VocabularyPlan, config_changes, plan_vocabulary
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.plans import Combination
from evomerge.recipe import Recipe, method_of

_COPY = Combination((1.0,))
_ENDS = (EMBEDDING, HEAD)
_TIE = "tie_word_embeddings"
_USUAL_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""What recipes may name though the head of their models is tied."""


def assemble(recipe: Recipe, open_model: Opener) -> Assembly:
    """Plans a merge; reads configs and headers only (integers are compared, too).

    Raises:
        RecipeError: if the recipe asks for what cannot be.
        SourceError: if a model cannot be opened or does not fit.
    """
    if recipe.route is not None:
        assembly = routed(recipe, open_model)
    elif recipe.pieces is not None:
        assembly = pieced(recipe, open_model)
    else:
        assembly = _Assembler(recipe, open_model).assemble()
    if "auto_map" not in assembly.config:
        return assembly
    code = (
        f"The config names Python files (auto_map), which are not copied: copy the *.py files of "
        f"{assembly.donor.ref} into the merged model."
    )
    return replace(assembly, notes=(*assembly.notes, code))


class _Assembler:
    """Plans recipes of models, slices and modules."""

    def __init__(self, recipe: Recipe, open_model: Opener) -> None:
        self.recipe = recipe
        self.operator, *others = used_operators(recipe)
        self.operators = {one.name: one for one in (self.operator, *others)}
        self.open = open_model
        self.vocabulary: VocabularyPlan | None = None
        self.indexed: dict[int, frozenset[str]] = {}
        self.inputs: set[str] = set()

    def assemble(self) -> Assembly:
        recipe = self.recipe
        laid = tracks(recipe, self.operator, self.open)
        for operator in self.operators.values():
            for stretch in (s for track in laid for s in track.stretches):
                operator.check(stretch.base is not None, len(stretch.members))
        self.donor, self.donor_key = self._donor()
        members = {
            key_of(m.reference): m.model
            for track in laid
            for stretch in track.stretches
            for m in (*((stretch.base,) if stretch.base else ()), *stretch.members)
        }
        for model in (self.donor, *members.values()):
            check_plain(model)
        if recipe.tokenizer is not None:
            self.vocabulary = self._plan_vocabulary(members)
        config = dict(self.donor.config)
        notes: tuple[str, ...] = tuple(
            f"{key} has no effect: {', '.join(self.operators)} has no such parameter."
            for key in idle_parameters(recipe)
        )
        lenders = [s.pattern for track in laid for s in track.stretches if s.pattern]
        if any(lender.where == "base_model" for lender in lenders):
            gives = "config and tokenizer only"
            if recipe.modules:
                gives = "config, tokenizer and the tensors that no module has"
            notes += (
                f"base_model gives {gives}: {recipe.method} takes no base. List it among the "
                "models to merge it.",
            )
        notes += self._differences(laid)
        parts: dict[str, Part] = {}
        for track in laid:
            for part in self._track(track):
                _add(parts, part)
            changes, more = self._depth(track)
            head, tie = self._head(track, parts)
            for part in head:
                _add(parts, part)
            config |= {**changes, **tie}
            notes += more
        self._check_covered(laid, parts)
        covered = {n for track in laid for n in track.region.names}
        for name in self.donor.names:
            if name not in covered and name not in parts:
                parts[name] = self._copy(self.donor, name, self.donor_key)
        names = [*parts, *self.inputs, *(() if any(map(is_head, parts)) else _USUAL_HEADS)]
        check_filters([*groups(recipe), ("merge_method", {"filter": recipe.methods})], names)
        if self.vocabulary is not None:
            config = _changed(config, self.vocabulary.template.config, self.vocabulary)
            notes += self.vocabulary.notes
        order = {name: i for i, name in enumerate(self.donor.names)}
        in_order = sorted(parts.values(), key=lambda p: order.get(p.name, len(order)))
        return Assembly(tuple(in_order), config, self.donor, self.vocabulary, notes)

    def _donor(self) -> tuple[Model, str]:
        """The model whose config and other files are taken, and its key."""
        recipe = self.recipe
        if recipe.scope is not None and recipe.scope.rest is not None:
            return self.open(recipe.scope.rest, "scope.rest"), recipe.scope.rest
        reference, field = home(recipe)
        return self.open(reference, field), key_of(reference)

    def _plan_vocabulary(self, members: dict[str, Model]) -> VocabularyPlan:
        recipe = self.recipe
        spec = recipe.tokenizer
        assert spec is not None
        models = dict(members)
        if recipe.base is not None:
            models.setdefault(key_of(recipe.base), self.open(recipe.base, "base_model"))
        models.setdefault(self.donor_key, self.donor)
        wanted = [spec.source] if spec.source not in ("base", "union") else []
        wanted += [rule.model for rule in spec.tokens.values() if rule.model is not None]
        for reference in wanted:
            models.setdefault(reference, self.open(reference, "tokenizer.source"))
        base = None if recipe.base is None else key_of(recipe.base)
        return plan_vocabulary(spec, models, base, tuple(members))

    def _differences(self, laid: Sequence[Track]) -> tuple[str, ...]:
        """Sentences on members whose vocabulary or config differs from the donor's.

        Vocabularies matter where rows of tokens are merged: at both ends, in the tracks that
        have such tensors, unless the recipe says which vocabulary there is.
        """
        if self.recipe.scope is not None:
            return ()
        notes: dict[str, None] = {}
        by_rows = self._indexed(self.donor) if self.vocabulary is None else frozenset()
        for track in laid:
            ends = (track.stretches[0], track.stretches[-1])
            if by_rows & track.region.present:
                for member in (
                    m for s in ends for m in (*((s.base,) if s.base else ()), *s.members)
                ):
                    if (note := check_vocabulary(self.donor, member.model)) is not None:
                        notes[note] = None
            if not (self.recipe.slices or self.recipe.modules):
                for member in track.stretches[0].members:
                    notes |= dict.fromkeys(check_config(self.donor, member.model))
        return tuple(notes)

    def _track(self, track: Track) -> Iterator[Part]:
        first, last = track.stretches[0], track.stretches[-1]
        if not (self.recipe.slices or self.recipe.modules or self.recipe.scope):
            for member in first.members:
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
        region, block = template.region, template.first + i
        names = region.by_block.get(block, ())
        for member in stretch.members:
            _check_extra(region, block, member, member.first + i)
        for name in names:
            target = region.moved(name, block, out, number)
            if is_derived(name):
                yield self._copy(template.model, name, key_of(template.reference), target)
                continue
            inputs = [
                self._input(m, region.moved(name, block, m.region, m.first + i), region, name)
                for m in stretch.members
            ]
            yield self._part(target, stretch, name, inputs, t, out)

    def _outside(self, stretch: Stretch, group: str, out: Region) -> Iterator[Part]:
        region = stretch.template.region
        for name in region.outside(group):
            target = region.named(name, out) or name
            if target not in out.present and target in self.donor.shapes:
                continue  # of a text-only model, but beyond the scope or the module
            if is_derived(name):
                key = key_of(stretch.template.reference)
                yield self._copy(region.model, name, key, target)
                continue
            yield self._part(target, stretch, name, self._inputs(stretch, name), 0.0, out)

    def _inputs(self, stretch: Stretch, name: str) -> list[Input]:
        """All members' tensors for one of the template's outside the blocks."""
        region = stretch.template.region
        return [
            self._input(m, region.counterpart(name, m.region) or name, region, name)
            for m in stretch.members
        ]

    def _head(self, track: Track, parts: Mapping[str, Part]) -> tuple[list[Part], dict[str, Any]]:
        """The head that a tied last slice lends as its embedding, and what the config says.

        With slices the embedding is the first's and the head the last's; a head that is tied
        to an embedding which is another model's becomes a tensor of its own.
        """
        first, last = track.stretches[0], track.stretches[-1]
        region, out = last.template.region, track.region
        donors = [n for n in self.donor.names if is_head(n)]
        if any(map(is_head, parts)):
            return [], {} if donors else _untied(self.donor.config)
        if not region.tokens or not may_be_tied(region.model):
            return [], {}
        own = [n for n in donors if n in out.present]
        if not own and (donors or _models(first) == _models(last)):
            return [], {}
        top = "language_model." if region.tokens[0].startswith("language_model.") else ""
        target, name = own[0] if own else f"{top}lm_head.weight", region.tokens[0]
        part = self._part(target, last, name, self._inputs(last, name), 0.0, out)
        return [part], _untied(self.donor.config)

    def _check_covered(self, laid: Sequence[Track], parts: Mapping[str, Part]) -> None:
        """Checks that nothing is left out of what the donor has outside the changed blocks."""
        for track in laid:
            lengths = sum(s.length for s in track.stretches)
            blocks = range(min(lengths, track.region.layout.blocks))
            names = [
                *(n for group in _ENDS for n in track.region.outside(group)),
                *(n for block in blocks for n in track.region.by_block.get(block, ())),
            ]
            if lengths != track.region.layout.blocks or self.recipe.slices:
                names = [n for n in names if track.region.layout.group_of(n) in _ENDS]
            template = track.stretches[-1].template
            for name in names:
                if name not in parts and not is_derived(name):
                    raise SourceError.of(
                        template.field,
                        f"no tensor for {name} in {template.model.ref}",
                        f"the tensors of {self.donor.ref}", "Merge models of one architecture.",
                    )  # fmt: skip

    def _indexed(self, model: Model) -> frozenset[str]:
        if id(model) not in self.indexed:
            self.indexed[id(model)] = vocabulary_tensors(model)
        return self.indexed[id(model)]

    def _input(self, member: Member, found: str, template: Region, name: str) -> Input:
        self.inputs.add(found)
        if found not in member.region.present:
            raise SourceError.of(
                member.field, f"no tensor {found} in {member.model.ref}",
                f"one for {name} of {template.model.ref}",
                "Merge models of one architecture and depth.",
            )  # fmt: skip
        indexed = name in self._indexed(template.model)
        check_shape(template.model, name, member.model, found, self.vocabulary is None, indexed)
        return Input(member.model, found, key_of(member.reference))

    def _part(
        self, target: str, stretch: Stretch, name: str, inputs: list[Input], t: float, out: Region
    ) -> Part:
        template, base = stretch.template, stretch.base
        if not is_float(template.model, name):
            for one in inputs:
                check_common(name, template.model, one.model, one.name)
            return self._copy(template.model, name, key_of(template.reference), target)
        indexed = name in self._indexed(template.model)
        shape = template.model.shapes[name]
        moved = stretch.length != out.layout.blocks and out.layout.group_of(target) not in _ENDS
        if target in out.present and out.model is not template.model and not moved:
            check_shape(out.model, target, template.model, name, self.vocabulary is None, indexed)
            shape = out.model.shapes[target]
        if indexed and self.vocabulary is not None:
            shape = (self.vocabulary.rows, *shape[1:])
        scopes = Scopes(
            tuple((m.parameters, *stretch.parameters) for m in stretch.members),
            stretch.parameters,
            tuple(f"{m.where}.parameters" for m in stretch.members),
        )
        operator = self.operators[method_of(self.recipe, target)]
        keys: tuple[MaskKey, ...] = ()
        if operator.needs_keys:
            seed = seed_of(scopes, target, t)
            keys = tuple(MaskKey(seed, one.model.fingerprint, one.name) for one in inputs)
        return Part(
            name=target,
            shape=shape,
            dtype=out_dtype(self.recipe, template.model, name),
            sources=tuple(inputs),
            base=None if base is None else Input(base.model, name, key_of(base.reference)),
            operator=operator,
            arguments=arguments(operator, scopes, target, [one.name for one in inputs], t),
            keys=keys,
            indexed=indexed,
        )

    def _copy(self, model: Model, name: str, key: str, target: str | None = None) -> Part:
        shape, indexed = model.shapes[name], name in self._indexed(model)
        if indexed and self.vocabulary is not None:
            shape = (self.vocabulary.rows, *shape[1:])
        dtype = None
        if is_float(model, name):  # buffers stay as they are
            dtype = DTYPES[model.dtype(name)] if is_derived(name) else None
            dtype = dtype or out_dtype(self.recipe, model, name)
        return Part(
            name=target or name,
            shape=shape,
            dtype=dtype or model.tensor(name).dtype,
            sources=(Input(model, name, key),),
            plan=_COPY if dtype is not None else None,
            indexed=indexed,
        )

    def _depth(self, track: Track) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Changes of the config where blocks come from elsewhere than in the donor."""
        members = [
            (s.template.region, s.template.first + i)
            for s in track.stretches
            for i in range(s.length)
        ]
        own = [(track.region, i) for i in range(track.region.layout.blocks)]
        if [block for _, block in members] == [block for _, block in own]:
            return {}, ()
        if track.region.layout.prefix != self.donor.layout.prefix:
            raise RecipeError.of(
                "modules", f"another number or order of blocks below {track.region.layout.prefix}",
                "changes of the language model's depth only", "Keep the other modules' blocks.",
            )  # fmt: skip
        return routed_config(
            [(region.model, block) for region, block in members],
            [_kind(region, block) for region, block in members],
            self.donor,
            [_kind(region, block) for region, block in own],
        )


def _add(parts: dict[str, Part], part: Part) -> None:
    if part.name in parts:
        raise RecipeError.of(
            "modules", f"two modules with the tensor {part.name}", "modules that do not overlap",
            "Name parts of the model of which none is in another.",
        )  # fmt: skip
    parts[part.name] = part


def _check_extra(region: Region, block: int, member: Member, own: int) -> None:
    """Checks that a member's block has no tensors that the template's lacks.

    Raises:
        SourceError: naming the tensor.
    """
    if member.region is region:
        return
    wanted = set(region.by_block.get(block, ()))
    for name in member.region.by_block.get(own, ()):
        if member.region.moved(name, own, region, block) not in wanted and not is_derived(name):
            raise SourceError.of(
                member.field, f"an unknown tensor {name} in {member.model.ref}",
                f"those of block {block} of {region.model.ref}",
                "Merge models of one architecture.",
            )  # fmt: skip


def _models(stretch: Stretch) -> list[str]:
    members = (*((stretch.base,) if stretch.base else ()), *stretch.members)
    return [key_of(m.reference) for m in members]


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a config that make the head a tensor of its own."""
    out: dict[str, Any] = {_TIE: False}
    for key in text_parts(config):
        out[key] = {**config[key], _TIE: False}
    return out


def _changed(
    config: Mapping[str, Any], before: Mapping[str, Any], plan: VocabularyPlan
) -> dict[str, Any]:
    """A config with a vocabulary's changes; `before` is the one that these were made for."""
    out = dict(config)
    for key, value in config_changes(plan).items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and isinstance(out.get(key), dict):
            out[key] = {**out[key], **{k: v for k, v in value.items() if old.get(k) != v}}
        else:
            out[key] = value
    return out


def _kind(region: Region, block: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a block's tensors."""
    start = f"{region.layout.prefix}.{block}."
    return frozenset(
        (n.removeprefix(start), region.model.shapes[n]) for n in region.by_block.get(block, ())
    )


__all__ = ["Assembly", "Input", "Part", "assemble", "key_of"]
