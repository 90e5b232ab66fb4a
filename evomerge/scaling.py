"""A model of what a study takes: memory by kind, seconds a candidate, candidates a minute.

Formulas and their sources are in docs/scaling.md. GPU figures are computed from data sheets, not
measured. `python -m evomerge.scaling` prints the table of that page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 1e9
PROCESS = 0.3 * GB  # a worker without a model: Python, torch, libraries (0.22 measured)
WORKSPACE = 3.0 * GB  # of a GPU: CUDA's context, graphs, activations, logits (assumed)
BUFFERS = 16  # bytes of merge buffers for each element of the largest tensor, at most
SEQUENCES = 256  # that vLLM works on at once by default
LEAST_SEQUENCES = 16  # for which a worker's cache must have room, or it takes more GPUs


@dataclass(frozen=True)
class Shape:
    """What counts of a model.

    Attributes:
        name: to be shown.
        parameters: how many.
        layers: transformer blocks.
        kv_heads: heads of keys and values.
        head: their width.
        largest: elements of the largest tensor.
        value: bytes of a weight, and of a value in the cache.
    """

    name: str
    parameters: int
    layers: int
    kv_heads: int
    head: int
    largest: int
    value: int = 2

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.value

    @property
    def kv(self) -> int:
        """Bytes of keys and values for one token: two a layer."""
        return 2 * self.layers * self.kv_heads * self.head * self.value

    @classmethod
    def of_config(cls, name: str, config: Mapping[str, Any], value: int = 2) -> Shape:
        """From a `config.json` of the Llama family (Llama, Mistral, Qwen2)."""
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or hidden // heads
        vocabulary = config["vocab_size"] * hidden
        mlp = hidden * config["intermediate_size"]
        attention = 2 * hidden * head * (heads + kv_heads)
        embeddings = 1 if config.get("tie_word_embeddings", False) else 2
        bias = head * (heads + 2 * kv_heads) if config.get("attention_bias") else 0
        block = attention + 3 * mlp + 2 * hidden + bias
        count = embeddings * vocabulary + layers * block + hidden
        return cls(name, count, layers, kv_heads, head, max(vocabulary, mlp), value)


@dataclass(frozen=True)
class Device:
    """A GPU, and what a node offers it. Bytes, bytes a second, operations a second.

    Attributes:
        name: to be shown.
        memory: of one GPU.
        bandwidth: of its memory.
        operations: on 16-bit matrices, dense.
        link: from the host's page cache to one GPU while all GPUs of the node read.
    """

    name: str
    memory: float
    bandwidth: float
    operations: float
    link: float


H100 = Device("H100 80 GB", 80 * GB, 3.35e12, 989e12, 25 * GB)
"""Data sheet; the link is a share of the host's memory bandwidth, below PCIe 5's 64 GB/s."""

STEP = 3e-3  # seconds of a decoding step beside the GPU's work (assumed)
REACHED = 0.6, 0.4  # shares of bandwidth and operations that engines reach (assumed)
PASSES = 2.0  # passes over what is read and written that a merge costs on a GPU (assumed)


@dataclass(frozen=True)
class Load:
    """What a candidate means.

    Attributes:
        models: that are merged, the base included.
        items: that it answers.
        prompt: tokens of a prompt.
        answer: tokens of an answer.
        loglik: whether right answers are scored as well.
        share: of a GPU's memory that the engine takes (vLLM's `gpu_memory_utilization`).
    """

    models: int = 4
    items: int = 150
    prompt: int = 200
    answer: int = 300
    loglik: bool = True
    share: float = 0.9


@dataclass(frozen=True)
class Need:
    """Bytes, seconds and rates of a study on GPUs.

    Attributes:
        gpus: of a worker (its tensor parallel size).
        workers: in all; 0 if not one fits.
        weights: bytes of weights on each GPU.
        cache: bytes of the KV cache on each GPU.
        sequences: answered at once by a worker.
        page_cache: bytes of sources in the page cache of each node.
        host: bytes of processes and merge buffers on each node.
        merge: seconds to bring a candidate's weights in place.
        answers: seconds to answer and score its items.
    """

    gpus: int
    workers: int
    weights: float
    cache: float
    sequences: int
    page_cache: float
    host: float
    merge: float
    answers: float

    @property
    def per_minute(self) -> float:
        """Candidates a minute, if no worker ever waits."""
        return 60 * self.workers / (self.merge + self.answers)


def cpu_worker(engine: float, largest: int, held: float = 0.0) -> float:
    """Bytes that a worker on the CPU takes beside the page cache, at most.

    An engine may hold its weights twice while they are prepared (vLLM packs matrices); a merge
    has buffers of four bytes for up to four copies of the largest tensor.

    Args:
        engine: bytes of the engine's model.
        largest: elements of the largest tensor.
        held: bytes of merges that are kept, since they are sources.
    """
    return PROCESS + 2 * engine + BUFFERS * largest + held


def estimate(shape: Shape, load: Load, device: Device, gpus: int, nodes: int = 1) -> Need:
    """What a study takes on `nodes` nodes of `gpus` GPUs each."""
    size = 1
    while size < gpus and not _fits(shape, load, device, size):
        size *= 2
    workers = nodes * (gpus // size) if _fits(shape, load, device, size) else 0
    cache = max(0.0, load.share * device.memory - shape.weights / size - WORKSPACE)
    length = load.prompt + load.answer
    room = int(cache * size / (shape.kv * length))
    sequences = max(1, min(load.items, room, SEQUENCES))
    per_node = max(1, gpus // size)
    return Need(
        size, workers, shape.weights / size, cache, sequences, load.models * shape.weights,
        per_node * size * (PROCESS + 2 * shape.largest * shape.value),
        _merge_seconds(shape, load, device), _answer_seconds(shape, load, device, size, sequences),
    )  # fmt: skip


def _fits(shape: Shape, load: Load, device: Device, size: int) -> bool:
    least = LEAST_SEQUENCES * (load.prompt + load.answer) * shape.kv
    buffers = BUFFERS * shape.largest  # outside of the engine's share
    inside = (shape.weights + least) / size + WORKSPACE <= load.share * device.memory
    return inside and buffers <= (1 - load.share) * device.memory


def _merge_seconds(shape: Shape, load: Load, device: Device) -> float:
    """Each GPU of a worker reads all sources that it does not keep, and merges whole tensors."""
    kept = (1 - load.share) * device.memory / 2  # as `checkpoints.resident` does
    read = max(0.0, load.models * shape.weights - kept)
    moved = (load.models + 1) * shape.weights
    return read / device.link + PASSES * moved / (REACHED[0] * device.bandwidth)


def _answer_seconds(shape: Shape, load: Load, device: Device, size: int, sequences: int) -> float:
    bandwidth, operations = REACHED[0] * device.bandwidth * size, REACHED[1] * device.operations
    operations *= size
    read = shape.weights + sequences * shape.kv * (load.prompt + load.answer / 2)
    step = max(read / bandwidth, 2 * shape.parameters * sequences / operations)
    steps = load.answer * math.ceil(load.items / sequences)
    texts = load.prompt + ((load.prompt + load.answer) if load.loglik else 0)
    return steps * (step + STEP) + 2 * shape.parameters * load.items * texts / operations


# -- the table --------------------------------------------------------------------------------

MACHINES = (("1 GPU", 1, 1), ("1 node of 8", 8, 1), ("16 nodes of 8", 8, 16))
FIGURES = (
    "GPUs a worker", "workers", "weights a GPU, GB", "cache a GPU, GB", "at once",
    "page cache a node, GB", "merge, s", "answers, s", "candidates/min", "1000 candidates, h",
)  # fmt: skip
"""What is said of a model on a machine."""

_LLAMA = {"vocab_size": 32000}
MODELS: dict[str, dict[str, Any]] = {
    "1.5B (Qwen2.5)": {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
        "tie_word_embeddings": True, "attention_bias": True,
    },
    "7B (Mistral)": _LLAMA | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336,
    },
    "13B (Llama 2)": _LLAMA | {
        "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
        "intermediate_size": 13824,
    },
    "70B (Llama 2)": _LLAMA | {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672,
    },
}  # fmt: skip
"""Published configurations, as far as they count."""


def table(shapes: Sequence[Shape], load: Load, device: Device = H100) -> str:
    """Markdown: each model on each kind of machine."""
    rows: list[tuple[str, ...]] = [("model", "machine", *FIGURES)]
    for shape in shapes:
        for name, gpus, nodes in MACHINES:
            rows.append((shape.name, name, *figures(estimate(shape, load, device, gpus, nodes))))
    head, *lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---|---|" + "---:|" * len(FIGURES), *lines])


def figures(need: Need) -> tuple[str, ...]:
    """The values of `FIGURES`; the first says it where not one worker fits, the others nothing."""
    if not need.workers:
        return ("does not fit", *[""] * (len(FIGURES) - 1))
    rate = need.per_minute
    return (
        str(need.gpus), str(need.workers), f"{need.weights / GB:.1f}", f"{need.cache / GB:.1f}",
        str(need.sequences), f"{need.page_cache / GB:.1f}", _short(need.merge),
        _short(need.answers), _short(rate), _short(1000 / 60 / rate),
    )  # fmt: skip


def _short(value: float) -> str:
    """Two figures, whole numbers from 10 on."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    print(table([Shape.of_config(name, config) for name, config in MODELS.items()], Load()))
