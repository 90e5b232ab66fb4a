"""How well and at which cost the optimisers search, compared with random search.

    python benchmarks/optimizers.py                      everything, about ten minutes of one core
    python benchmarks/optimizers.py --quick              a smoke run of a few seconds
    python benchmarks/optimizers.py --only gp tpe        some optimisers
    python benchmarks/optimizers.py --problem zdt1       some problems
    python benchmarks/optimizers.py --cost               the cost of proposals only

Every optimiser has the settings of its YAML (evo_merging: stage one takes a third of the
candidates, as published) and is asked and told like in a study: an asynchronous one has `batch`
candidates at work, of which the oldest ends first; others go generation by generation.

Loss is the optimum less the best feasible value found (of noisy problems: the best true value
among the five fittest and the recommendation), or the share of the front's hypervolume that is
missing. The ratio is the geometric mean over the seeds of the loss over that of random search on
the same problem, itself a geometric mean of four runs; below 1 is better than random. Its interval
is a 95% bootstrap interval over the seeds. An optimiser that ends by itself keeps its last loss;
`LEFT_OUT` names those that these problems cannot show. The last line is one JSON object with the
same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from optimizer_problems import LARGE, LEFT_OUT, SLOW, SMALL, Case, cases  # noqa: E402

from evomerge.build import build  # noqa: E402
from evomerge.domain import Domain  # noqa: E402
from evomerge.optimizers.base import Optimizer  # noqa: E402
from evomerge.pareto import hypervolume  # noqa: E402
from evomerge.testing.problems import Dtlz2, Problem, Sphere  # noqa: E402
from evomerge.types import Fitness, FloatArray, Observation  # noqa: E402

Result = tuple[FloatArray, Fitness]
FLOOR = 1e-12
FINALISTS = 5
RANDOM_RUNS = 4
EVOLUTIONARY = (
    "random", "sobol", "cma_es", "sep_cma_es", "pso", "evo_merging", "nsga2", "nsga3", "map_elites",
)  # fmt: skip


def make(name: str, domain: Domain, seed: int, budget: int) -> Optimizer:
    """An optimiser with the settings of its YAML."""
    text = (ROOT / "conf" / "optimizer" / f"{name}.yaml").read_text(encoding="utf-8")
    node = yaml.safe_load(text)
    if name == "evo_merging":
        node["first_candidates"] = max(1, budget // 3)
    made = build(node, "optimizer", domain=domain, seed=seed)
    assert isinstance(made, Optimizer)
    return made


def drive(optimizer: Optimizer, problem: Problem, budgets: Sequence[int]) -> list[float]:
    """Searches like `evomerge.search.Search`; the loss after each of the ascending budgets."""
    waiting: deque[FloatArray] = deque()
    done: list[Result] = []
    untold: list[Observation] = []
    losses = []
    while len(done) < budgets[-1]:
        if not waiting and optimizer.batch < 1:  # it has nothing more to ask
            return losses + [loss(optimizer, problem, done)] * (len(budgets) - len(losses))
        if optimizer.asynchronous:
            room = optimizer.batch - len(waiting)
        else:
            room = 0 if waiting else optimizer.batch
        room = min(room, budgets[-1] - len(done) - len(waiting))
        if room > 0:
            waiting.extend(optimizer.ask(room))
        genome = waiting.popleft()
        fitness = problem.evaluate(genome, len(done))
        done.append((genome, fitness))
        untold.append(Observation(genome, fitness))
        if optimizer.asynchronous or not waiting:
            optimizer.tell(untold)
            untold = []
        if len(done) in budgets:
            losses.append(loss(optimizer, problem, done))
    return losses


def loss(optimizer: Optimizer, problem: Problem, done: Sequence[Result]) -> float:
    """What is missing; see the module."""
    feasible = [(genome, fitness) for genome, fitness in done if fitness.feasible]
    if problem.domain.objectives > 1:
        values = np.array([problem.values(genome) for genome, _ in feasible])
        found = hypervolume(values, problem.reference)
        return max(FLOOR, 1.0 - found / problem.best_hypervolume)
    if not feasible:
        return float(len(problem.domain))  # further away than any feasible point
    finalists = sorted(feasible, key=lambda r: -r[1].values[0])[:FINALISTS]
    genomes = [genome for genome, _ in finalists]
    if problem.noise and (recommended := optimizer.recommend()) is not None:
        genomes.append(recommended)
    return max(FLOOR, problem.optimum - max(problem.values(g)[0] for g in genomes))


@dataclass(frozen=True)
class Row:
    """One optimiser on one problem after one number of candidates.

    Attributes:
        losses: one a seed.
        random: random search's on the same problems.
    """

    problem: str
    optimizer: str
    candidates: int
    losses: tuple[float, ...]
    random: tuple[float, ...]

    def ratio(self) -> tuple[float, float, float]:
        """Geometric mean of the ratio to random search, and its interval."""
        logs = np.log(self.losses) - np.log(self.random)
        drawn = np.random.default_rng(0).integers(len(logs), size=(4000, len(logs)))
        low, high = np.quantile(logs[drawn].mean(axis=1), [0.025, 0.975])
        return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))

    def verdict(self) -> str:
        """Better, worse, or the same where the interval holds 1."""
        _, low, high = self.ratio()
        return "better" if high < 1 else "worse" if low > 1 else "same"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        ratio, low, high = self.ratio()
        return {
            "problem": self.problem,
            "optimizer": self.optimizer,
            "candidates": self.candidates,
            "losses": self.losses,
            "ratio": ratio,
            "low": low,
            "high": high,
            "verdict": self.verdict(),
        }


def compare(case: Case, names: Sequence[str], budgets: Sequence[int], seeds: int) -> list[Row]:
    """Runs the optimisers of a case; random search first."""
    rows = []
    problems = [case.make(seed) for seed in range(seeds)]
    chance = np.empty((seeds, RANDOM_RUNS, len(budgets)))
    for i, problem in enumerate(problems):
        for j in range(RANDOM_RUNS):
            searcher = make("random", problem.domain, 100 * i + j, budgets[-1])
            chance[i, j] = drive(searcher, problem, budgets)
    random = np.exp(np.log(chance).mean(axis=1))
    for k, candidates in enumerate(budgets):
        own = tuple(random[:, k].tolist())
        rows.append(Row(case.name, "random", candidates, own, own))
    for name in case.optimizers:
        if names and name not in names:
            continue
        begin = time.process_time()
        own = [b for b in budgets if b <= SLOW.get(name, b)]
        if own:
            found = np.array(
                [
                    drive(make(name, problem.domain, seed, own[-1]), problem, own)
                    for seed, problem in enumerate(problems)
                ]
            )
        for k, candidates in enumerate(own):
            losses = tuple(found[:, k].tolist())
            rows.append(Row(case.name, name, candidates, losses, tuple(random[:, k].tolist())))
        seconds = time.process_time() - begin
        print(f"{case.name}: {name}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return rows


def quality_table(case: Case, rows: Sequence[Row]) -> list[str]:
    """A table of one problem, best first after the largest budget that an optimiser has."""
    out = [
        f"**{case.name}** ({case.what})",
        "",
        "| optimiser | candidates | loss: median (lowest to highest) | ratio to random "
        "(95% interval) | than random |",
        "|---|---:|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r.candidates, r.ratio()[0])):
        spread = f"{np.median(row.losses):.3g} ({min(row.losses):.2g} to {max(row.losses):.2g})"
        ratio, low, high = row.ratio()
        told = f"{ratio:.2g} ({low:.2g} to {high:.2g}) | {row.verdict()}"
        if row.optimizer == "random":
            told = "1 | "
        out.append(f"| {row.optimizer} | {row.candidates} | {spread} | {told} |")
    return [*out, ""]


def summary_tables(rows: Sequence[Row], known: Sequence[Case]) -> list[str]:
    """Ratios to random search, an optimiser a row and a problem a column; see the last line."""
    found = {(r.problem, r.optimizer, r.candidates): r for r in rows if r.optimizer != "random"}
    out = []
    for several in (False, True):
        columns = [c.name for c in known if (c.make(0).domain.objectives > 1) == several]
        for candidates in sorted({key[2] for key in found}):
            here = {k: r for k, r in found.items() if k[2] == candidates and k[0] in columns}
            if not here:
                continue
            out.append(f"| after {candidates} | {' | '.join(columns)} |")
            out.append("|---|" + "---:|" * len(columns))
            for name in dict.fromkeys(key[1] for key in here):
                cells = [_cell(here.get((column, name, candidates))) for column in columns]
                out.append(f"| `{name}` | {' | '.join(cells)} |")
            out.append("")
    return [*out, "Bold: better than random search; (worse): worse; else the interval holds 1.", ""]


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    ratio = f"{row.ratio()[0]:.2f}"
    return {"better": f"**{ratio}**", "worse": f"{ratio} (worse)", "same": ratio}[row.verdict()]


def clocks(action: Any) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def cheap_cost(name: str, dimensions: int, candidates: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of ask and tell a candidate; the least of some repeats."""
    problem = Dtlz2(dimensions=dimensions) if name == "nsga3" else Sphere(dimensions=dimensions)

    def search() -> None:
        drive(make(name, problem.domain, 0, candidates), problem, [candidates])

    def evaluations() -> None:
        genome = problem.domain.start
        for i in range(candidates):
            problem.evaluate(genome, i)

    times = np.array([clocks(search) for _ in range(repeats)]).min(axis=0)
    times -= np.array([clocks(evaluations) for _ in range(repeats)]).min(axis=0)
    wall, processor = (1000 * times / candidates).tolist()
    return {"optimizer": name, "dimensions": dimensions, "wall_ms": wall, "processor_ms": processor}


def model_cost(
    name: str, objectives: int, observations: int, proposals: int, dimensions: int
) -> dict[str, Any]:
    """Seconds of a proposal after many results: the first one, which fits, and later ones."""
    problem: Problem = Sphere(dimensions=dimensions)
    if objectives > 1:
        problem = Dtlz2(dimensions=dimensions, objectives=objectives)
    optimizer = make(name, problem.domain, 0, observations)
    rng = np.random.default_rng(0)
    genomes = list(problem.domain.from_unit(rng.random((observations, dimensions))))
    optimizer.replay(genomes)
    optimizer.tell([Observation(g, problem.evaluate(g)) for g in genomes])
    waiting: deque[FloatArray] = deque()
    first = clocks(lambda: waiting.extend(optimizer.ask(1)))
    waiting.extend(optimizer.ask(max(1, optimizer.batch - 1)))
    times = []
    for _ in range(proposals):
        genome = waiting.popleft()

        def step(genome: FloatArray = genome) -> None:
            optimizer.tell([Observation(genome, problem.evaluate(genome))])
            waiting.extend(optimizer.ask(1))

        times.append(clocks(step))
    wall, processor = np.median(times, axis=0).tolist()
    return {
        "optimizer": name,
        "objectives": objectives,
        "dimensions": dimensions,
        "observations": observations,
        "wall_s": wall,
        "processor_s": processor,
        "first_processor_s": first[1],
    }


def costs(names: Sequence[str], quick: bool) -> dict[str, list[dict[str, Any]]]:
    """What proposals cost."""
    cheap = [n for n in (*EVOLUTIONARY, "tpe") if not names or n in names]
    models = [n for n in ("gp", "mm_mo") if not names or n in names]
    candidates, repeats = (30, 2) if quick else (400, 3)
    fast = []
    for name in cheap:
        print(f"cost: {name}", file=sys.stderr, flush=True)
        fast.append(cheap_cost(name, 100, candidates, repeats))
    slow = []
    for name in models:
        for objectives, dimensions in ((1, 18),) if quick else ((1, 18), (3, 18), (3, 100)):
            what = f"{objectives} objectives, {dimensions} dimensions"
            print(f"cost: {name}, {what}", file=sys.stderr, flush=True)
            observations, proposals = (40, 1) if quick else (500, 10)
            slow.append(model_cost(name, objectives, observations, proposals, dimensions))
    return {"evolutionary": fast, "models": slow}


def cost_tables(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Both tables."""
    out = []
    if found["evolutionary"]:
        out += [
            "| optimiser | ms a candidate at 100 dimensions, processor | wall |",
            "|---|---:|---:|",
            *(
                f"| {c['optimizer']} | {c['processor_ms']:.2f} | {c['wall_ms']:.2f} |"
                for c in found["evolutionary"]
            ),
            "",
        ]
    if found["models"]:
        out += [
            "| optimiser | objectives | dimensions | results | s a proposal, processor | wall "
            "| first |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {c['optimizer']} | {c['objectives']} | {c['dimensions']} | "
                f"{c['observations']} | "
                f"{c['processor_s']:.2f} | {c['wall_s']:.2f} | {c['first_processor_s']:.2f} |"
                for c in found["models"]
            ),
            "",
        ]
    return out


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny budgets, to see that it runs")
    left = f"optimisers; never {', '.join(LEFT_OUT)}"
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help=left)
    parser.add_argument(
        "--problem", nargs="*", metavar="NAME", help=f"of {[c.name for c in known]}"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost", action="store_true", help="no comparison, only the cost")
    options = parser.parse_args()
    seeds = 2 if options.quick else options.seeds
    budgets = (12,) if options.quick else (SMALL, LARGE)
    out: dict[str, Any] = {"seeds": seeds}
    begin = time.process_time()
    every: list[Row] = []
    for case in [] if options.cost else known:
        if options.problem is not None and case.name not in options.problem:
            continue
        rows = compare(case, options.only, budgets, seeds)
        print("\n".join(quality_table(case, rows)), flush=True)
        every += rows
    out["quality"] = [row.to_dict() for row in every]
    if every:
        print("\n".join(summary_tables(every, known)), flush=True)
    if options.problem is None:
        out["cost"] = costs(options.only, options.quick)
        print("\n".join(cost_tables(out["cost"])))
    out["processor_seconds"] = round(time.process_time() - begin, 1)
    out["load"] = os.getloadavg()[0]
    print(json.dumps(out))


if __name__ == "__main__":
    main()
