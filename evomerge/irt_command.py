"""The `irt` verb: fits items to answers of many models, shows them, compares estimators."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.errors import ConfigError
from evomerge.irt.fit import Fit, fit_items
from evomerge.irt.model import ItemModel, check_suffix
from evomerge.irt.responses import Responses, read_responses
from evomerge.irt_compare import add_arguments, compare
from evomerge.markdown import printable
from evomerge.progress import Progress

DESCRIPTION = """\
Fits item response models: how hard each item is and how well it tells models apart, from the
answers of many models. Estimators choose items and predict whole scores with them."""

MATRIX = """\
one or more of: .npz (`correct`, models x items), .csv or .parquet (a row a model, or columns
model, item, score), .jsonl (lm-eval's samples), a run directory, a ledger, a folder of samples"""

EXAMPLES = """\
examples:
  python -m evomerge irt fit answers.csv --out items.npz
  python -m evomerge irt fit lm_eval_out/ --metric exact_match,strict-match --out items.npz
  python -m evomerge irt fit runs/jp_math/seed0 --out items.json --dimensions 2 --plots figures
  python -m evomerge irt compare answers.csv --items 20,50
exit codes: 0 done, 2 a mistake in the arguments or the answers."""

_LISTED = 5


def irt_command(arguments: Sequence[str]) -> int:
    """Runs `irt fit`, `irt show` or `irt compare`; returns the exit code.

    Raises:
        UserError: for answers or files that cannot be used.
    """
    options = _parser().parse_args(list(arguments))
    if options.verb == "compare":
        return compare(options)
    return _fit(options) if options.verb == "fit" else _show(options)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m evomerge irt", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=form
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fit | show | compare")
    fit = verbs.add_parser(
        "fit", help="fit items to answers", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=form,
    )  # fmt: skip
    fit.add_argument("matrix", metavar="MATRIX", nargs="+", type=Path, help=MATRIX)
    fit.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="where to: FILE.npz or FILE.json"
    )
    fit.add_argument("--dimensions", metavar="D", type=int, default=1, help="of an ability (1)")
    fit.add_argument("--ability-precision", metavar="X", type=float, default=1.0,
                     help="of the prior of abilities (1)")  # fmt: skip
    fit.add_argument("--task", metavar="NAME", help="takes only this task's items")
    fit.add_argument("--metric", metavar="NAME", help="of lm-eval's samples: METRIC[,FILTER]")
    fit.add_argument("--split", metavar="NAME", default="search",
                     help="of run directories and ledgers (search)")  # fmt: skip
    fit.add_argument("--min-answers", metavar="N", type=int, default=1,
                     help="leaves out models and items with fewer (1)")  # fmt: skip
    fit.add_argument("--seed", type=int, default=0, help="of the start, for D above 1 (0)")
    fit.add_argument("--plots", metavar="DIR", type=Path,
                     help="draws item curves and information, as SVG and PNG")  # fmt: skip
    show = verbs.add_parser(
        "show", help="print and draw fitted items", formatter_class=form,
        description="Prints what a file of fitted items holds.",
        epilog="exit codes: 0 printed, 2 a mistake in the arguments or the file.",
    )  # fmt: skip
    show.add_argument("file", metavar="FILE", type=Path, help="written by irt fit")
    show.add_argument("--item", metavar="ID", nargs="+", action="extend", default=[],
                      help="prints and draws these")  # fmt: skip
    show.add_argument("--plots", metavar="DIR", type=Path,
                      help="draws item curves and information, as SVG and PNG")  # fmt: skip
    comparing = verbs.add_parser(
        "compare", help="which estimator suits the answers", formatter_class=form,
        description="Leaves out models in turn, and prints how far their full scores are off when\n"
        "they are estimated from few items; then the settings of a study.",
        epilog="exit codes: 0 printed, 2 a mistake in the arguments or the answers.",
    )  # fmt: skip
    add_arguments(comparing, MATRIX)
    return parser


def _fit(options: argparse.Namespace) -> int:
    check_suffix(options.out)
    _check_folder("--out", options.out.absolute().parent)
    begin = time.monotonic()
    with Progress() as progress:
        progress.say("reading the answers")
        answers = read_responses(
            options.matrix, task=options.task, metric=options.metric, split=options.split
        )
        answers, left_out = answers.answered(max(1, options.min_answers))
        progress.say(f"fitting {len(answers.models)} models x {len(answers.items)} items")
        last = time.monotonic()

        def report(passes: int, largest: float) -> None:
            nonlocal last
            if time.monotonic() - last > 10:
                last = time.monotonic()
                progress.say(f"  pass {passes}: largest gradient {largest:.2g} standard errors")

        fit = fit_items(
            answers,
            options.dimensions,
            ability_precision=options.ability_precision,
            seed=options.seed,
            source=" ".join(path.name for path in options.matrix),
            report=report,
        )
    fit.model.save(options.out)
    print(table(answers, fit, time.monotonic() - begin))
    for note in (*left_out, *fit.notes):
        print(f"note: {printable(note)}")
    print(options.out)
    if options.plots is not None:
        from evomerge.irt.figures import write_figures

        for path in write_figures(
            fit.model, options.plots, observed=(fit.abilities, answers.scores)
        ):
            print(path)
    return 0


def table(answers: Responses, fit: Fit, seconds: float) -> str:
    """What a fit found, a line a fact."""
    model = fit.model
    total = answers.scores.size
    missing = 1 - model.settings["answers"] / total
    rows = [
        ("models", f"{len(answers.models)}"),
        ("items", f"{len(model)}, {len(model.settings['constant'])} of them constant"),
        ("answers", f"{model.settings['answers']}, {missing:.1%} missing"),
        *_facts(model),
        ("reliability", "  ".join(f"{r:.3f}" for r in reliability(fit))),
        ("fit", f"{fit.iterations} iterations, "
                f"{'converged' if fit.converged else 'NOT converged'}, {seconds:.1f} s"),
    ]  # fmt: skip
    return "\n".join(f"{name:16}  {value}" for name, value in rows)


def reliability(fit: Fit) -> list[float]:
    """Share of the variance of abilities that is not error, of each dimension.

    var / (var + mean squared standard error), the empirical reliability of MAP abilities.
    """
    spread = fit.abilities.var(axis=0)
    return (spread / (spread + (fit.ability_errors**2).mean(axis=0))).tolist()


def _facts(model: ItemModel) -> list[tuple[str, str]]:
    varying = np.abs(model.discrimination).max(axis=1) > 0
    alpha, beta = model.discrimination[varying], model.difficulty[varying]
    low, middle, high = np.quantile(beta, [0.05, 0.5, 0.95])
    negative = int((alpha[:, 0] < 0).sum())
    return [
        ("dimensions", f"{model.dimensions}"),
        ("discrimination", f"mean {alpha[:, 0].mean():.2f}, negative for {negative} items"
         + "".join(f"; dimension {d + 1}: spread {alpha[:, d].std():.2f}"
                   for d in range(1, model.dimensions))),
        ("difficulty", f"median {middle:.2f}, 90% of items in {low:.2f} to {high:.2f}"),
    ]  # fmt: skip


def _show(options: argparse.Namespace) -> int:
    model = ItemModel.load(options.file)
    chosen = model.index(options.item) if options.item else None
    settings = model.settings
    facts = [
        ("source", printable(str(settings.get("source", "")) or "not known")),
        ("models", str(settings.get("models", "not known"))),
        ("items", f"{len(model)}, {len(settings.get('constant', ()))} of them constant"),
        *_facts(model),
        ("scores", str(settings.get("scores", "not known"))),
        ("priors", ", ".join(f"{k} {v:g}" for k, v in settings.get("priors", {}).items())),
    ]
    if chosen is None:
        print("\n".join(f"{name:16}  {value}" for name, value in facts))
        order = np.argsort(-model.discrimination[:, 0], kind="stable")
        few = len(order) <= 2 * _LISTED
        listed = order if few else np.concatenate([order[:_LISTED], order[-_LISTED:]])
        print("\nitems by discrimination" + ("" if few else f", the first and last {_LISTED}"))
    else:
        listed = chosen
    print(item_table(model, listed))
    if options.plots is not None:
        from evomerge.irt.figures import write_figures

        for path in write_figures(model, options.plots, chosen):
            print(path)
    return 0


def item_table(model: ItemModel, places: Sequence[int] | np.ndarray) -> str:
    """Discrimination and difficulty with standard errors, a line an item."""
    names = [printable(model.items[i]) for i in places]
    width = min(48, max(4, *map(len, names)))
    head = "  ".join(f"{f'alpha {d + 1}':>13}" for d in range(model.dimensions))
    lines = [f"{'item':{width}}  {head}  {'beta':>13}"]
    for i, name in zip(places, names, strict=True):
        cells = [
            f"{value:6.2f} ± {error:4.2f}"
            for value, error in zip(
                [*model.discrimination[i], model.difficulty[i]],
                [*model.discrimination_error[i], model.difficulty_error[i]],
                strict=True,
            )
        ]
        lines.append(f"{name[:width]:{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def _check_folder(field: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError.of(
            field, f"no folder {folder}", "a folder that exists",
            "Make it first, or name another.",
        )  # fmt: skip
