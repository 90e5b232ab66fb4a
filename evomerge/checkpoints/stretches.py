"""A recipe's forms (`models`, `slices`, `modules`) as runs of blocks that are merged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evomerge.checkpoints.model import Model
from evomerge.checkpoints.region import Region, below, is_head, part, whole
from evomerge.errors import RecipeError
from evomerge.operators import Operator
from evomerge.recipe import Module, Recipe, Settings, Slice, Source

Opener = Callable[[str | Recipe, str], Model]
"""Opens the model of a reference; the second argument names the field in messages."""


@dataclass(frozen=True)
class Member:
    """A model in a stretch.

    Attributes:
        reference: as in the recipe.
        region: the tensors of it that take part.
        first: its first block in the stretch.
        parameters: its own.
        where: the field that names it.
    """

    reference: str | Recipe
    region: Region
    first: int
    parameters: Settings
    where: str

    @property
    def model(self) -> Model:
        """The opened model."""
        return self.region.model

    @property
    def field(self) -> str:
        """The key of its reference, for messages."""
        return self.where if self.where == "base_model" else f"{self.where}.model"


@dataclass(frozen=True)
class Stretch:
    """Equally many blocks of several models.

    Attributes:
        members: those whose values are merged, the base not among them if it is one apart.
        base: what task vectors start from, or None.
        length: number of blocks.
        parameters: of the slice, the module and the merge, the nearest first.
        pattern: of a merge of whole models without a base the model that lends the config.
    """

    members: tuple[Member, ...]
    base: Member | None
    length: int
    parameters: tuple[Settings, ...]
    pattern: Member | None = None

    @property
    def template(self) -> Member:
        """Whose tensors say what there is."""
        return self.base or self.pattern or self.members[0]


@dataclass(frozen=True)
class Track:
    """A part of the output with blocks of its own.

    Attributes:
        stretches: from its input to its output.
        region: the tensors of the donor that it stands for.
    """

    stretches: tuple[Stretch, ...]
    region: Region


_TEXT = ("text_decoder", "text_model", "language_model", "decoder", "llm")
_VISION = ("vision", "visual")
_BRIDGE = ("projector", "merger", "connector")


def tracks(recipe: Recipe, operator: Operator, open_model: Opener) -> list[Track]:
    """Lays a recipe of models, slices or modules out.

    Raises:
        RecipeError: if a module or a run of blocks is not there, or an operator gets too few
            or too many models.
        SourceError: if a model cannot be opened.
    """
    build = _Builder(recipe, operator, open_model)
    if not recipe.modules:
        donor = build.open(*home(recipe))
        prefix = recipe.scope.prefix if recipe.scope else ""
        scope = build.scope_parent()
        region = below(scope or donor, prefix) if prefix else whole(donor)
        if prefix and region.prefix != prefix:
            raise RecipeError.of(
                "scope.prefix", repr(prefix), "what names of some tensors begin with, such as "
                f"{_first_parts(scope or donor)}", "Correct it.",
            )  # fmt: skip
        module = Module(recipe.sources, recipe.slices, {})
        return [Track(build.stretches(module, None, prefix, ""), region)]
    donor = build.open(*home(recipe))
    names = module_names(donor, tuple(recipe.modules))
    return [_module_track(build, donor, names, key) for key in recipe.modules]


def _module_track(
    build: _Builder, donor: Model, names: dict[str, tuple[str, ...]], key: str
) -> Track:
    def choose(model: Model) -> Region:
        return part(model, names_in(model, names, key, donor))

    module = build.recipe.modules[key]
    return Track(build.stretches(module, choose, "", f"modules.{key}."), part(donor, names[key]))


def home(recipe: Recipe) -> tuple[str | Recipe, str]:
    """The model that lends the config, and the field that names it: the base or the first."""
    if recipe.base is not None:
        return recipe.base, "base_model"
    if recipe.sources:
        return recipe.sources[0].model, "models[0].model"
    if recipe.slices:
        return recipe.slices[0].sources[0].model, "slices[0].sources[0].model"
    name, module = next(iter(recipe.modules.items()))
    if module.sources:
        return module.sources[0].model, f"modules.{name}.models[0].model"
    return module.slices[0].sources[0].model, f"modules.{name}.slices[0].sources[0].model"


def module_names(model: Model, modules: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Tensors of each module: below the prefix of its name, or of the kind that it names.

    `default` is all that no other module has.

    Raises:
        RecipeError: if a module has no tensors.
    """
    out: dict[str, tuple[str, ...]] = {}
    for key in modules:
        if key != "default":
            out[key] = _module(model, key)
    taken = {name for names in out.values() for name in names}
    if "default" in modules:
        out["default"] = tuple(n for n in model.names if n not in taken)
    for key in modules:
        if not out[key]:
            raise RecipeError.of(
                f"modules.{key}", "a module without tensors", "`default`, or what names of some "
                f"tensors begin with, such as {_first_parts(model)}", "Correct the name.",
            )  # fmt: skip
    return out


def names_in(
    model: Model, names: dict[str, tuple[str, ...]], key: str, donor: Model
) -> tuple[str, ...]:
    """Tensors of a module in another model than the donor."""
    if model is donor:
        return names[key]
    try:
        return module_names(model, tuple(names))[key]
    except RecipeError:
        return model.names


def _module(model: Model, key: str) -> tuple[str, ...]:
    below_it = tuple(n for n in model.names if n.startswith(f"{key}.") or f".{key}." in n)
    if below_it and key in _TEXT:  # newer files have the head outside of it
        return tuple(n for n in model.names if n in set(below_it) or is_head(n))
    if below_it:
        return below_it
    for kind in (_VISION, _BRIDGE):
        if any(word in key for word in kind):
            return tuple(n for n in model.names if any(word in n for word in kind))
    if key in _TEXT:
        other = (*_VISION, *_BRIDGE)
        return tuple(n for n in model.names if not any(word in n for word in other))
    return ()


def _first_parts(model: Model) -> str:
    """What names begin with: up to two parts, so that `model.` does not hide what is in it."""
    split = [n.split(".")[:-1] for n in model.names]
    parts = dict.fromkeys(".".join([*p[: 1 + (p[0] == "model" and len(p) > 2)], ""]) for p in split)
    return ", ".join(list(parts)[:8])


def _check_depth(base: Member, length: int, entire: bool) -> None:
    """Checks that the base has the blocks that the models have."""
    blocks = base.region.layout.blocks
    if (blocks == length) if entire else (base.first + length <= blocks):
        return
    last = base.first + length
    raise RecipeError.of(
        "base_model", f"{blocks} blocks in {base.model.ref}",
        f"{length}, as the models have" if entire else f"at least {last}, as a slice ends there",
        "Merge models of one depth." if entire else "Name the base among the slice's sources.",
    )  # fmt: skip


class _Builder:
    def __init__(self, recipe: Recipe, operator: Operator, open_model: Opener) -> None:
        self.recipe = recipe
        self.operator = operator
        self.open = open_model

    def scope_parent(self) -> Model | None:
        """The parent of a scope, if the recipe names one."""
        scope = self.recipe.scope
        if scope is None or scope.rest is None:
            return None
        return self.open(scope.rest, "scope.rest")

    def stretches(
        self,
        module: Module,
        region: Callable[[Model], Region] | None,
        prefix: str,
        where: str,
    ) -> tuple[Stretch, ...]:
        """Those of a module, or of the whole recipe."""
        choose = region or (lambda model: below(model, prefix) if prefix else whole(model))
        outer = (module.parameters, self.recipe.parameters)
        if not module.slices:
            return (self._stretch(Slice(module.sources), choose, outer, f"{where}models", True),)
        return tuple(
            self._stretch(piece, choose, outer, f"{where}slices[{i}].sources", False)
            for i, piece in enumerate(module.slices)
        )

    def _stretch(
        self,
        piece: Slice,
        choose: Callable[[Model], Region],
        outer: tuple[Settings, ...],
        where: str,
        entire: bool,
    ) -> Stretch:
        members = [
            self._member(source, choose, f"{where}[{i}]", entire)
            for i, source in enumerate(piece.sources)
        ]
        lengths = [
            m.region.layout.blocks if s.layer_range is None else s.layer_range[1] - s.layer_range[0]
            for m, s in zip(members, piece.sources, strict=True)
        ]
        for member, length in zip(members, lengths, strict=True):
            if length != lengths[0]:
                raise RecipeError.of(
                    f"{member.where}.{'model' if entire else 'layer_range'}", f"{length} blocks",
                    f"{lengths[0]}, as in the first", "Merge equally many blocks.",
                )  # fmt: skip
        reference = piece.base if piece.base is not None else self.recipe.base
        base, others = self._base(reference, members, choose)
        self._count(others, where)
        pattern = None
        if base is None and entire and self.recipe.base is not None and not self.recipe.scope:
            same = [m for m in members if m.reference == self.recipe.base]
            pattern = same[0] if same else self._lender(self.recipe.base, members[0], choose)
        for one in (base, pattern):
            if one is not None:
                _check_depth(one, lengths[0], entire)
        around = (piece.parameters, *outer)
        return Stretch(tuple(others), base, lengths[0], around, pattern)

    def _lender(
        self, reference: str | Recipe, like: Member, choose: Callable[[Model], Region]
    ) -> Member:
        """The base where it is not among the members, at the same blocks as another."""
        region = choose(self.open(reference, "base_model"))
        return Member(reference, region, like.first, {}, "base_model")

    def _member(
        self, source: Source, choose: Callable[[Model], Region], where: str, entire: bool
    ) -> Member:
        region = choose(self.open(source.model, f"{where}.model"))
        first, last = source.layer_range or (0, region.layout.blocks)
        if last > region.layout.blocks:
            raise RecipeError.of(
                f"{where}.layer_range", f"[{first}, {last}]",
                f"blocks of {region.model.ref}, which has {region.layout.blocks}", "Correct it.",
            )  # fmt: skip
        return Member(source.model, region, first, source.parameters, where)

    def _base(
        self,
        reference: str | Recipe | None,
        members: list[Member],
        choose: Callable[[Model], Region],
    ) -> tuple[Member | None, list[Member]]:
        """The base, and the members that are not it."""
        if reference is None or self.operator.takes_base == "never":
            if self.operator.takes_base == "required":
                raise RecipeError.of(
                    "base_model", "none", f"a base, which {self.operator.name} needs",
                    "Name the model that the others were fine-tuned from.",
                )  # fmt: skip
            return None, members
        same = [m for m in members if m.reference == reference]
        if same:
            others = [m for m in members if m is not same[0]]
            return same[0], others or members
        return self._lender(reference, members[0], choose), members

    def _count(self, members: list[Member], where: str) -> None:
        least, most = self.operator.least_sources, self.operator.most_sources
        if len(members) < least or (most is not None and len(members) > most):
            wanted = f"{least}" if most == least else f"at least {least}"
            if most is not None and most != least:
                wanted = f"{least} to {most}"
            beside = " beside the base" if self.operator.takes_base == "required" else ""
            raise RecipeError.of(
                where, f"{len(members)} models", f"{wanted}{beside} for {self.operator.name}",
                "Add or remove models.",
            )  # fmt: skip
