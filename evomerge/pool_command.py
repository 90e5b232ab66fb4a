"""The `pool` verb: what the files of a study's sources say about merging them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from evomerge.checkpoints.merger import Merger
from evomerge.markdown import printable
from evomerge.pool import PoolFindings, PoolSettings, check_pool
from evomerge.progress import Progress
from evomerge.setup import Config, open_models

if TYPE_CHECKING:
    from rich.table import Table

USAGE = """\
python -m evomerge pool +experiment=NAME [KEY=VALUE ...] [--json]

Measures how far the sources of a study lie from their base and from one another, from the files
alone. --json prints everything as data.
exit codes: 0 measured, with or without warnings; 2 a mistake in the config or the sources."""


def pool_command(config: Config, as_json: bool = False) -> int:
    """Measures the pool of a config and prints it; returns the exit code.

    Raises:
        UserError: for settings or sources that cannot be.
    """
    settings = PoolSettings.of(config.get("pool"))
    with Progress() as progress:
        progress.say("opening the models")
        findings = measure_pool(config, Merger(), settings, progress)
    if as_json:
        print(json.dumps(findings.to_dict(), indent=1, allow_nan=False))
        return 0
    _print(findings)
    if settings.relevance:
        print("Relevance needs scores: the study measures it when it starts.")
    return 0


def measure_pool(
    config: Config, merger: Merger, settings: PoolSettings, progress: Progress
) -> PoolFindings:
    """Opens the models of a config and checks them as a pool.

    Raises:
        UserError: if a source is missing, damaged or does not fit the base.
    """
    open_models(config, merger)
    models = config["models"]
    base = merger.checkpoint(models["base"], "models.base")
    sources = {
        name: merger.checkpoint(ref, f"models.sources.{name}")
        for name, ref in models["sources"].items()
    }
    return check_pool(base, sources, settings, report=reporter(progress))


def reporter(progress: Progress) -> Callable[[int, int], None]:
    """Shows the parameters read so far as a phase of its own."""
    started = False

    def report(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start("measuring the pool", 0, total)
            started = True
        progress.step(done, total, "parameters")
        if done == total:
            progress.stop()

    return report


def _print(findings: PoolFindings) -> None:
    from rich.console import Console

    console = Console()
    console.print(pool_table(findings))
    count = len(findings.names)
    lines = [f"Effective number of distinct sources: {findings.distinct:.2f} of {count}."]
    lines += [f"warning: {text}" for text in findings.warnings]
    lines += [f"note: {text}" for text in findings.notes]
    if not findings.warnings:
        lines.append("No warning: the files alone say nothing against merging these sources.")
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)


def pool_table(findings: PoolFindings) -> Table:
    """One row a source: size of its change, nearest neighbour, cluster, kinds of findings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    geometry = findings.geometry
    title = f"{geometry.parameters / 1e6:,.1f} million parameters"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Source", overflow="fold")
    table.add_column("Change", justify="right", no_wrap=True)
    table.add_column("Most in", overflow="fold")
    table.add_column("Nearest (cosine)", overflow="fold")
    table.add_column("Cluster", justify="right")
    table.add_column("Findings", overflow="fold")
    for i, name in enumerate(findings.names):
        group, most = geometry.largest(i)
        near = geometry.nearest(i)
        kinds = dict.fromkeys(f.kind for f in findings.findings if name in f.sources)
        cells = [
            name, f"{geometry.norms[i]:.4f}", f"{group} {most:.3f}",
            "-" if near is None else f"{near[0]} {near[1]:+.3f}",
            str(findings.clusters[i] + 1), ", ".join(kinds) or "-",
        ]  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
