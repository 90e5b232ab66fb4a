"""The part of the vLLM engine that runs inside its workers: merges and streams weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.deepening import Places, at_depth, is_tied
from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.region import is_head
from evomerge.engines.stacking import Stack, rank_of, stacked
from evomerge.engines.weights import check_finite, differing
from evomerge.errors import CandidateError, UserError
from evomerge.recipe import Recipe, Source


class MergeWorkerExtension:
    """Adds `evomerge_load` to a vLLM worker; every other name belongs to the worker.

    The reply is plain data, since exceptions do not survive the way between processes:
    `ok`; `sound` (the model's structure is whole, whatever its weights are); `error`; `kind`,
    its name in `evomerge.errors`; `problems` of a user's error; `seconds`; `tensors`; `adapter`
    (there is one to be used).
    """

    def evomerge_load(self, recipe: Mapping[str, Any], lora: bool = False) -> dict[str, Any]:
        """Merges a recipe (plain data) and overwrites the running model's weights with it.

        With `lora`, a weighted sum of LoRA adapters of the engine's own model is given to vLLM
        as one adapter, as long as its rank is not above `max_lora_rank`.
        """
        if "_evomerge_merger" not in self.__dict__:
            device = self.__dict__.get("device", "cpu")  # the worker's own
            self.__dict__["_evomerge_merger"] = Merger(device=device)
        merger: Merger = self.__dict__["_evomerge_merger"]
        worker: Any = self
        if lora:
            reply = self._evomerge_adapt(recipe, merger)
            if reply is not None:
                return reply
            self.__dict__["_evomerge_base"] = False
        config = worker.model_runner.model_config.hf_text_config
        wrong: list[CandidateError] = []

        def weights() -> Iterator[tuple[str, Tensor]]:
            depth = config.num_hidden_layers
            assembly = at_depth(Recipe.from_dict(recipe), merger, depth)
            Places(config.to_dict(), depth).check(assembly)
            tensors = merger.merge(assembly)
            one = getattr(config, "tie_word_embeddings", False) and not is_tied(assembly.config)
            return watch_head(tensors, wrong) if one else tensors

        return self.evomerge_update(weights, wrong)

    def _evomerge_adapt(self, recipe: Mapping[str, Any], merger: Merger) -> dict[str, Any] | None:
        """Swaps vLLM's adapter; None where the recipe is no adapter or one of too high a rank."""
        start = time.perf_counter()
        runner = self.__dict__["model_runner"]
        own = runner.model_config.model
        try:
            assembled = Recipe.from_dict(recipe)
            check_recipe(assembled)
            stack = stacked(assembled, merger.checkpoint, Path(own))
        except UserError:
            return None  # merging it says what is wrong
        if stack is None or rank_of(stack) > runner.lora_config.max_lora_rank:
            return None
        if not self.__dict__.get("_evomerge_base", True):
            plain = Recipe("linear", (Source(own, {"weight": 1.0}),))
            reply = self.evomerge_update(lambda: merger.merge(plain))
            if not reply["ok"]:
                return reply
            self.__dict__["_evomerge_base"] = True
        reply = {"ok": False, "sound": True, "tensors": 2 * len(stack), "adapter": bool(stack)}
        try:
            swap_adapter(runner, stack)
            reply["ok"] = True
        except CandidateError as error:
            reply |= {"error": str(error), "kind": type(error).__name__}
        except Exception as error:
            reply["error"] = f"the adapter could not be swapped: {type(error).__name__}: {error}"
            reply["sound"] = False
        reply["seconds"] = time.perf_counter() - start
        return reply

    def evomerge_update(
        self,
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        wrong: Sequence[CandidateError] = (),
    ) -> dict[str, Any]:
        """Overwrites the weights from the stream that the callable `weights` opens.

        What is in `wrong` once the stream has ended is told after the update.
        """
        start = time.perf_counter()
        worker: Any = self
        stream: _Stream | None = None
        reply: dict[str, Any] = {"ok": False, "sound": True}
        try:
            stream = _Stream(weights())
            worker.reload_weights(weights_iterator=stream.tensors())
            refresh_tied(worker.model_runner.get_model())
            stream.check(_names(worker.model_runner.model_config.model))
            for error in wrong:
                raise error
            reply["ok"] = True
        except CandidateError as error:
            reply |= {"error": str(error), "kind": type(error).__name__}
            reply["sound"] = stream is None or stream.exhausted
        except UserError as error:
            reply |= {"error": str(error), "kind": type(error).__name__}
            reply["problems"] = [[p.field, p.found, p.expected, p.remedy] for p in error.problems]
            reply["sound"] = stream is None
        except Exception as error:
            reply["error"] = f"the weights could not be updated: {type(error).__name__}: {error}"
            reply["sound"] = stream is None
        reply["seconds"] = time.perf_counter() - start
        reply["tensors"] = stream.count if stream else 0
        return reply


ADAPTER = 1
"""Number of the one adapter that vLLM is given."""


def swap_adapter(runner: Any, stack: Stack) -> None:
    """Puts an adapter in the place of the one before it, or of none; nothing is written to disk.

    Raises:
        NotFiniteError: if a factor is not finite.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    for module, pair in stack.items():
        for factor in pair:
            check_finite(f"{module} of the adapter", factor)
    manager = runner.lora_manager._adapter_manager
    manager.remove_adapter(ADAPTER)
    if not stack:
        return
    rank = rank_of(stack)
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": factor
        for module, pair in stack.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        ADAPTER,
        tensors,
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=sorted(stack)),
        device="cpu",
        dtype=runner.lora_config.lora_dtype,
        weights_mapper=mapper.get_rename_mapper() if mapper is not None else None,
    )
    manager.add_adapter(adapter)
    manager.activate_adapter(ADAPTER)


class _Stream:
    """Watches tensors go by.

    The first is drawn at once, so that a recipe at fault is found before vLLM begins to
    write. After a value that is not finite the stream goes on, because an update that stops
    half-way leaves vLLM's layers taken apart; `check` then tells.
    """

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        head = list(itertools.islice(weights, 1))
        self._weights = itertools.chain(head, weights)
        self._bad: CandidateError | None = None
        self._seen: set[str] = set()
        self.exhausted = False

    @property
    def count(self) -> int:
        """How many tensors have gone by."""
        return len(self._seen)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors, each noted and looked at."""
        for name, tensor in self._weights:
            self._seen.add(name)
            if self._bad is None:
                try:
                    check_finite(name, tensor)
                except CandidateError as error:
                    self._bad = error
            yield name, tensor
        self.exhausted = True

    def check(self, expected: set[str]) -> None:
        """Tells of a value that was not finite, or of a tensor that never came.

        Raises:
            CandidateError: naming the tensor.
        """
        if self._bad is not None:
            raise self._bad
        missing = sorted(expected - self._seen)
        if missing:
            raise CandidateError(
                f"{len(missing)} tensors of the model were not given, the first is {missing[0]}"
            )


def watch_head(
    tensors: Iterator[tuple[str, Tensor]], wrong: list[CandidateError]
) -> Iterator[tuple[str, Tensor]]:
    """Passes tensors on and notes a head that is not the embedding, for which there is no room.

    vLLM passes over the head of a model that ties it. An update must not stop half-way, so it
    is noted in `wrong` and not raised.
    """
    embedding: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if embedding is None and layout_of([name]).embeddings:
            embedding = name, tensor.clone()
        elif is_head(name) and (embedding is None or not torch.equal(embedding[1], tensor)):
            wrong.append(differing(name, embedding[0] if embedding else "the embedding"))
        yield name, tensor


def refresh_tied(model: torch.nn.Module) -> None:
    """Lets layers that share a weight prepare it again after an update.

    vLLM's reload prepares a layer (on a CPU: packs its matrix) when the layer's own weights
    come by. Of layers with a common weight, an embedding and its head, only the first is
    named in the stream: the head would go on with the packed copy of the old weights.
    """
    sharing: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.numel():
            sharing.setdefault(id(weight), []).append(module)
    for modules in sharing.values():
        for module in modules if len(modules) > 1 else []:
            method: Any = getattr(module, "quant_method", None)
            if hasattr(method, "process_weights_after_loading"):
                method.process_weights_after_loading(module)


def _names(model: str) -> set[str]:
    """Tensors that the engine's own checkpoint has and every candidate must have, too."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            names.update(opened.keys())
    return {n for n in names if n != "lm_head.weight" and not n.endswith("rotary_emb.inv_freq")}
