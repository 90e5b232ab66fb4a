"""`python -m evomerge.digits`: runs, repeats and draws the digits experiment of M2N2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

# The networks are far too small for two threads; it has to be set before numpy is loaded.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from evomerge.digits import figure, records, search  # noqa: E402
from evomerge.digits.methods import METHODS  # noqa: E402
from evomerge.digits.table import table  # noqa: E402
from evomerge.errors import ConfigError, UserError  # noqa: E402
from evomerge.pieces import ANGLES  # noqa: E402
from evomerge.progress import Progress  # noqa: E402
from evomerge.zoo import digits  # noqa: E402

FOLDER = Path("runs/m2n2_digits")
BUDGETS = {"scratch": 50_000, "pretrained": 10_000}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 for a mistake of the user, 130 if interrupted."""
    options = parser().parse_args(arguments)
    try:
        return command(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; finished searches are kept, the same command goes on", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = "\n".join(f"  {name:14} {text}" for name, text in METHODS.items())
    made = argparse.ArgumentParser(
        prog="python -m evomerge.digits",
        description="Searches over all 19 210 parameters of a network for 8 x 8 digits, as in the "
        "paper on M2N2, and writes a CSV file a search. A search that has its file is not run "
        "again.",
        epilog=f"methods:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add(
        "--method", nargs="+", default=["m2n2"], choices=METHODS, metavar="NAME",
        help="what searches, one or more (default: m2n2)",
    )  # fmt: skip
    add(
        "--start", default="scratch", choices=figure.STARTS,
        help="two random networks, or two trained on five digits each (default: scratch)",
    )  # fmt: skip
    add(
        "--evaluations", type=int, metavar="N",
        help="networks to run (default: 50000 from scratch, 10000 from pretrained)",
    )  # fmt: skip
    add(
        "--seed", nargs="+", type=int, default=[0], metavar="N",
        help="of the networks and the search, one or more (default: 0)",
    )  # fmt: skip
    add(
        "--pixels", default="raw", choices=digits.SCALES,
        help="grey levels from 0 to 16, as published, or from 0 to 1 (default: raw)",
    )  # fmt: skip
    add(
        "--initial", default="normal", choices=digits.INITIALS,
        help="first parameters N(0, 0.01^2), as published, or torch's (default: normal)",
    )  # fmt: skip
    add(
        "--angle", default="segment", choices=ANGLES,
        help="of the slerp: of each side of the split, or of the whole (default: segment)",
    )  # fmt: skip
    add("--out", type=Path, metavar="CSV", help="file of the one search that is asked for")
    add(
        "--dir", type=Path, default=FOLDER, metavar="DIR",
        help=f"folder for files named after their search (default: {FOLDER})",
    )  # fmt: skip
    add(
        "--plot", type=Path, metavar="DIR",
        help="no search: draw a folder's results as accuracy.png and accuracy.svg, print a table",
    )  # fmt: skip
    return made


def command(options: argparse.Namespace) -> int:
    """Draws, or runs every search asked for that has no file yet.

    Raises:
        UserError: for options that cannot be, before anything is run.
    """
    if options.plot is not None:
        results = figure.collect(options.plot)
        for path in figure.plot(results, options.plot):
            print(path)
        print(table(results), end="")
        return 0
    budget = BUDGETS[options.start] if options.evaluations is None else options.evaluations
    pairs = list(product(dict.fromkeys(options.seed), dict.fromkeys(options.method)))
    check(budget, options.seed, options.out is not None and len(pairs) > 1)
    plans = [
        records.Plan(
            method, options.start, budget, seed, options.pixels, options.initial, options.angle
        )
        for seed, method in pairs
    ]
    paths = [options.out or options.dir / f"{plan.name}.csv" for plan in plans]
    done = [records.finished(path, plan) for path, plan in zip(paths, plans, strict=True)]
    with Progress() as progress:
        for plan, path, there in zip(plans, paths, done, strict=True):
            if there:
                progress.say(f"{path}: is there")
                continue
            progress.start(plan.name, 0, plan.budget)
            found = search.run(plan, partial(_show, progress, plan.budget))
            progress.stop()
            records.write(path, plan, found)
            last = found[-1]
            progress.say(f"{path}: train {last.train:.1%}, test {last.test:.1%}")
    return 0


def check(budget: int, seeds: Sequence[int], crowded: bool) -> None:
    """Finds mistakes before anything is run.

    Raises:
        ConfigError: for a number out of range, several searches and one file, or no scikit-learn.
    """
    if budget < 2:
        raise ConfigError.of(
            "--evaluations", str(budget), "at least 2", "The two networks alone take 2."
        )
    if min(seeds) < 0:
        raise ConfigError.of("--seed", str(min(seeds)), "at least 0", "Take another seed.")
    if crowded:
        raise ConfigError.of(
            "--out", "one file for several searches", "one method and one seed",
            "Use --dir, which names the files.",
        )  # fmt: skip
    if find_spec("sklearn") is None:
        raise ConfigError.of(
            "scikit-learn", "no such package", "scikit-learn, which holds the digits",
            "Install it: pip install 'evomerge[digits]'.",
        )  # fmt: skip


def _show(progress: Progress, budget: int, done: int, best: float) -> None:
    progress.update(done, budget, best, 0)


if __name__ == "__main__":
    sys.exit(main())
