"""The command `report`: the page of a run, and of several runs their comparison."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evomerge.errors import ConfigError, UserError


def report_command(arguments: list[str]) -> int:
    """Writes report.html of each run, and for several runs a comparison; returns the exit code.

    Raises:
        UserError: if a run cannot be read or an option is wrong.
    """
    from evomerge.report import (
        common_parent,
        compare,
        comparison_markdown,
        comparison_table,
        results_markdown,
        write_compared,
        write_report,
    )

    parser = argparse.ArgumentParser(
        "python -m evomerge report",
        description="Writes report.html from a run's files, and figures (PNG, SVG) and tables "
        "(CSV) into RUN/report; of several runs, comparison.html and comparison.csv, too, and "
        "prints a table.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="a study's run_dir")
    parser.add_argument("--markdown", action="store_true", help="print the result tables, too")
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where the comparison goes (default: the runs' common parent directory)",
    )  # fmt: skip
    parser.add_argument(
        "--reference", action="append", default=[], metavar="NAME=VALUE",
        help="reference value of an objective for the hypervolume, in the objective's own unit "
        "(default: the worst value of all points of all runs)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    reference = {}
    for given in options.reference:
        name, _, value = given.rpartition("=")
        try:
            reference[name] = float(value)
        except ValueError:
            raise ConfigError.of(
                "--reference", given, "NAME=VALUE", "Give a number after the objective's name."
            ) from None
    runs = list({run.resolve(): run for run in options.run}.values())
    for run in runs:
        try:
            print(write_report(run, files=True))
        except UserError:
            if len(runs) == 1:
                raise
            continue  # the comparison names it among those that it leaves out
        if options.markdown and (run / "results.json").is_file():
            print(results_markdown(json.loads((run / "results.json").read_text("utf-8"))))
    if len(runs) > 1:
        from rich.console import Console

        comparison = compare(runs, reference)
        print(write_compared(comparison, options.out or common_parent(runs)))
        if options.markdown:
            print(comparison_markdown(comparison))
        else:
            Console().print(comparison_table(comparison))
    return 0
