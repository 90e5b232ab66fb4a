"""The `import` verb: an experiment from another tool's config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from evomerge.durable import write_atomic
from evomerge.errors import ConfigError
from evomerge.evolve_config import Flags, convert, read_evolve

EPILOG = """\
Writes DIR/experiment/NAME.yaml, and prints what has no counterpart and what it does instead. What
mergekit-evolve takes from its command line can be given here, too. Flags that say where its merges
are stored and how they are scheduled have no counterpart: candidates never touch the disk.

example:
  python -m evomerge import mergekit-evolve config.yml --max-fevals 500
  python -m evomerge --config-dir . +experiment=config
"""


def import_command(arguments: Sequence[str]) -> int:
    """Runs the verb with its arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    name = options.name or re.sub(r"\W+", "_", options.config.stem).strip("_") or "evolve"
    if not re.fullmatch(r"\w+", name):
        raise ConfigError.of("--name", repr(name), "letters, digits and _", "Correct it.")
    file = options.out / "experiment" / f"{name}.yaml"
    if file.exists():
        raise ConfigError.of(
            "--out", f"{file}, which exists", "a file that is not there yet",
            "Remove it, or give another --out or --name.",
        )  # fmt: skip
    include = options.task_search_path
    flags = Flags(
        options.max_fevals, options.sigma0, options.random_seed, options.vllm,
        None if include is None else str(include.absolute()), options.trust_remote_code,
    )  # fmt: skip
    if include is not None and not include.is_dir():
        raise ConfigError.of("--task-search-path", str(include), "a folder", "Correct it.")
    made = convert(read_evolve(options.config), name, flags, str(options.config))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, made.text(options.config.name))
    for note in made.notes:
        print(f"note: {note}")
    run = f"--config-dir {options.out} +experiment={name}"
    print(
        f"\n{file}\ncheck it:  python -m evomerge check {run}\nrun it:    python -m evomerge {run}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evomerge import",
        description="Makes an experiment of a config of mergekit-evolve.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tool", choices=("mergekit-evolve",), help="whose config it is")
    parser.add_argument("config", type=Path, metavar="CONFIG.yml")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR",
                        help="your folder of configs (default: this one)")  # fmt: skip
    parser.add_argument("--name", help="of the experiment (default: the file's)")
    parser.add_argument("--max-fevals", type=int, default=100, help="candidates (default 100)")
    parser.add_argument("--sigma0", type=float, default=Flags.sigma0, help="default 1/6")
    parser.add_argument("--random-seed", type=int, default=0, help="default 0")
    parser.add_argument("--vllm", action="store_true", help="let vLLM answer")
    parser.add_argument("--task-search-path", type=Path, metavar="DIR",
                        help="a folder of lm-eval task YAMLs")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser
