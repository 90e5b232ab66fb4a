"""What the study at hand takes, by the model of `scaling`: what `check` prints at its end."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evomerge import footprint, scaling
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.errors import UserError
from evomerge.fidelity import make_evaluation
from evomerge.scaling import GB, Load, Shape
from evomerge.setup import Config, make_goals, make_task, task_nodes
from evomerge.types import Task
from evomerge.workers import plan_workers

_PROMPTS = 200  # that are looked at for their length
_LETTERS = 4  # characters a token, where there is no tokenizer to ask


def described(config: Config) -> Iterator[str]:
    """Lines with the memory of this study and its speed on GPUs.

    Nothing where the base or the tasks cannot be read, which `check` says.
    """
    merger = Merger()
    try:
        base = merger.checkpoint(config["models"]["base"], "models.base")
        shape, load = shape_of(base), load_of(config, base)
        plan = plan_workers(config)
    except UserError:
        return
    engine = footprint.engine(config, merger, base)
    yield "what it takes (a model, see docs/scaling.md):"
    yield (
        f"  sources: {load.models} models, {_size(load.models * footprint.size(base))} in the page "
        "cache, once a node"
    )
    if not plan.gpus:
        held = footprint.held(config, merger)
        needed = scaling.cpu_worker(engine, shape.largest, held)
        who = "each worker" if plan.elastic else f"each of {plan.workers} worker(s)"
        yield (
            f"  {who} on the CPU: at most {_size(needed)}, of which "
            f"{_size(2 * engine)} engine, {_size(scaling.BUFFERS * shape.largest)} merge buffers"
        )
    yield from _at_work(config, plan.workers)
    yield (
        f"  {shape.name} parameters on {scaling.H100.name} GPUs, {load.items} items a candidate, "
        "not measured:"
    )
    yield from _on_gpus(shape, load)


def shape_of(model: Model) -> Shape:
    """What counts of a model that is there."""
    config = model.config.get("text_config", model.config)
    heads = int(config.get("num_attention_heads") or 1)
    hidden = int(config.get("hidden_size") or 0)
    parameters = max(1, sum(map(math.prod, model.shapes.values())))
    return Shape(
        f"{parameters / 1e9:.2g}B" if parameters >= 1e8 else f"{parameters / 1e6:.2g}M",
        parameters,
        model.layout.blocks,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or hidden // heads or 1),
        footprint.largest(model),
        max(1, round(footprint.size(model) / parameters)),
    )


def load_of(config: Config, base: Model) -> Load:
    """What each candidate of a study means.

    Raises:
        UserError: if a task cannot be built.
    """
    tasks = tuple(make_task(node, field) for field, node in task_nodes(config).items())
    goals = make_goals(config)
    _, _, plans = make_evaluation(config, tasks, goals)
    counts = [len(plans[task.name].choose(0)) for task in tasks]
    total = sum(counts)
    prompts = [_prompt_tokens(task, base) for task in tasks]
    answers = [task.sampling.max_new_tokens for task in tasks]
    mean = [
        sum(c * x for c, x in zip(counts, xs, strict=True)) / total for xs in (prompts, answers)
    ]
    return Load(
        models=1 + len(config["models"]["sources"]),
        items=total,
        prompt=max(1, round(mean[0])),
        answer=max(1, round(mean[1])),
        loglik=any(t.loglik_weight or goals.wants_loglik(t.name) for t in tasks),
        share=float(config["engine"]["args"].get("gpu_memory_utilization", 0.9)),
    )


def _on_gpus(shape: Shape, load: Load) -> Iterator[str]:
    """What `scaling` says of a model, a column for each kind of machine."""
    names = [name for name, _, _ in scaling.MACHINES]
    needs = [
        scaling.estimate(shape, load, scaling.H100, gpus, nodes)
        for _, gpus, nodes in scaling.MACHINES
    ]
    left = max(map(len, scaling.FIGURES))
    width = max(map(len, names)) + 2
    columns = map(scaling.figures, needs)
    for title, *cells in [("", *names), *zip(scaling.FIGURES, *columns, strict=True)]:
        yield f"    {title:{left}}" + "".join(f"{cell:>{width}}" for cell in cells)


def _at_work(config: Config, workers: int) -> Iterator[str]:
    """A note where the optimiser has less to do at a time than there are workers."""
    for key in ("batch", "population", "particles"):
        count = config["optimizer"].get(key)
        if isinstance(count, int) and count < workers:
            yield (
                f"  note: optimizer.{key}={count} keeps {count} candidates at work, so "
                f"{workers - count} of {workers} workers are idle"
            )


def _prompt_tokens(task: Task, base: Model) -> float:
    """Mean length of the first prompts of a task's search items."""
    texts = [task.prompt(item) for item in task.items("search")[:_PROMPTS]]
    tokenizer = base.tokenizer()
    if tokenizer is None:
        return sum(map(len, texts)) / len(texts) / _LETTERS
    return sum(len(e.ids) for e in tokenizer.encode_batch(texts)) / len(texts)


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.1f} MB"
