"""The `merge` verb: from a recipe file to a checkpoint or an adapter, or to a preview."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evomerge.checkpoints.checking import idle_parameters
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.preview import cost, plan_lines
from evomerge.checkpoints.whole_folder import check_free
from evomerge.checkpoints.writer import (
    SHARD_BYTES,
    check_room,
    existing_folder,
    output_bytes,
    write_checkpoint,
)
from evomerge.errors import ConfigError, Problem, SourceError
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.recipe.bundle import bundled

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

EPILOG = """\
RECIPE is mergekit YAML (models, slices, modules, gradients, filters, tokenizer_source, dtype,
out_dtype, model+adapter), or one with evomerge's own keys: nested recipes, scope, route, pieces.

examples:
  python -m evomerge merge recipe.yaml merged            write the merge
  python -m evomerge merge recipe.yaml --dry-run         what it would read, make and cost
  python -m evomerge merge adapters.yaml out --as-adapter --rank 16
"""


def merge_command(arguments: Sequence[str]) -> int:
    """Runs the verb with its arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.rank is not None and not options.as_adapter:
        raise ConfigError.of(
            "--rank", "it without --as-adapter", "both or neither, as models have no rank",
            "Add --as-adapter, or leave --rank out.",
        )  # fmt: skip
    recipe = Recipe.from_yaml(options.recipe)
    if options.out is None and not options.dry_run:
        raise ConfigError.of(
            "OUT", "nothing", "a directory to write", "Name one, or add --dry-run."
        )
    if options.out is not None:
        check_free(options.out)
    if options.as_adapter:
        return _adapter(recipe, options)
    merger = Merger(options.threads, options.allow_pickled)
    if options.dry_run:
        _preview(recipe, merger, options)
        return 0
    with Progress() as progress:
        assembly = merger.assemble(recipe)
        for note in assembly.notes:
            progress.say(f"note: {note}")
        check_room(options.out, output_bytes(assembly))
        if not options.trust_sources:
            _check_values(recipe, merger, progress)
        text, files = bundled(recipe, merger.identities)
        write_checkpoint(
            recipe, merger, options.out, {**files, "recipe.yaml": text}, options.shard_size,
            reporter(progress), assembly,
        )  # fmt: skip
    print(f"{options.out}  {text.splitlines()[0].lstrip('# ')}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evomerge merge",
        description="Writes the merge of a recipe as an ordinary checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what to merge")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT",
                        help="directory to write; must not exist")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost only")
    parser.add_argument("--threads", type=positive, help="threads to use (default: torch's number)")
    parser.add_argument("--shard-size", type=size_in_bytes, default=SHARD_BYTES, metavar="SIZE",
                        help="largest weight file, such as 5G (default) or 500M")  # fmt: skip
    parser.add_argument("--allow-pickled", action="store_true",
                        help="read .bin weights, too, by torch's weights-only loader")  # fmt: skip
    parser.add_argument("--trust-sources", action="store_true",
                        help="do not look for NaN and infinity in the models first")  # fmt: skip
    parser.add_argument("--as-adapter", action="store_true",
                        help="the models are LoRA adapters, and so is the result")  # fmt: skip
    parser.add_argument("--rank", type=positive, help="of the merged adapter (default: that of an "
                        "exact sum; other operators: the models' largest)")  # fmt: skip
    return parser


def _adapter(recipe: Recipe, options: argparse.Namespace) -> int:
    from evomerge.checkpoints.adapter_recipe import write_adapter

    if options.dry_run:
        raise ConfigError.of(
            "--dry-run", "it beside --as-adapter", "one of the two", "Leave --dry-run out."
        )
    for key in idle_parameters(recipe):
        print(f"note: {key} has no effect: {recipe.method} has no such parameter.", file=sys.stderr)
    report = write_adapter(recipe, options.out, options.rank, options.allow_pickled)
    ranks = sorted({fit.rank for fit in report.fits.values()})
    print(
        f"{report.path}  digest: {report.digest}\n{len(report.fits)} modules, "
        f"rank {', '.join(map(str, ranks))}, largest relative error {report.worst:.2g}"
    )
    return 0


def _check_values(recipe: Recipe, merger: Merger, progress: Progress) -> None:
    """Reads all models once.

    Raises:
        SourceError: naming every model with NaN or infinity, a tensor and how many there are.
    """
    problems = []
    for ref in recipe.models():
        progress.say(f"checking {ref}")
        model = merger.checkpoint(ref)
        bad = dict(model.non_finite())
        if bad:
            first, count = next(iter(bad.items()))
            more = f" and in {len(bad) - 1} other tensors" if len(bad) > 1 else ""
            problems.append(
                Problem(
                    model.field,
                    f"{count} value{'s' if count != 1 else ''} of {first} in {ref} that "
                    f"{'are' if count != 1 else 'is'} NaN or infinite{more}",
                    "finite weights", "Download or write the model again.",
                )
            )  # fmt: skip
    if problems:
        raise SourceError(problems)


def reporter(progress: Progress) -> Callable[[int, int], None]:
    """Shows tensors done of all as a phase of its own."""
    state = {"started": False}

    def report(done: int, total: int) -> None:
        if not state["started"]:
            progress.start("merging", 0, total)
            state["started"] = True
        progress.step(done, total, "tensors")
        if done == total:
            progress.stop()

    return report


def _preview(recipe: Recipe, merger: Merger, options: argparse.Namespace) -> None:
    assembly = merger.assemble(recipe)
    price = cost(assembly, merger, options.shard_size)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in assembly.parts})
    for line in plan_lines(assembly):
        print(line)
    print()
    rows = {
        "output": f"{price.tensors} tensors, {_count(price.parameters)} parameters, "
        f"{' and '.join(dtypes)}, {_bytes(price.written)} in {price.files} "
        f"file{'s' if price.files != 1 else ''}",
        "reads": f"{_bytes(price.read)} from {price.models} model"
        f"{'s' if price.models != 1 else ''}",
        "memory": f"about {_bytes(price.memory)} beyond the page cache",
    }
    if price.seconds is not None:
        rows["time"] = f"about {price.seconds:.2g} s of computing, and what the disk takes"
    if options.out is not None:
        free = shutil.disk_usage(existing_folder(options.out)).free
        rows["disk"] = f"{_bytes(free)} free for {_bytes(price.written)}"
    if assembly.vocabulary is not None:
        rows["vocabulary"] = (
            f"{len(assembly.vocabulary.tokens)} tokens in {assembly.vocabulary.rows} rows"
        )
    rows["digest"] = recipe.digest(merger.identities(recipe))
    for name, text in rows.items():
        print(f"{name:12} {text}")
    for note in assembly.notes:
        print(f"note: {note}")


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} bytes"


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def size_in_bytes(text: str) -> int:
    """Bytes of a size such as 5G or 500M, for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5G or 500M")
    return int(float(found[1]) * _UNITS[found[2].upper()])
