"""Folds a route (data-flow space, arXiv 2403.13187, section 3.2) into an ordinary checkpoint.

A scale on what flows between blocks becomes a gain on the tensors that write to the residual
stream, so that the result needs no model code of its own. With s_t the scale of slot t:

- `block_output`: the output of the MLP before slot t (the embedding, for the first slot) is
  multiplied by s_t; not that of the attention, even where the two run side by side.
- `stream`: the stream x is multiplied by s_t as it enters slot t. We keep y = x / P_t with
  P_t = s_0 ... s_t. A norm turns P_t y into what it makes of y, times the sign of P_t, apart
  from its epsilon; so gains of norms that read the stream take the sign, and whatever a block
  adds is divided by P_t.

An identity passes everything through, and its scale acts like any other slot's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from evomerge.checkpoints.anatomy import BlockAnatomy, ends, gain_is_one_plus, read_block
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.route_config import DEPTH_KEYS, layer_lists, routed_config
from evomerge.errors import RecipeError, SourceError
from evomerge.recipe.data import READINGS, Case, Recipe, Route, Slice, Slot, Source

_TIE = "tie_word_embeddings"


@dataclass(frozen=True)
class RoutedTensor:
    """One tensor of the written model: `gain * value + offset`.

    Attributes:
        name: in the written model.
        slot: index of the slot whose model it is read from; None for the first model.
        source_name: in that model.
        gain: 0 stands for zeros, whatever the value is.
        offset: other than 0 only for gains of norms that are stored as 1 + w.
    """

    name: str
    slot: int | None
    source_name: str
    gain: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Folded:
    """An ordinary checkpoint, as a plan.

    Attributes:
        tensors: in the order of the file.
        config: keys of the first model's `config.json` with their new values (nested ones
            whole).
        notes: in what the blocks' models differ and the written config can hold one value only.
    """

    tensors: tuple[RoutedTensor, ...]
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def fixed_depth(route: Route, depth: int) -> Route:
    """Appends identities up to a depth, for engines whose number of blocks is fixed.

    Raises:
        RecipeError: if the route is longer.
    """
    missing = depth - len(route.slots)
    if missing < 0:
        raise RecipeError.of(
            "route.depth",
            str(depth),
            f"at least the number of slots, {len(route.slots)}",
            "Raise the depth or leave slots out.",
        )
    return replace(route, slots=(*route.slots, *([Slot(None)] * missing)), depth=depth)


def fold(route: Route, models: Mapping[int, Model], first: Model) -> Folded:
    """Plans the checkpoint that computes what the route says.

    Args:
        route: with scales of any sign; 0 in `block_output` only.
        models: index of a slot to its opened model, for all slots that are no identities.
        first: gives embedding, final norm, head, config, and the shapes of identities.

    Raises:
        RecipeError: if the route is empty or has a scale or a layer that cannot be.
        SourceError: if a model does not fit or cannot be folded, with the reason.
    """
    _check_route(route)
    if route.depth is not None:
        route = fixed_depth(route, route.depth)
    bodies: dict[int, _Body] = {}
    start = bodies[id(first)] = _Body(first)
    blocks = []
    for t, slot in enumerate(route.slots):
        if slot.model is None:  # the block at the same place is most likely of the right kind
            blocks.append((start, min(t, start.depth - 1)))
        else:
            if id(models[t]) not in bodies:
                bodies[id(models[t])] = _Body(models[t])
                _check_width(t, models[t], first)
                _check_vocabulary(t, models[t], first)
            body = bodies[id(models[t])]
            _check_slot(t, slot, body, start)
            blocks.append((body, slot.layer))
    config, notes = routed_config(
        [(body.model, layer) for body, layer in blocks],
        [body.kinds[layer] for body, layer in blocks],
        first,
        start.kinds,
    )
    gains = _Gains(route, blocks, start)
    return Folded(_tensors(route, blocks, start, gains, config), config, notes)


def to_slices(recipe: Recipe, models: Mapping[int, Model], first: Model) -> Recipe | None:
    """Says the same merge as `passthrough` slices with `scale` filters, for mergekit.

    mergekit takes the embedding from the first slice and norm and head from the last; where
    those are of other models than `first`, a slice of no blocks stands before or after.

    Returns:
        None where slices cannot say it: nested merges, a head that has to be untied, gains
        stored as 1 + w, changes of the config other than its depth, scaled experts, a scope.
    """
    route = recipe.route
    if route is None or recipe.scope is not None or not route.slots:
        return None
    folded = fold(route, models, first)
    slots = fixed_depth(route, max(route.depth or 0, len(route.slots))).slots
    home = recipe.base or next((s.model for s in slots if s.model is not None), None)
    if not isinstance(home, str) or any(isinstance(s.model, Recipe) for s in slots):
        return None
    if not set(folded.config) <= set(DEPTH_KEYS) or any(t.offset for t in folded.tensors):
        return None
    if folded.config and layer_lists(first):  # mergekit would keep a list of the old length
        return None
    if any(".experts." in t.name and t.gain != 1 for t in folded.tensors):
        return None  # mergekit may rename experts, and a filter that misses is no error there
    layout = first.layout
    cases: dict[str, list[Case]] = defaultdict(list)
    origin: dict[str, tuple[str, int]] = {}
    for tensor in folded.tensors:
        group = layout.group_of(tensor.name)
        number = group.removeprefix("block.")
        if number != group and group not in origin:
            model = home if tensor.slot is None else slots[tensor.slot].model
            block = tensor.source_name.removeprefix(f"{_prefix(tensor, models, first)}.")
            origin[group] = (str(model), int(block.partition(".")[0]))
        if tensor.gain != 1:
            short = tensor.name.removeprefix(f"{layout.prefix}.{number}.")
            cases[group].append(Case(short, tensor.gain))
    runs = [(*origin[f"block.{t}"], 1, list(cases[f"block.{t}"])) for t in range(len(slots))]
    if runs[0][0] != home:
        runs.insert(0, (home, 0, 0, []))
    if runs[-1][0] != home:
        runs.append((home, 0, 0, []))
    runs = _joined(runs)
    runs[0][3].extend(cases["embedding"])
    runs[-1][3].extend(cases["head"])
    return replace(recipe, base=home, slices=tuple(_slice(*run) for run in runs), route=None)


class _Body:
    """A model's blocks, by number, as file names keyed by the names within a block."""

    def __init__(self, model: Model) -> None:
        self.model = model
        layout = model.layout
        self.depth = layout.blocks
        self.blocks: dict[int, dict[str, str]] = defaultdict(dict)
        start = f"{layout.prefix}."
        for name in model.names:
            if layout.group_of(name).startswith("block."):
                number, _, rest = name.removeprefix(start).partition(".")
                self.blocks[int(number)][rest] = name
        self._anatomies: dict[int, BlockAnatomy] = {}

    def anatomy(self, block: int) -> BlockAnatomy:
        if block not in self._anatomies:
            names = self.blocks[block].values()
            self._anatomies[block] = read_block(self.model, block, names)
        return self._anatomies[block]

    def shapes(self, block: int) -> dict[str, tuple[int, ...]]:
        return {rest: self.model.shapes[name] for rest, name in self.blocks[block].items()}

    @cached_property
    def kinds(self) -> list[frozenset[tuple[str, tuple[int, ...]]]]:
        """Names and shapes of each block's tensors, to compare blocks by."""
        return [frozenset(self.shapes(block).items()) for block in range(self.depth)]

    @cached_property
    def one_plus(self) -> bool:
        return gain_is_one_plus(self.model)


class _Gains:
    """What every tensor is multiplied by.

    Attributes:
        of: for each slot, names in the file to (gain, offset).
        ends: the same for the tensors outside the blocks.
        untie: whether the head has to become a tensor of its own.
    """

    def __init__(self, route: Route, blocks: list[tuple[_Body, int]], first: _Body) -> None:
        self.of: list[dict[str, tuple[float, float]]] = [{} for _ in blocks]
        self.ends: dict[str, tuple[float, float]] = {}
        self.untie = False
        identity = [slot.model is None for slot in route.slots]
        if not any(identity) and all(slot.scale == 1 for slot in route.slots):
            return  # copies only: nothing has to be understood
        outside = ends(first.model)
        for t, (body, layer) in enumerate(blocks):
            if identity[t]:
                self._scale(self.of[t], body.anatomy(layer).adds, body, layer, 0.0)
        if route.scale == "stream":
            if any("deepstack" in name for name in outside.foreign):
                raise _unfoldable(first.model, "features that enter the stream between blocks")
            self._stream(route, blocks, identity)
            if math.prod(math.copysign(1, s.scale) for s in route.slots) < 0:
                self.ends[outside.final_norm] = (-1.0, -2.0 if first.one_plus else 0.0)
            return
        before = self._block_output(route, blocks, identity)
        if before == 1:
            return
        if outside.foreign:
            raise _unfoldable(
                first.model, f"{outside.foreign[0]}, as inputs may bypass the scaled embedding"
            )
        if outside.embedding_norm:
            for name in outside.embedding_norm:
                plus = name.endswith(".weight") and first.one_plus
                self.ends[name] = (before, before - 1 if plus else 0.0)
            return
        self.ends.update({name: (before, 0.0) for name in outside.embeddings})
        self.untie = outside.tied

    def _stream(self, route: Route, blocks: list[tuple[_Body, int]], identity: list[bool]) -> None:
        total = 1.0
        for t, (body, layer) in enumerate(blocks):
            total *= route.slots[t].scale
            if not math.isfinite(1 / total if total else math.inf) or not math.isfinite(total):
                raise RecipeError.of(
                    f"route.slots[{t}].scale",
                    f"scales whose product up to this slot is {total:g}",
                    "a product that a weight can be divided by",
                    "Keep the scales closer to 1, and away from 0: it would erase the stream.",
                )
            if identity[t]:
                continue
            block = body.anatomy(layer)
            self._scale(self.of[t], block.adds, body, layer, 1 / total)
            self._scale(self.of[t], block.raw, body, layer, total)
            self._scale(self.of[t], block.norms, body, layer, math.copysign(1.0, total))

    def _block_output(
        self, route: Route, blocks: list[tuple[_Body, int]], identity: list[bool]
    ) -> float:
        """Returns the gain of the embedding; a scale goes to the last block that is none."""
        gain = 1.0
        for t in reversed(range(len(blocks))):
            body, layer = blocks[t]
            if not identity[t]:
                self._scale(self.of[t], body.anatomy(layer).adds_last, body, layer, gain)
                gain = 1.0
            gain *= route.slots[t].scale
        return gain

    @staticmethod
    def _scale(
        target: dict[str, tuple[float, float]],
        names: Iterable[str],
        body: _Body,
        layer: int,
        gain: float,
    ) -> None:
        if gain == 1:
            return
        block = body.anatomy(layer)
        for name in names:
            plus = block.is_gain(name) and body.one_plus
            target[name] = (gain, gain - 1 if plus else 0.0)  # 1 + w' = gain (1 + w)


def _tensors(
    route: Route,
    blocks: list[tuple[_Body, int]],
    first: _Body,
    gains: _Gains,
    config: dict[str, Any],
) -> tuple[RoutedTensor, ...]:
    """Lists the written tensors and, where the head is untied, says so in the config."""
    layout = first.model.layout
    outside = [n for n in first.model.names if not layout.group_of(n).startswith("block.")]
    before = [n for n in outside if n in layout.embeddings]
    after = [n for n in outside if n not in layout.embeddings]
    untied: list[RoutedTensor] = []
    if gains.untie:
        known = ends(first.model)
        after = [n for n in after if n != known.head]
        untied.append(RoutedTensor(known.head, None, known.tokens))
        config[_TIE] = False
        for key, value in {**first.model.config, **config}.items():
            if isinstance(value, Mapping) and _TIE in value and key.endswith("config"):
                config[key] = {**value, _TIE: False}
    inside = [
        RoutedTensor(
            f"{layout.prefix}.{t}.{rest}",
            None if route.slots[t].model is None else t,
            name,
            *gains.of[t].get(name, (1.0, 0.0)),
        )
        for t, (body, layer) in enumerate(blocks)
        for rest, name in body.blocks[layer].items()
    ]

    def plain(names: Iterable[str]) -> list[RoutedTensor]:
        return [RoutedTensor(n, None, n, *gains.ends.get(n, (1.0, 0.0))) for n in names]

    return (*plain(before), *inside, *plain(after), *untied)


def _check_route(route: Route) -> None:
    if not route.slots:
        raise RecipeError.of(
            "route.slots",
            "none",
            "at least one block of a model",
            "A route that keeps no block has nothing to run: give the blocks in order.",
        )
    if route.scale not in READINGS:
        raise RecipeError.of(
            "route.scale", repr(route.scale), " or ".join(READINGS), "Choose one of them."
        )
    for t, slot in enumerate(route.slots):
        if not math.isfinite(slot.scale) or (slot.scale == 0 and route.scale == "stream"):
            raise RecipeError.of(
                f"route.slots[{t}].scale",
                f"{slot.scale:g}",
                "a finite number" + (" other than 0" if route.scale == "stream" else ""),
                "A stream that is multiplied by 0 is lost. Use another scale or leave slots out.",
            )


def _check_slot(t: int, slot: Slot, body: _Body, first: _Body) -> None:
    """Checks that a slot's block can stand among the first model's."""
    model = body.model
    if not 0 <= slot.layer < body.depth:
        raise RecipeError.of(
            f"route.slots[{t}].layer",
            f"{slot.layer} of {model.ref}",
            f"0 to {body.depth - 1}",
            "Name one of the model's blocks, counted from 0.",
        )
    mine = body.shapes(slot.layer)
    if body.kinds[slot.layer] not in first.kinds:
        other = first.shapes(min(slot.layer, first.depth - 1))
        name = next((n for n in (*mine, *other) if mine.get(n) != other.get(n)), "")
        raise SourceError.of(
            f"route.slots[{t}].model",
            f"{name} of shape {mine.get(name, 'none')} in block {slot.layer} of {model.ref}",
            f"{other.get(name, 'no such tensor')}, as in {first.model.ref}",
            "Route models of one architecture and size only.",
        )


def _check_width(t: int, model: Model, first: Model) -> None:
    """All blocks of a route read and write one stream, which has one width."""
    widths = [m.shapes[n][1:] for m in (model, first) for n in m.layout.embeddings[:1]]
    if len(widths) == 2 and widths[0] != widths[1]:
        theirs, mine = (",".join(map(str, width)) for width in widths)
        raise SourceError.of(
            f"route.slots[{t}].model",
            f"a hidden size of {theirs} in {model.ref}",
            f"{mine}, as in {first.ref}: the blocks of a route read and write one stream",
            "Route models of one architecture and size only.",
        )


def _check_vocabulary(t: int, model: Model, first: Model) -> None:
    """Lets a vocabulary be padded or extended, but not be another one.

    Blocks never see tokens; but those of a model with other tokens will not know the stream.
    """
    rows = [m.shapes[n][0] for m in (model, first) for n in m.layout.embeddings[:1]]
    if len(rows) == 2 and rows[0] != rows[1]:
        theirs, mine = model.vocabulary, first.vocabulary
        if not theirs or any(theirs.get(token, number) != number for token, number in mine.items()):
            raise SourceError.of(
                f"route.slots[{t}].model",
                f"{rows[0]} tokens in {model.ref}",
                f"the {rows[1]} tokens of {first.ref}, or more of them with the same numbers",
                "Route models of one tokenizer only.",
            )


def _unfoldable(model: Model, found: str) -> SourceError:
    return SourceError.of(
        model.field,
        f"{found} ({model.ref})",
        "a stream that starts at the embedding, to fold the route's scales into the weights",
        "Use the other reading of scales, or scales of 1.",
    )


def _prefix(tensor: RoutedTensor, models: Mapping[int, Model], first: Model) -> str:
    return (first if tensor.slot is None else models[tensor.slot]).layout.prefix


def _joined(runs: list[tuple[str, int, int, list[Case]]]) -> list[tuple[str, int, int, list[Case]]]:
    """Joins neighbouring runs (model, first block, blocks, cases) that nothing is scaled in."""
    joined = runs[:1]
    for model, layer, count, cases in runs[1:]:
        last = joined[-1]
        if model == last[0] and layer == last[1] + last[2] and last[2] and not (cases or last[3]):
            joined[-1] = (model, last[1], last[2] + count, cases)
        else:
            joined.append((model, layer, count, cases))
    return joined


def _slice(model: str, layer: int, count: int, cases: list[Case]) -> Slice:
    settings = {"scale": (*cases, Case(None, 1.0))} if cases else {}
    return Slice((Source(model, settings, (layer, layer + count)),))
