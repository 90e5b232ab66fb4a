"""A merge as a LoRA adapter of its base: exact for sums of adapters, else by singular values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from evomerge import operators
from evomerge.checkpoints.adapted import AdaptedCheckpoint
from evomerge.checkpoints.adapter import CONFIG, PREFIX, SAFETENSORS, Adapter
from evomerge.checkpoints.adapter_merge import LINEAR, low_rank
from evomerge.checkpoints.adapter_recipe import write_adapter
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.parts import Assembly
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

RANK = 64
"""Of each matrix, unless the user says otherwise."""

Report = Callable[[int, int], None]


@dataclass
class Errors:
    """How far base and adapter are from the merge, as relative Frobenius norms.

    Attributes:
        change: |written change - change| / |change| over all tensors, the change being merge
            minus base.
        weights: |base + adapter - merge| / |merge| over all tensors.
        worst: the largest relative error of the weights of one tensor.
        where: that tensor.
    """

    change: float = 0.0
    weights: float = 0.0
    worst: float = 0.0
    where: str = ""
    _rest: float = field(default=0.0, repr=False)
    _moved: float = field(default=0.0, repr=False)
    _whole: float = field(default=0.0, repr=False)

    def add(self, name: str, merged: Tensor, base: Tensor, written: Tensor) -> None:
        """Takes one tensor of the merge, of the base, and what is added to that."""
        rest = _square(base + written - merged)
        whole = _square(merged)
        self._rest += rest
        self._moved += _square(merged - base)
        self._whole += whole
        self.change = math.sqrt(self._rest / self._moved) if self._moved else 0.0
        self.weights = math.sqrt(self._rest / self._whole) if self._whole else 0.0
        error = math.sqrt(rest / whole) if whole else math.sqrt(rest)
        if error > self.worst:
            self.worst, self.where = error, name


@dataclass(frozen=True)
class LoraReport:
    """What was written.

    Attributes:
        exact: whether it is the sum of the sources' own factors, with nothing left out.
        modules: with factors.
        whole: tensors that are saved whole.
        ranks: smallest and largest rank.
        errors: what base and adapter differ by from the merge.
    """

    exact: bool
    modules: int
    whole: int
    ranks: tuple[int, int]
    errors: Errors

    @property
    def sentences(self) -> tuple[str, ...]:
        """The same in words."""
        low, high = self.ranks
        rank = f"rank {low}" if low == high else f"ranks {low} to {high}"
        if self.exact:
            first = (
                f"The merge is a sum of LoRA adapters of this base, and this adapter is that sum: "
                f"{self.modules} modules of {rank}, nothing left out."
            )
        else:
            first = (
                f"The change from base to merge was cut to its largest singular values: "
                f"{self.modules} modules of {rank}, {self.whole} tensors saved whole."
            )
        e = self.errors
        second = (
            f"Base plus adapter differs from the merged model by {e.weights:.2g} of the norm of "
            f"the weights ({e.worst:.2g} in {e.where}), which is {e.change:.2g} of the change."
            if e.where
            else "Base plus adapter is the merged model, to the last bit."
        )
        if self.exact and e.where:
            second += " That is the merged model's rounding to its dtype."
        return first, second


def write_lora(
    recipe: Recipe,
    merger: Merger,
    base: str,
    out: Path,
    named: str,
    rank: int | None = None,
    report: Report | None = None,
    assembly: Assembly | None = None,
) -> LoraReport:
    """Writes `adapter_config.json` and the factors of a merge to a folder.

    Linear layers, and embeddings, get factors; biases, norms and the like are saved whole. Sums
    of adapters of the base (linear and task_arithmetic, no other operator) are written exactly;
    with `rank` they are cut, too.

    Args:
        recipe: the merge.
        merger: holds the open models.
        base: the model that the adapter is for.
        out: a folder that exists.
        named: what the adapter is to call its base.
        rank: of the factors; by default the sum's own, or 64 (or a matrix's smaller side).
        report: called with tensors done and all.
        assembly: of the recipe, where the caller has it already.

    Raises:
        RecipeError: if the merge has other tensors than the base, or its change cannot be said.
        EvomergeError: as in `low_rank` and `write_adapter`.
    """
    model = merger.checkpoint(base)
    assembly = assembly or merger.assemble(recipe)
    check_shapes(assembly, model)
    if is_exact(recipe, merger, model):
        whole = replace(recipe, dtype="float32")  # of the factors: nothing is rounded
        made = out / "adapter"
        written = write_adapter(whole, made, rank)
        for name in (CONFIG, SAFETENSORS):
            (made / name).replace(out / name)
        for rest in made.iterdir():
            rest.unlink()
        made.rmdir()
        _rebase(out / CONFIG, named)
        errors = _measured(merger, assembly, model, Adapter(str(out)), report)
        ranks = [fit.rank for fit in written.fits.values()]
        exact = written.worst == 0.0
        return LoraReport(exact, len(ranks), 0, (min(ranks), max(ranks)), errors)
    return _factored(merger, assembly, model, named, out, rank or RANK, report)


def is_exact(recipe: Recipe, merger: Merger, base: Model) -> bool:
    """Whether a merge is a plain sum of LoRA adapters of one base, which factors say exactly."""
    if recipe.method not in LINEAR or not recipe.sources or recipe.methods:
        return False
    if recipe.scope or recipe.tokenizer or recipe.chat_template or recipe.pieces:
        return False
    if recipe.method == "linear":
        default = operators.get("linear").defaults.get("normalize", False)
        if recipe.parameters.get("normalize", default) is not True:
            return False  # weights that do not sum to 1 scale the base, too
    else:
        own = isinstance(recipe.base, str) and merger.checkpoint(recipe.base)
        if not own or own.fingerprint != base.fingerprint:
            return False
    for source in recipe.sources:
        if not isinstance(source.model, str):
            return False
        model = merger.checkpoint(source.model)
        if not isinstance(model, AdaptedCheckpoint) or model.adapter.saved:
            return False
        if model.base.fingerprint != base.fingerprint:
            return False
    return True


def check_shapes(assembly: Assembly, base: Model) -> None:
    """Checks that a merge has the base's tensors, no others.

    Raises:
        RecipeError: naming one that differs.
    """
    shapes = {part.name: tuple(part.shape) for part in assembly.parts}
    theirs = {name: tuple(shape) for name, shape in base.shapes.items()}
    for name in [*shapes, *theirs]:
        if shapes.get(name) != theirs.get(name):
            mine, other = (
                "no such tensor" if s is None else f"shape {list(s)}"
                for s in (shapes.get(name), theirs.get(name))
            )
            raise RecipeError.of(
                "--format lora", f"{name}: {mine} in the merge, {other} in the base {base.ref}",
                "a merge of the base's own shape, to which an adapter can be added",
                "Export it with --format hf.",
            )  # fmt: skip


def _measured(
    merger: Merger, assembly: Assembly, base: Model, adapter: Adapter, report: Report | None
) -> Errors:
    """Compares base plus adapter with the merge, tensor by tensor."""
    errors = Errors()
    both = AdaptedCheckpoint(base, adapter)
    for name, merged, start in _pairs(merger, assembly, base, report):
        errors.add(name, merged, start, both.tensor(name).float() - start)
    return errors


def _pairs(
    merger: Merger, assembly: Assembly, base: Model, report: Report | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each tensor's name, merged and base values in float32."""
    total = len(assembly.parts)
    for done, pending in enumerate(merger.stream(assembly)):
        if report is not None:
            report(done, total)
        merged = pending.tensor()
        if merged.is_floating_point():
            yield pending.name, merged.float(), base.tensor(pending.name).float()
    if report is not None:
        report(total, total)


def _factored(
    merger: Merger,
    assembly: Assembly,
    base: Model,
    named: str,
    out: Path,
    rank: int,
    report: Report | None,
) -> LoraReport:
    """Factors of merge minus base by singular values."""
    kinds = _Kinds(base)
    errors, tensors = Errors(), dict[str, Tensor]()
    ranks: dict[str, int] = {}
    saved: list[str] = []
    transposed = False
    for name, merged, start in _pairs(merger, assembly, base, report):
        change = merged - start
        if not bool(change.any()):
            continue
        module, kind = kinds.of(name)
        if kind == "whole":
            tensors[PREFIX + name] = merged.contiguous()
            saved.append(module)
            errors.add(name, merged, start, change)
            continue
        if kind == "bias":
            tensors[f"{PREFIX}{module}.base_layer.bias"] = merged.contiguous()
            errors.add(name, merged, start, change)
            continue
        turned = kind in ("embedding", "transposed")
        transposed |= kind == "transposed"
        b, a, _ = low_rank(change.T.contiguous() if turned else change, rank)
        b, a = b.contiguous(), a.contiguous()
        ranks[module] = a.shape[0]
        if kind == "embedding":
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = a
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = b
            if kinds.tied_head:
                tensors[f"{PREFIX}{kinds.tied_head}.lora_A.weight"] = b.T.contiguous()
                tensors[f"{PREFIX}{kinds.tied_head}.lora_B.weight"] = a.T.contiguous()
                ranks[kinds.tied_head] = a.shape[0]
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        errors.add(name, merged, start, (b @ a).T if turned else b @ a)
    if not ranks:
        raise RecipeError.of(
            "--format lora", "a merge whose matrices are the base's", "one that changes some",
            "Export it with --format hf.",
        )  # fmt: skip
    biases = any(name.endswith(".base_layer.bias") for name in tensors)
    config = _config(named, ranks, sorted(set(saved)), biases, transposed)
    _write_json(out / CONFIG, config)
    save_file(tensors, str(out / SAFETENSORS), metadata={"format": "pt"})
    low, high = min(ranks.values()), max(ranks.values())
    return LoraReport(False, len(ranks), len(saved), (low, high), errors)


class _Kinds:
    """What kind of module each tensor of a model belongs to, by the model's own code."""

    def __init__(self, model: Model) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model.path)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        self._modules: dict[str, nn.Module] = dict(skeleton.named_modules())
        self._ref = model.ref
        tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
        head = skeleton.get_output_embeddings()
        names = {module: name for name, module in self._modules.items()}
        self._embedding = names.get(skeleton.get_input_embeddings(), "")
        self.tied_head = names.get(head, "") if tied and head is not None else ""
        self._prefix = skeleton.base_model_prefix

    def of(self, name: str) -> tuple[str, str]:
        """The module of a tensor, and how its change can be said.

        That is `linear`, `transposed` (GPT-2's layers), `embedding`, `bias` of a layer with
        factors, or `whole`.

        Raises:
            RecipeError: for a tensor that is no parameter of a module of the model.
        """
        module, _, parameter = name.rpartition(".")
        found = self._modules.get(module)
        if found is None:  # GPT-2's files lack the first part
            module = f"{self._prefix}.{module}"
            found = self._modules.get(module)
        if found is None or parameter not in dict(found.named_parameters(recurse=False)):
            raise RecipeError.of(
                "--format lora", f"{name} of {self._ref}, which belongs to no single layer",
                "changes of layers and embeddings only", "Export it with --format hf.",
            )  # fmt: skip
        if parameter == "weight" and type(found).__name__ == "Conv1D":
            return module, "transposed"
        if isinstance(found, nn.Linear):
            return module, "linear" if parameter == "weight" else "bias"
        if isinstance(found, nn.Embedding) and (module == self._embedding or not self.tied_head):
            return module, "embedding"
        return module, "whole"


def _config(
    base: str, ranks: Mapping[str, int], saved: list[str], biases: bool, transposed: bool
) -> dict[str, Any]:
    """The adapter_config.json of factors whose scale is 1 in every module."""
    most = max(ranks.values())
    lower = [module for module, rank in ranks.items() if rank != most]
    # A key also matches names that end with it, so those need a key too, and an earlier one.
    keyed = [m for m in ranks if m in lower or any(m.endswith(f".{k}") for k in lower)]
    pattern = {module: ranks[module] for module in sorted(keyed, key=len, reverse=True)}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "inference_mode": True, "r": most, "lora_alpha": most, "rank_pattern": pattern,
        "alpha_pattern": pattern, "use_rslora": False, "fan_in_fan_out": transposed,
        "target_modules": sorted(ranks), "lora_dropout": 0.0,
        "bias": "lora_only" if biases else "none", "modules_to_save": saved or None,
        "init_lora_weights": True,
    }  # fmt: skip


def _rebase(file: Path, base: str) -> None:
    """Names the base that the study used, whatever the adapters were trained on."""
    config = json.loads(file.read_text(encoding="utf-8"))
    _write_json(file, {**config, "base_model_name_or_path": base, "revision": None})


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
