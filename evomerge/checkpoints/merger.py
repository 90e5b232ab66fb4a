"""Turns a recipe and its checkpoints into a stream of (name, tensor)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.adapted import open_model
from evomerge.checkpoints.assembly import assemble
from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.held import HeldModel
from evomerge.checkpoints.merged import MergedModel, merge_of
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.parts import Assembly, Input, Part, key_of
from evomerge.checkpoints.remapped import fit_rows
from evomerge.checkpoints.resident import Resident, Wanted
from evomerge.checkpoints.statistics import Statistics
from evomerge.checkpoints.vocabulary import choose_chat_template
from evomerge.errors import SourceError
from evomerge.kernels.compiled_loops import Count
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Weight
from evomerge.recipe import Recipe
from evomerge.recipe.references import is_recipe_file

_NESTED = 16
"""Merges within merges that are kept for the next recipe; every candidate may have its own."""


@dataclass(frozen=True)
class Pending:
    """A tensor of the merge that is computed where it is wanted.

    Attributes:
        name: in the merged model.
        shape: of it.
        dtype: that it is rounded to.
        inputs: what it is made of, the base first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    _merge: TensorMerge | Tensor
    inputs: tuple[Input, ...] = ()

    def write(self, out: Tensor) -> int:
        """Fills a contiguous tensor of this shape and dtype, a parameter of a model, say.

        Returns:
            How many of the values are NaN or infinite.

        Raises:
            ValueError: if the shape is another.
        """
        return int(self.begin(out))

    def begin(self, out: Tensor) -> Count:
        """Does the same as `write`, but does not wait for a GPU.

        Returns:
            How many of the values are NaN or infinite; on a GPU a tensor of one number.

        Raises:
            ValueError: as `write`.
        """
        if tuple(out.shape) != self.shape:
            raise ValueError(f"{self.name}: a tensor of {list(out.shape)} for {list(self.shape)}")
        out = out.detach()
        if isinstance(self._merge, Tensor):  # integers
            out.copy_(self._merge)
            return 0
        if out.device == self.device:
            return self._merge.begin(out)
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        bad = self._merge.begin(made)
        out.copy_(made)
        return bad

    def tensor(self) -> Tensor:
        """The values in a new tensor (integers: the source's own)."""
        if isinstance(self._merge, Tensor):
            return self._merge
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self._merge.begin(out)
        return out

    @property
    def device(self) -> torch.device:
        """Where the values are computed."""
        return self._merge.device if isinstance(self._merge, Tensor) else self._merge.view.device


class Merger:
    """Merges recipes tensor by tensor; opened sources stay memory-mapped between recipes.

    Peak memory beyond the maps is one merged tensor and a few runs of a million elements,
    whatever the number of sources.
    """

    def __init__(
        self,
        threads: int | None = None,
        allow_pickled: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Opens nothing yet.

        Args:
            threads: that share large tensors; None for torch's number.
            allow_pickled: whether `.bin` sources may be read.
            device: where to merge. Sources stay on a GPU as far as half of the memory that is
                free at the first merge allows; what is nested is computed on the CPU.
        """
        self._open: dict[str, Model] = {}
        self._opening: list[str] = []
        self._nested: OrderedDict[str, MergedModel] = OrderedDict()
        self._checkpoints: dict[str, Checkpoint] = {}
        self._allow_pickled = allow_pickled
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._statistics = Statistics()
        self._device = torch.device(device)
        self._resident: Resident | None = None

    def checkpoint(self, ref: str, field: str = "model") -> Model:
        """A source, opened at its first use."""
        if ref not in self._open:
            self._open[ref] = (
                self._recipe_file(ref, field)
                if is_recipe_file(ref)
                else open_model(ref, field, self._allow_pickled, self._checkpoints)
            )
        return self._open[ref]

    def _recipe_file(self, ref: str, field: str) -> Model:
        """The model that a recipe file makes.

        Raises:
            SourceError: if there is no such file, or it contains itself.
            RecipeError: if it is no recipe.
        """
        path = Path(ref).expanduser()
        if not path.is_file():
            raise SourceError.of(
                field, f"no file {ref}", "a recipe that is there",
                "Correct the path, or run the study first whose recipe it is.",
            )  # fmt: skip
        if ref in self._opening:
            raise SourceError.of(
                field, f"{ref}, which contains itself", "a recipe of other models",
                "Name another model there.",
            )  # fmt: skip
        self._opening.append(ref)
        try:
            recipe = Recipe.from_yaml(path)
            check_recipe(recipe)
            identity = recipe.digest(self.identities(recipe))
            return HeldModel(ref, field, identity, assemble(recipe, self.model), self._lone_view)
        finally:
            self._opening.pop()

    def model(self, reference: str | Recipe, field: str = "model") -> Model:
        """A source or a nested merge."""
        if isinstance(reference, str):
            return self.checkpoint(reference, field)
        key = key_of(reference)
        if key not in self._nested:
            identity = reference.digest(self.identities(reference))
            assembly = assemble(reference, self.model)
            self._nested[key] = MergedModel(key, field, identity, assembly, self._lone_view)
            if len(self._nested) > _NESTED:
                self._nested.popitem(last=False)
        self._nested.move_to_end(key)
        return self._nested[key]

    def identities(self, recipe: Recipe) -> dict[str, str]:
        """Content fingerprint of every model of a recipe, for its digest."""
        return {ref: self.checkpoint(ref).fingerprint for ref in recipe.models()}

    def assemble(self, recipe: Recipe) -> Assembly:
        """Plans a merge without reading weights.

        Raises:
            RecipeError: if the recipe asks for what cannot be.
            SourceError: if a model cannot be opened or does not fit.
        """
        check_recipe(recipe)
        if recipe.chat_template is not None:  # an unknown name is told before the long work
            choose_chat_template(
                recipe.chat_template, {r: self.checkpoint(r) for r in recipe.models()}
            )
        return assemble(recipe, self.model)

    def stream(self, recipe: Recipe | Assembly) -> Iterator[Pending]:
        """Every tensor of the merged model, to be computed in place one after the other.

        Raises:
            RecipeError, SourceError: as `assemble`, before the first tensor.
        """
        assembly = recipe if isinstance(recipe, Assembly) else self.assemble(recipe)
        return self._stream(assembly)

    def merge(self, recipe: Recipe | Assembly) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor of the merged model, in the order of the base's files.

        Integer and boolean tensors (position ids, masks) are not merged but passed on as they
        are; the sources have to agree on them.

        Raises:
            RecipeError: if the operator does not know or lacks a parameter.
            SourceError: if the sources do not fit together.
        """
        for pending in self.stream(recipe):
            yield pending.name, pending.tensor()

    def _stream(self, assembly: Assembly) -> Iterator[Pending]:
        views = self._views(assembly)
        try:
            for part in assembly.parts:
                inputs = part.inputs
                merge: TensorMerge | Tensor
                view = next(views)
                if view is None:
                    merge = inputs[0].model.tensor(inputs[0].name)
                else:
                    merge = merge_of(part, view)
                yield Pending(part.name, part.shape, part.dtype, merge, inputs)
                del merge, view  # or the last tensor's masks would live on beside the next one's
        finally:
            self._statistics.flush()

    def _views(self, assembly: Assembly) -> Iterator[View | None]:
        """What is seen of each tensor, on the device; None for copies of integers."""
        parts = assembly.parts
        if self._device.type != "cpu" and self._resident is None:
            self._resident = Resident(self._device)
        if self._resident is None:
            for part in parts:
                yield None if _is_copied(part) else self._view(part, assembly)
            return
        loaded = self._resident.load(_wanted(p, assembly) for p in parts if not _is_copied(p))
        for part in parts:  # nothing is held on to here while a tensor is computed
            yield None if _is_copied(part) else self._seen(part, next(loaded), None)

    def _lone_view(self, part: Part, assembly: Assembly) -> View:
        """The same for a nested merge, whose runs are read by threads already."""
        return self._view(part, assembly, shared=False)

    def _view(self, part: Part, assembly: Assembly, shared: bool = True) -> View:
        """What an operator sees of one tensor."""
        return self._seen(part, _wanted(part, assembly), self._threads_pool() if shared else None)

    def _seen(self, part: Part, wanted: Sequence[Wanted], pool: ThreadPoolExecutor | None) -> View:
        weights = [one.weight for one in wanted]
        base = None if part.base is None else weights.pop(0)
        names = [one.key for one in wanted] if all(one.key for one in wanted) else []
        return View(base, weights, part.keys, names, self._statistics, pool)

    def _threads_pool(self) -> ThreadPoolExecutor | None:
        threads = self._threads or torch.get_num_threads()
        if threads > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(threads)
        return self._pool


def _is_copied(part: Part) -> bool:
    """Whether a tensor holds integers, which are passed on."""
    return part.plan is None and part.operator is None


def _wanted(part: Part, assembly: Assembly) -> list[Wanted]:
    """The weights that a tensor is made of, the base first, and what they are remembered by."""
    inputs = part.inputs
    weights = _weights(part, assembly, inputs)
    # rows of another vocabulary, and merges that come and go, are not worth remembering
    remapped = part.indexed and assembly.vocabulary is not None
    passing = (i for i in inputs if not isinstance(i.model, HeldModel))
    plain = not remapped and not any(isinstance(i.model, MergedModel) for i in passing)
    return [
        Wanted(weight, _remembered(one, weight) if plain else "")
        for one, weight in zip(inputs, weights, strict=True)
    ]


def _remembered(one: Input, weight: Weight) -> str:
    """What the statistics of a weight are remembered by; rows that are cut off do not count."""
    cut = "" if weight.shape == one.model.shapes[one.name] else f"[:{weight.shape[0]}]"
    return f"{one.model.fingerprint}:{one.name}{cut}"


def _weights(part: Part, assembly: Assembly, inputs: Sequence[Input]) -> list[Weight]:
    """The tensors of all models, with the rows that the output has."""
    weights = [one.model.weight(one.name) for one in inputs]
    if not part.indexed:
        return weights
    if assembly.vocabulary is None:
        return [
            fit_rows(w, part.shape[0], one.name, one.model.field)
            for w, one in zip(weights, inputs, strict=True)
        ]
    named = {one.key: w for one, w in zip(inputs, weights, strict=True)}
    mapped = assembly.vocabulary.remap(named, list(named))
    return [mapped[one.key] for one in inputs]
