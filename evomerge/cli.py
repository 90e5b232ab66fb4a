"""The command line; the only importer of hydra."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from evomerge.config_errors import CONFIG_MODULE, explained, options, study_meant
from evomerge.errors import ConfigError, EvomergeError, UserError
from evomerge.sweeping import Notes, forced, job_number, sweep_dir
from evomerge.versions import own_version

_INTERRUPTED = 130

VERBS = {
    "check": "evomerge.cli:check_command",
    "pool": "evomerge.cli:pool_command",
    "merge": "evomerge.merging:merge_command",
    "report": "evomerge.report_command:report_command",
    "pick": "evomerge.pick_command:pick_command",
    "export": "evomerge.export_command:export_command",
    "replay": "evomerge.replay_command:replay_command",
    "import": "evomerge.import_command:import_command",
    "lineage": "evomerge.lineage_command:lineage_command",
    "irt": "evomerge.irt_command:irt_command",
    "status": "evomerge.cli:status_command",
    "watch": "evomerge.watch_command:watch_command",
}
"""What the first argument can be, and what is then called with the others, imported only then."""

_FLAGS = (
    "--help", "--version", "--config-dir", "--multirun", "-m", "--cfg", "--resolve", "--info",
    "--package", "--run", "--hydra-help", "--shell-completion", "--config-path", "--config-name",
    "--experimental-rerun", "-c", "-p", "-i", "-r", "-sc", "-cp", "-cn", "-cd",
)  # fmt: skip
"""Of a study: ours first, then Hydra's."""

WRITES_NOTHING = {"merge", "pool", "pick", "export", "replay", "import", "irt", "status", "watch"}
"""Verbs that leave nothing when they are interrupted."""

HELP = """\
evomerge searches for the best way to merge fine-tuned models and proves it on held-out items.

usage:
  python -m evomerge +experiment=NAME [KEY=VALUE ...]     run a study, or resume it
  python -m evomerge -m +experiment=NAME optimizer=gp,nsga2 seed=0,1,2
                                     a sweep of studies (Hydra), then a report that compares them
  python -m evomerge check +experiment=NAME [KEY=VALUE ...]
                                     list everything that is wrong with a study, run nothing
  python -m evomerge pool +experiment=NAME [KEY=VALUE ...]    how far the sources lie apart
  python -m evomerge merge RECIPE.yaml OUT                write the merge of a recipe
                                     (mergekit's YAML; --dry-run prints the plan and its cost)
  python -m evomerge report RUN [RUN ...] [--out DIR]     write report.html from a run's files,
                                     and for several runs comparison.html
  python -m evomerge status RUN [RUN ...] [--json]        how far studies are; exits 0 if finished
  python -m evomerge lineage RUN [CANDIDATE] [--out FILE.svg]
                                     who a merge by matings (space=pieces) descends from
  python -m evomerge watch RUN            the report in a browser, kept fresh while the study runs
  python -m evomerge pick RUN --prefer NAME=WEIGHT[,...] [--at-least NAME=VALUE[,...]]
                                     the merge of a study that suits a preference
  python -m evomerge export RUN CANDIDATE OUT [--format hf|lora|mergekit|recipe]
                                     a merge of a study as a checkpoint, adapter or recipe, with
                                     a model card; --push-to-hub NAME uploads it
  python -m evomerge replay RUN CANDIDATE                 answers a candidate's items anew and says
                                     whether it reproduces
  python -m evomerge import mergekit-evolve CONFIG.yml    makes an experiment of its config
  python -m evomerge irt fit MATRIX [...] --out FILE.npz
                                     item response models from answers of many models; irt show;
                                     irt compare MATRIX: which estimator suits it

keys that most studies set (all of them: python -m evomerge +experiment=NAME --cfg job):
  seed=0  run_dir=DIR  finalists=8  dtype=bfloat16
  budget.candidates=300  budget.item_evaluations=N  budget.hours=H
  stop.score=S  stop.patience=GENERATIONS
  executor.workers=N  executor.threads=N  engine.max_model_len=N
  +task@tasks.NAME=TASK  +objectives.NAME.task=TASK  scalarize=weighted_sum
  '+constraints.NAME={{task: TASK, at_least: best source, margin: 0.02}}'
  estimator.items=30  estimator.responses=FILE_OR_RUN  recheck.every=60  ledger=DIR
  trackers=[tensorboard,optuna,mlflow,wandb]  log=json
  warm_start.run=DIR  'warm_start.recipes=[FILE.yaml]'  pool.prune=true
  models.base=PATH  models.sources.NAME=PATH  task.search.path=FILE  task.test.path=FILE
  (a key that the YAML does not hold yet takes a plus: +models.sources.NEW=PATH)

choices:
{groups}

your own files: --config-dir DIR, with the same folders as above (DIR/experiment/NAME.yaml).
exit codes: 0 done, 1 failed, 2 a mistake in the config or data, 130 interrupted (a study goes on).
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs a verb or a study and exits with the documented code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Runs a verb or a study; returns the exit code after printing what went wrong."""
    try:
        return _dispatch(arguments)
    except EvomergeError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt as error:
        if not hasattr(error, "shown"):
            print(f"interrupted; {_after(arguments)}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        return 1


def _after(arguments: Sequence[str]) -> str:
    """What an interrupted command has left."""
    if arguments and arguments[0] in WRITES_NOTHING:
        return "nothing was written"
    return "the same command goes on from here"


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(groups=_groups()))
        return 0 if arguments else 2
    if arguments[0] in VERBS:
        module, _, function = VERBS[arguments[0]].partition(":")
        verb: Callable[[list[str]], int] = getattr(import_module(module), function)
        return verb(arguments[1:])
    if arguments[0] in ("-V", "--version"):
        print(f"evomerge {own_version()}")
        return 0
    if "=" not in arguments[0] and not arguments[0].startswith("-"):
        close = get_close_matches(arguments[0], VERBS, n=1)
        raise ConfigError.of(
            arguments[0], "an unknown verb", f"KEY=VALUE, or one of {', '.join(VERBS)}",
            f"Did you mean {close[0]}?" if close else study_meant(arguments[0]),
        )  # fmt: skip
    overrides, directory = _split_directory(arguments)
    flags = [a.partition("=")[0] for a in overrides if a.startswith("-")]
    if "-h" in flags or "--help" in flags:
        return _dispatch(["--help"])
    for flag in flags:
        if not any(known.startswith(flag) for known in _FLAGS):
            close = get_close_matches(flag, _FLAGS, n=1)
            raise ConfigError.of(
                flag, "an unknown flag", f"KEY=VALUE, or one of {', '.join(_FLAGS[:6])}",
                f"Did you mean {close[0]}?" if close else "See python -m evomerge --help.",
            )  # fmt: skip
    if flags:
        return _hydra_main(arguments)
    return _study(compose_config(overrides, directory))


# -- verbs ------------------------------------------------------------------------------------


def _study(config: dict[str, Any]) -> int:
    from evomerge.check import check, remote_models
    from evomerge.progress import Progress
    from evomerge.pruning import prepared
    from evomerge.report import results_table, verdict
    from evomerge.setup import make_setup
    from evomerge.study import run_study

    with Progress(log=config["log"]) as progress:
        progress.say(f"checking {config['experiment']}")
        progress.start("checking", 0, None)
        problems = check(config, progress.say)
        if not problems and remote_models(config):
            progress.say("downloading the models")
            problems = check(config, progress.say, download=True)
        if problems:
            raise UserError(problems)
        progress.stop()
        results = run_study(make_setup(prepared(config, progress)), progress)
    from rich.console import Console

    run_dir = Path(config["run_dir"])
    console = Console()
    console.print(results_table(results))
    found = verdict(results)
    for sentence in (found.headline, *found.sentences):
        console.print(sentence, markup=False, highlight=False)
    console.print()
    for name in ("best/model", "best/recipe.yaml", "results.json", "report.html"):
        print(f"{name:16}  {run_dir / name}")
    return 0


def check_command(arguments: list[str]) -> int:
    """Lists what is wrong with a study.

    Raises:
        UserError: with all of it.
    """
    from evomerge.check import check
    from evomerge.study_scale import described

    if "-h" in arguments or "--help" in arguments:
        print("python -m evomerge check +experiment=NAME [KEY=VALUE ...]\n\n"
              "Lists everything that is wrong with a study and runs nothing.\n"
              "exit codes: 0 nothing is wrong, 2 something is.")  # fmt: skip
        return 0
    overrides, directory = _split_directory(arguments)
    config = compose_config(overrides, directory)
    problems = check(config, print)
    for line in described(config):
        print(line)
    if problems:
        raise UserError(problems)
    print("nothing is wrong")
    return 0


def pool_command(arguments: list[str]) -> int:
    """Says how far the sources lie apart."""
    from evomerge.pool_command import USAGE
    from evomerge.pool_command import pool_command as shown

    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    rest = [a for a in arguments if a != "--json"]
    overrides, directory = _split_directory(rest)
    return shown(compose_config(overrides, directory), as_json=rest != arguments)


def status_command(arguments: list[str]) -> int:
    """Says how far studies are, named by run directories or by their own arguments."""
    from evomerge.status_command import status_command as shown

    return shown(arguments, lambda given: compose_config(*_split_directory(given)))


# -- configuration ----------------------------------------------------------------------------


def compose_config(overrides: list[str], directory: Path | None = None) -> dict[str, Any]:
    """The resolved config as plain data.

    Raises:
        ConfigError: naming the key at fault.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register()
    if directory is not None:
        overrides = [f"hydra.searchpath=[file://{directory.resolve()}]", *overrides]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            config = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            beside = partial(_keys_below, overrides=overrides)
            raise explained(error, beside, directory) from error
    return _plain(config)


def _plain(config: Any) -> dict[str, Any]:
    from dataclasses import fields

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from evomerge.config import Config
    from evomerge.warm_start import resolve_runs

    if OmegaConf.is_missing(config.models, "base"):
        raise ConfigError.of(
            "models", "nothing", "a base and sources",
            f"Choose an experiment: +experiment=NAME ({', '.join(options('experiment'))}).",
        )  # fmt: skip
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explained(error) from error
    out: dict[str, Any] = {str(k): v for k, v in dict(plain).items()}  # type: ignore[arg-type]
    for key in ("tasks", "objectives", "constraints", "report_tasks"):
        out[key] = out.get(key) or {}
    gone = [f.name for f in fields(Config) if f.name not in out]
    if gone:
        raise ConfigError.of(
            f"~{gone[0]}", "a key that every study has", "keys of experiments and components",
            f"Leave it out, or set {gone[0]}=VALUE.",
        )  # fmt: skip
    out["models"] = resolve_runs(out["models"])
    return out


def _register() -> None:
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from evomerge.config import Config
    from evomerge.zoo import zoo_path

    ConfigStore.instance().store("evomerge_schema", node=Config)
    if not OmegaConf.has_resolver("evomerge.zoo"):
        OmegaConf.register_new_resolver("evomerge.zoo", lambda rel: str(zoo_path(rel)))


def _hydra_main(arguments: list[str]) -> int:
    """Hydra's own command line, for its flags: sweeps, --cfg, --info.

    The jobs of a sweep may run in other processes and on other machines (`hydra/launcher`), so
    each leaves a note of what became of it.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    _register()
    notes = Notes(arguments)
    code = 0

    def job(config: DictConfig) -> int:
        return _job(config, notes)

    sys.argv = ["python -m evomerge", *forced(arguments)]
    command = hydra.main(f"pkg://{CONFIG_MODULE}", "config", version_base="1.3")
    try:
        command(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explained(error) from error
    except Exception:  # a job's process or machine was lost: the others have their results
        traceback.print_exc()
        print("error: a job of the sweep was lost; the same command goes on", file=sys.stderr)
        code = 1
    finally:
        jobs = notes.take()
    for run_dir, status in jobs:
        if status:
            print(f"error: {run_dir} ended with exit code {status}", file=sys.stderr)
    runs = [Path(run_dir) for run_dir, status in jobs if not status]
    if len(runs) > 1:
        from evomerge.report import write_comparison

        print(f"{'comparison':16}  {write_comparison(runs)}")
    return max([code, *(status for _, status in jobs)])


def _job(config: Any, notes: Notes) -> int:
    """One study of a sweep, in whatever process; notes its run directory and exit code."""
    _register()  # another process has not yet
    number = job_number()
    run_dir = f"job {number}"
    try:
        plain = _plain(config)
        run_dir = plain["run_dir"] = sweep_dir(plain)
        status = _study(plain)
    except EvomergeError as error:
        _complain(error)
        status = error.exit_code
    except Exception:  # the other studies of the sweep go on
        traceback.print_exc()
        status = 1
    notes.write(number, run_dir, status)
    return status


def _split_directory(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Takes `--config-dir DIR` (or `--config-dir=DIR`) out of the arguments."""
    arguments = [
        part
        for argument in arguments
        for part in (argument.split("=", 1) if argument.startswith("--config-dir=") else [argument])
    ]
    if "--config-dir" not in arguments:
        return arguments, None
    at = arguments.index("--config-dir")
    directory = Path(arguments[at + 1]) if at + 1 < len(arguments) else Path()
    if not directory.is_dir() or at + 1 >= len(arguments):
        raise ConfigError.of(
            "--config-dir", str(directory), "a folder", "Give the folder of your YAML files."
        )
    return arguments[:at] + arguments[at + 2 :], directory


def _keys_below(parent: str, overrides: Sequence[str]) -> list[str]:
    """Keys below a dotted one that the config holds or its component takes."""
    from inspect import signature

    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from evomerge.build import load_target

    others = [o for o in overrides if not o.startswith(f"{parent}.")]
    names: set[str] = set()
    with contextlib.suppress(HydraException, OmegaConfBaseException, UserError):
        node = OmegaConf.select(compose("config", overrides=others), parent)
        if isinstance(node, DictConfig):
            names.update(str(key) for key in node)
            if "_target_" in node:
                names.update(signature(load_target(dict(node), parent)).parameters)
    return sorted(names - {"_target_"})


def _groups() -> str:
    groups = ("experiment", "models", "task", "space", "optimizer", "estimator", "racing",
              "engine", "executor", "controls")  # fmt: skip
    lines = []
    for group in groups:
        with contextlib.suppress(FileNotFoundError):
            plus = "+" if group == "experiment" else ""
            lines.append(f"  {plus + group + '=':13}{' | '.join(options(group))}")
    return "\n".join(lines)


def _complain(error: EvomergeError) -> None:
    """Says what went wrong, unless the study's log did."""
    if hasattr(error, "shown"):
        return
    lines = _numbered(error) if isinstance(error, UserError) else [f"error: {error}"]
    for line in lines:
        print(line, file=sys.stderr)


def _numbered(error: UserError) -> Iterator[str]:
    count = len(error.problems)
    yield "1 problem:" if count == 1 else f"{count} problems:"
    for problem in error.problems:
        yield f"- {problem.field}: found {problem.found}"
        yield f"  expected {problem.expected}"
        yield f"  {problem.remedy}"


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt
