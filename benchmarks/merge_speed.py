"""How fast a candidate's weights are made, as multiples of copying the bytes it touches.

    python benchmarks/merge_speed.py                          a CPU, 2 threads
    python benchmarks/merge_speed.py --mergekit PYTHON        and mergekit beside it
    python benchmarks/merge_speed.py --memory                 and the peak memory with 16 sources
    python benchmarks/merge_speed.py --device cuda            a GPU; needs torch, safetensors, numpy
    python benchmarks/merge_speed.py --device cuda --streaming   and sources in the host's memory

A Llama of 297 M parameters, a base and three sources in bfloat16, random but alike. Every
operator is timed between two copies, in one process; the table has medians. The last line is
one JSON object with the same figures.

A GPU gets the shapes of Llama 3 8B instead, with as many of its 32 blocks as its memory has room
for, made on the device (`--small` for the other). There the yardstick is the bandwidth of the
largest copy that it makes: the share of it is what the merge reads and writes over its time.
With `--streaming` the sources lie in pinned memory of the host, and the yardstick is the
bandwidth of copying from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])
_THREADS = next((a.split("=")[1] for a in sys.argv if a.startswith("--threads=")), "2")
os.environ.setdefault("OMP_NUM_THREADS", _THREADS)

import torch  # noqa: E402
from merge_speed_device import Tensors, on_a_device, timed  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from evomerge import operators  # noqa: E402
from evomerge.checkpoints.resident import Resident, Wanted  # noqa: E402
from evomerge.kernels.compiled_loops import compiled_loops  # noqa: E402
from evomerge.kernels.loops import native_available  # noqa: E402
from evomerge.kernels.masks import MaskKey  # noqa: E402
from evomerge.kernels.tensor_merge import TensorMerge  # noqa: E402
from evomerge.kernels.view import View  # noqa: E402
from evomerge.kernels.weight import Stored  # noqa: E402

VOCABULARY, HIDDEN, INNER, BLOCKS = 32000, 1024, 2816, 18
LARGE = (128256, 4096, 14336, 32, 1024)
TARGETS = {
    "linear": 3, "task_arithmetic": 3, "slerp": 4, "nuslerp": 4, "dare_linear": 6, "dare_ties": 6,
    "ties": 6, "della": 8, "della_linear": 8, "breadcrumbs": 8, "breadcrumbs_ties": 8,
}  # fmt: skip
OTHERS = ("multislerp", "karcher", "model_stock", "sce", "nearswap", "arcee_fusion", "ram",
          "ramplus_tl", "passthrough")  # fmt: skip
FASTER = {"linear": 4, "ties": 40, "dare_ties": 10}


def shapes(
    vocabulary: int = VOCABULARY,
    hidden: int = HIDDEN,
    inner: int = INNER,
    blocks: int = BLOCKS,
    keys: int = HIDDEN,
) -> dict[str, tuple[int, ...]]:
    """Tensors of the model, named as in Llama; `keys` rows for keys and for values."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(blocks):
        at = f"model.layers.{i}"
        for name in "qkvo":
            rows = keys if name in "kv" else hidden
            out[f"{at}.self_attn.{name}_proj.weight"] = (rows, hidden)
        out[f"{at}.mlp.gate_proj.weight"] = (inner, hidden)
        out[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        out[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        out[f"{at}.input_layernorm.weight"] = (hidden,)
        out[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    out["model.norm.weight"] = (hidden,)
    out["lm_head.weight"] = (vocabulary, hidden)
    return out


def write_models(folder: Path, count: int = 4) -> list[Path]:
    """A base and sources near it, unless they are there."""
    paths = [folder / f"model{i}" for i in range(count)]
    for i, path in enumerate(paths):
        if (path / "config.json").is_file():
            continue
        print(f"making {path.name}", file=sys.stderr)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for k, (name, shape) in enumerate(shapes().items()):
            base = torch.randn(shape, generator=torch.Generator().manual_seed(k)) * 0.02
            if i:
                noise = torch.Generator().manual_seed(1000 * i + k)
                base += torch.randn(shape, generator=noise) * 0.002
            tensors[name] = base.to(torch.bfloat16)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": BLOCKS, "num_attention_heads": 16, "num_key_value_heads": 16,
            "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        }  # fmt: skip
        (path / "config.json").write_text(json.dumps(config))
    return paths


def arguments(name: str, count: int) -> dict[str, object]:
    """Settings of an operator as a search would use them."""
    operator = operators.get(name)
    given: dict[str, object] = {}
    if "weight" in operator.parameters:
        given["weight"] = [0.5, 0.3, 0.4, *[0.1] * count][:count]
    if "density" in operator.parameters:
        given["density"] = [0.5, 0.7, 0.3, *[0.6] * count][:count]
    for key, value in {"gamma": 0.01, "epsilon": 0.15}.items():
        if key in operator.parameters and getattr(operator.parameters[key], "per_source", False):
            given[key] = [value] * count
    if "t" in operator.parameters:
        given["t"] = 0.3 if name == "slerp" else 0.001
    if name == "passthrough":
        given["scale"] = [0.9]
    if name == "sce":
        given["select_topk"] = 0.5
    return given


class Remembered:
    """Statistics in memory, as a worker has them after its first candidate."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, tuple[str, ...]], object] = {}

    def recall(self, kind, members, compute):
        """See `evomerge.kernels.view.Memory`."""
        key = (kind, members)
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


def read_models(paths: list[Path], device: torch.device) -> list[Tensors]:
    """The base and the sources, mapped or brought to the device."""
    files = [safe_open(str(p / "model.safetensors"), "pt") for p in paths]
    return [{n: f.get_tensor(n).to(device) for n in shapes()} for f in files]


def make_models(device: torch.device, count: int = 4) -> list[Tensors]:
    """The same of large tensors, of as many blocks as 5 models have room for."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 << 30
    vocabulary, hidden, inner, blocks, keys = LARGE
    while blocks > 1:
        made = shapes(vocabulary, hidden, inner, blocks, keys)
        if sum(torch.Size(s).numel() for s in made.values()) * 2 * (count + 1) < 0.7 * free:
            break
        blocks -= 1
    rng = torch.Generator(device).manual_seed(0)

    def noise(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=rng, device=device, dtype=torch.bfloat16) * scale

    made = shapes(vocabulary, hidden, inner, blocks, keys)
    base = {n: noise(s, 0.02) for n, s in made.items()}
    return [base] + [
        {n: t + noise(tuple(t.shape), 0.002) for n, t in base.items()} for _ in range(1, count)
    ]


class Model:
    """Sources and a model in place, on one device."""

    def __init__(self, sources: list[Tensors], device: torch.device, threads: int) -> None:
        self.device = device
        self.sources = sources
        self.names = list(sources[0])
        self.out = {n: torch.empty_like(t, device=device) for n, t in sources[0].items()}
        self.parameters = sum(t.numel() for t in self.out.values())
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.memory = Remembered()

    def merge(self, name: str, resident: Resident | None = None) -> tuple[Callable[[], None], int]:
        """A call that makes one candidate in place, and how many models it reads."""
        operator = operators.get(name)
        most = operator.most_sources
        count = min(len(self.sources) - 1, most or 99)
        given = arguments(name, count)
        has_base = operator.takes_base == "required"
        used = range(0 if has_base else 1, count + 1)

        def groups() -> Iterator[list[Wanted]]:
            for tensor in self.names:
                yield [Wanted(Stored(self.sources[i][tensor]), f"{i}:{tensor}") for i in used]

        def run() -> None:
            there = groups() if resident is None else resident.load(groups())
            bad = []
            for tensor in self.names:
                group = next(there)
                names = [one.key for one in group]
                weights = [one.weight for one in group]
                del group
                base = weights.pop(0) if has_base else None
                keys = [MaskKey(0, str(i), tensor) for i in range(count)]
                view = View(base, weights, keys, names, self.memory, self.pool)
                merge = TensorMerge(view, operator.function(view, **given))
                bad.append(merge.begin(self.out[tensor]))
                del base, weights, view, merge
            self.wait()
            if sum(int(b) for b in torch.stack([torch.as_tensor(b) for b in bad]).cpu()):
                raise SystemExit(f"{name} gave values that are not finite")

        return run, count + has_base

    def copy(self, models: int) -> None:
        """Moves as many bytes as a merge of so many models reads and writes."""
        whole, half = divmod(models + 1, 2)

        def one(tensor: str) -> None:
            target = self.out[tensor].view(-1)
            for source in self.sources[:whole]:
                target.copy_(source[tensor].view(-1))
            if half:
                n = target.numel() // 2
                target[:n].copy_(self.sources[-1][tensor].view(-1)[:n])

        if self.pool is None or self.device.type != "cpu":
            for tensor in self.names:
                one(tensor)
        else:
            list(self.pool.map(one, self.names))
        self.wait()

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(model: Model, names: list[str], repeats: int) -> list[dict[str, object]]:
    rows = []
    for name in names:
        run, models = model.merge(name)
        first = timed(run)  # gathers statistics, compiles
        model.copy(models)
        took, copies = [], []
        for _ in range(repeats):
            copies.append(timed(lambda m=models: model.copy(m)))
            took.append(timed(run))
        ratio = statistics.median(t / c for t, c in zip(took, copies, strict=True))
        row = {
            "operator": name, "seconds": statistics.median(took), "first": first,
            "copy": statistics.median(copies), "ratio": ratio, "target": TARGETS.get(name),
        }  # fmt: skip
        rows.append(row)
        target = row["target"]
        print(
            f"{name:17} {row['seconds']:8.3f} s  first {first:7.3f} s  copy {row['copy']:6.3f} s"
            f"  ratio {ratio:6.2f}" + (f"  target {target}" if target else "")
            + ("  MISSED" if target and ratio > target else ""),
            flush=True,
        )  # fmt: skip
    return rows


_DRIVER = """
import json, shutil, sys, time, yaml, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    recipe, out = json.loads(line)
    shutil.rmtree(out, ignore_errors=True)
    config = MergeConfiguration.model_validate(yaml.safe_load(open(recipe)))
    begin, cpu = time.perf_counter(), time.process_time()
    run_merge(config, out, MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False))
    print(json.dumps([time.perf_counter() - begin, time.process_time() - cpu]), flush=True)
"""


def beside_mergekit(
    python: str, paths: list[Path], threads: int, rows: list[dict[str, object]], repeats: int
) -> list[dict[str, object]]:
    """Both programs write the same recipes as checkpoints, in turn."""
    from evomerge.checkpoints.merger import Merger
    from evomerge.checkpoints.writer import write_checkpoint
    from evomerge.recipe import Recipe

    folder = Path(tempfile.mkdtemp(prefix="merge-speed-"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    driver = subprocess.Popen(
        [python, "-c", _DRIVER, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    assert driver.stdin is not None and driver.stdout is not None
    in_place = {str(r["operator"]): r["seconds"] for r in rows}
    found = []
    merger = Merger(threads)
    for name, wanted in FASTER.items():
        keys = ("weight", "density")
        given = {k: v for k, v in arguments(name, 3).items() if k in keys}
        lines = [f"merge_method: {name}", "dtype: bfloat16", "models:"]
        if name != "linear":
            lines.insert(1, f"base_model: {paths[0]}")
        for i, path in enumerate(paths[1:]):
            own = ", ".join(f"{k}: {v[i]}" for k, v in given.items())  # type: ignore[index]
            lines.append(f"  - {{model: {path}, parameters: {{{own}}}}}")
        recipe = folder / f"{name}.yaml"
        recipe.write_text("\n".join(lines) + "\n")
        theirs, ours = [], []
        for i in range(repeats + 1):
            driver.stdin.write(json.dumps([str(recipe), str(folder / "theirs")]) + "\n")
            driver.stdin.flush()
            theirs.append(json.loads(driver.stdout.readline())[0])
            out = folder / f"ours-{i}"
            ours.append(
                timed(lambda r=recipe, o=out: write_checkpoint(Recipe.from_yaml(r), merger, o))
            )
            shutil.rmtree(out)
        row = {
            "operator": name, "mergekit": statistics.median(theirs[1:]),
            "written": statistics.median(ours[1:]), "in_place": in_place.get(name),
            "target": wanted,
        }  # fmt: skip
        row["times_written"] = row["mergekit"] / row["written"]
        row["times_in_place"] = row["mergekit"] / row["in_place"]
        found.append(row)
        print(
            f"{name:17} mergekit {row['mergekit']:7.2f} s  ours written {row['written']:6.2f} s "
            f"({row['times_written']:.1f} times faster)  in place {row['in_place']:6.3f} s "
            f"({row['times_in_place']:.1f} times)  target {wanted}",
            flush=True,
        )
    driver.stdin.close()
    driver.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return found


_MEMORY = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from evomerge.checkpoints.merger import Merger
from evomerge.recipe import Recipe, Source
name, count, paths = sys.argv[2], int(sys.argv[3]), sys.argv[4:]
def private():
    with open('/proc/self/smaps_rollup') as f:
        fields = dict(line.split(':', 1) for line in f if ':' in line)
    return int(fields['Anonymous'].split()[0]) * 1024
merger = Merger(2)
settings = {'weight': 0.1} | ({'density': 0.5} if name != 'linear' else {})
recipe = Recipe(name, tuple(Source(p, settings) for p in paths[1 : count + 1]),
                None if name == 'linear' else paths[0])
assembly = merger.assemble(recipe)
for ref in recipe.models():
    merger.checkpoint(ref).fingerprint
targets = {p.name: torch.zeros(p.shape, dtype=p.dtype) for p in assembly.parts}
start = peak = private()
stop = False
def watch():
    global peak
    while not stop:
        peak = max(peak, private())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
for _ in range(2):
    for pending in merger.stream(assembly):
        pending.write(targets[pending.name])
stop = True
thread.join()
print(max(peak, private()) - start)
"""


def memory(paths: list[Path]) -> list[dict[str, object]]:
    """Peak of anonymous memory beyond the model that is written to."""
    folder = Path(tempfile.mkdtemp(prefix="merge-memory-"))
    many = [paths[0]]
    for i in range(16):  # the same files under other names: their pages are not counted anyway
        (folder / f"source{i}").symlink_to(paths[1 + i % 3])
        many.append(folder / f"source{i}")
    rows = []
    for name in ("linear", "ties", "dare_ties", "della"):
        for count in (3, 16):
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, "-c", _MEMORY, str(Path(__file__).resolve().parent.parent),
                     name, str(count), *map(str, many)],
                    capture_output=True, text=True, check=True,
                    env={**os.environ, "EVOMERGE_CACHE": cache},
                )  # fmt: skip
            peak = int(done.stdout.split()[-1]) / 1e6
            rows.append({"operator": name, "sources": count, "peak_mb": peak})
            print(f"{name:17} {count:2} sources: {peak:6.1f} MB beyond the model", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="keeps the models (2.4 GB) for the next time")
    parser.add_argument("--mergekit", metavar="PYTHON", help="interpreter that has mergekit 0.1.5")
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--streaming", action="store_true", help="sources in the host's memory")
    parser.add_argument("--small", action="store_true", help="297 M parameters on a GPU, too")
    parser.add_argument("--only", nargs="*", help="operators to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="merge-speed-models-"))
    large = device.type == "cuda" and not options.small
    paths = [] if large else write_models(folder)
    sources = make_models(device) if large else read_models(paths, device)
    parameters = sum(t.numel() for t in sources[0].values())
    kind = f"{options.threads} threads"
    compiled = native_available()
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
        compiled = compiled_loops("cuda") is not None
    print(
        f"{parameters / 1e6:.0f} M parameters, 3 sources + base, bfloat16, {device}, {kind}, "
        f"torch {torch.__version__}, compiled loops: {compiled}"
    )
    names = options.only or [*TARGETS, *OTHERS]
    out: dict[str, object] = {"parameters": parameters, "device": str(device), "kind": kind}
    if device.type == "cuda" or options.streaming:
        out |= on_a_device(
            lambda s, d: Model(s, d, 1), sources, names, options.repeats, options.streaming, device
        )
    else:
        rows = measure(Model(sources, device, options.threads), names, options.repeats)
        out["operators"] = rows
    del sources
    if options.mergekit and "operators" in out:
        out["mergekit"] = beside_mergekit(options.mergekit, paths, options.threads, rows, 3)
    if options.memory and paths:
        out["memory"] = memory(paths)
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
