"""How far a merge lies from its base where it matters: Fisher information times squared change.

    distance = sum_p F_p (theta_p - base_p)^2
    F_p = mean over items of (d log p(gold | prompt) / d theta_p)^2

with the base's (diagonal, empirical) Fisher information F on right answers. A merge that adds
c_i times the task vector v_i of each source i to a layer group g needs no pass over the weights:

    distance = sum_g c_g' G_g c_g,  G_g[i, j] = sum of F_p v_ip v_jp over the parameters p of g

Source of the measure: MM-MO (arXiv 2407.00487); the quadratic form is ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge import operators
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.engines.tokens import Codec
from evomerge.engines.weights import WeightWriter
from evomerge.errors import EvomergeError
from evomerge.kernels.plans import divisor
from evomerge.operators.parameters import Parameter
from evomerge.recipe import Recipe, Scalar, resolve
from evomerge.spaces.merge_space import MergeSpace
from evomerge.types import FloatArray, Task

_METHODS = frozenset(
    (
        "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear",
        "breadcrumbs", "breadcrumbs_ties",
    )
)  # fmt: skip
_FORMAT = 1
_CHUNK = 1 << 20

Pair = tuple[str, str]
"""A prompt and its right answer."""


@dataclass(frozen=True)
class FisherGram:
    """Inner products of the task vectors, weighted by the base's Fisher information.

    Attributes:
        key: hash of what they were made of: models, layer groups, prompts and answers.
        groups: names of the layer groups.
        tensors: one tensor of each group, which its settings are read by.
        matrices: a `groups x sources x sources` array.
    """

    key: str
    groups: tuple[str, ...]
    tensors: tuple[str, ...]
    matrices: FloatArray

    def distance(self, coefficients: FloatArray) -> float:
        """Distance from the base of a merge with these `groups x sources` coefficients."""
        c = np.asarray(coefficients, dtype=np.float64)
        return max(0.0, float(np.einsum("gi,gij,gj->", c, self.matrices, c)))

    def save(self, path: Path) -> None:
        """Writes a JSON file, whole or not at all.

        Raises:
            EvomergeError: if the disk is full or fails.
        """
        body = self._body()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps({**body, "digest": _hash(body)}), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EvomergeError(f"{path} could not be written: {error}") from error

    @classmethod
    def load(cls, path: Path, key: str) -> FisherGram | None:
        """Reads what `save` wrote; None if it is not there, damaged, or made of other things."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            digest = body.pop("digest")
            if digest != _hash(body) or body["key"] != key:
                return None
            matrices = np.array(body["matrices"], dtype=np.float64)
            return cls(key, tuple(body["groups"]), tuple(body["tensors"]), matrices)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _body(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "groups": list(self.groups),
            "tensors": list(self.tensors),
            "matrices": self.matrices.tolist(),
        }


def gold_pairs(task: Task, limit: int) -> list[Pair]:
    """Prompts and right answers of the first `limit` search items that have one."""
    found = [(task.prompt(item), item.gold) for item in task.items("search") if item.gold]
    return found[:limit]


def fisher_distance(
    space: object,
    merger: Merger,
    pairs: Sequence[Pair],
    limit: int = 32,
    cache: Path | None = None,
) -> Callable[[FloatArray], float] | None:
    """The distance of a genome's merge from the base; see the module.

    Exact for task arithmetic. For operators that thin task vectors it takes these as whole,
    scaled by what thinning does to their mean: by the density, or not at all where dropping is
    made up for by rescaling; conflicts of sign are not seen. `normalize` divides by the sum of
    the weights.

    Args:
        space: what is searched.
        merger: holds the open models.
        pairs: prompts and right answers.
        limit: most pairs that are looked at.
        cache: JSON file in which the matrices are kept, and which is computed again only if
            models, groups or pairs are other ones.

    Returns:
        None where the space is not a `MergeSpace` of an operator that adds task vectors, and
        where there are no pairs.

    Raises:
        CandidateError: if the base's weights are not finite.
        ConfigError: if a pair is longer than the model allows.
        TaskError: if an answer has no token.
        EvomergeError: if the base's log-likelihood of an answer is not finite.
    """
    if not isinstance(space, MergeSpace) or space.method not in _METHODS or not pairs:
        return None
    pairs = list(pairs)[:limit]
    models = [merger.checkpoint(ref) for ref in (str(space.base), *space.sources.values())]
    groups = {name: tuple(patterns) for name, patterns in space.groups.items()}
    key = _hash([_FORMAT, [m.fingerprint for m in models], list(groups.items()), pairs])
    gram = FisherGram.load(cache, key) if cache else None
    if gram is None:
        gram = _measure(models[0], models[1:], groups, pairs, key)
        if cache:
            gram.save(cache)
    found = gram

    def distance(genome: FloatArray) -> float:
        recipe = space.decode(genome)
        return found.distance(np.array([_coefficients(recipe, t) for t in found.tensors]))

    return distance


def _coefficients(recipe: Recipe, tensor: str) -> list[float]:
    """What each source's task vector is multiplied by, for one tensor."""
    operator = operators.get(recipe.method)

    def value(name: str, own: Mapping[str, Any] | None = None) -> Scalar | None:
        for settings in (own or {}, recipe.parameters):
            if name in settings:
                found = resolve(settings[name], tensor)
                if found is not None:
                    return found
        parameter = operator.parameters.get(name)
        if isinstance(parameter, Parameter) and parameter.per_source:
            return parameter.default
        return operator.defaults.get(name)

    weights = [float(value("weight", s.parameters) or 0.0) for s in recipe.sources]
    scale = float(value("lambda") or 0.0) / (divisor(weights) if value("normalize") else 1.0)
    density = operator.parameters["density"]
    if isinstance(density, Parameter) and density.inert:
        return [scale * w for w in weights]
    kept = [float(value("density", s.parameters) or 0.0) for s in recipe.sources]
    if value("rescale"):
        kept = [float(k > 0) for k in kept]
    return [scale * w * k for w, k in zip(weights, kept, strict=True)]


def _measure(
    base: Model,
    sources: Sequence[Model],
    groups: Mapping[str, Sequence[str | None]],
    pairs: Sequence[Pair],
    key: str,
) -> FisherGram:
    """Computes the matrices; memory: three times the base's parameters in float32."""
    information = diagonal_fisher(base, pairs)
    matrices = {group: np.zeros((len(sources), len(sources))) for group in groups}
    tensors: dict[str, str] = {}
    for name in base.names:
        if name not in information:
            continue
        group = _group_of(name, groups)
        tensors.setdefault(group, name)
        matrices[group] += _weighted(name, information.pop(name), base, sources)
    present = [group for group in groups if group in tensors]
    stacked = np.stack([matrices[group] for group in present])
    if not np.isfinite(stacked).all():
        raise EvomergeError("the Fisher information of the base is not finite")
    return FisherGram(key, tuple(present), tuple(tensors[g] for g in present), stacked)


def diagonal_fisher(base: Model, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Mean over pairs of the squared gradient of log p(answer | prompt), tensor by tensor.

    In float32, on one thread of the CPU, one pair after the other; a gradient is squared and
    freed as soon as it is there. Prompt and answer are tokenised as by the engines. A tied
    parameter is given once, with the gradient of all its uses, by its name in the checkpoint.

    Raises:
        As `fisher_distance`.
    """
    codec = Codec(base.path)
    encoded = [codec.pair(prompt, gold, i) for i, (prompt, gold) in enumerate(pairs)]
    with _one_thread():
        model = _load(base)
        sums = {id(p): torch.zeros_like(p) for p in model.parameters()}

        def square(parameter: Any) -> None:
            sums[id(parameter)].addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        for parameter in model.parameters():
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(square)
        for i, (ids, start) in enumerate(encoded):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits[start - 1 : -1].float(), dim=-1)
            answer = logprobs.gather(1, torch.tensor(ids[start:])[:, None]).sum()
            if not torch.isfinite(answer):
                raise EvomergeError(f"the base's log-likelihood of right answer {i} is {answer}")
            answer.backward()
    named = dict(model.named_parameters(remove_duplicate=False))
    out = {}
    for name in base.names:
        total = sums.pop(id(named.get(name)), None)
        if total is not None:
            out[name] = total.div_(len(encoded))
    return out


def _load(base: Model) -> Any:
    """The base as a torch model in float32, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(base.path), trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):  # the weights that are overwritten are random
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    WeightWriter(model).write((name, base.tensor(name)) for name in base.names)
    return model.eval()


def _weighted(
    name: str, information: torch.Tensor, base: Model, sources: Sequence[Model]
) -> FloatArray:
    """Inner products of one tensor's changes, a `sources x sources` array, in float64.

    Only the leading rows that all models have count, where vocabularies are padded.
    """
    flat, origin = information.reshape(-1), base.tensor(name).reshape(-1)
    others = [s.tensor(name).reshape(-1) for s in sources]
    size = min(map(len, (flat, *others)))
    total = np.zeros((len(sources), len(sources)))
    for start in range(0, size, _CHUNK):
        part = slice(start, min(start + _CHUNK, size))
        change = torch.stack([o[part].double() - origin[part].double() for o in others])
        total += ((change * flat[part].double()) @ change.T).numpy()
    return total


def _group_of(tensor: str, groups: Mapping[str, Sequence[str | None]]) -> str:
    """The layer group that picks a tensor, that of all others last."""
    for name, patterns in groups.items():
        if any(p is not None and p in tensor for p in patterns):
            return name
    return next(name for name, patterns in groups.items() if None in patterns)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
