"""The `replay` verb: whether a recorded merge gives the same answers again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from evomerge.markdown import printable
from evomerge.progress import Progress
from evomerge.recorded import find, open_recorded
from evomerge.replaying import (
    Comparison,
    changed_versions,
    current_tasks,
    recorded_answers,
    replay,
)
from evomerge.report.numbers import p_value, percent, points, points_interval

_SHOWN = 10  # items that differ
_LENGTH = 90  # characters of an answer
_SIGNIFICANT = 0.05

EPILOG = """\
CANDIDATE is a candidate's number, best, or a name of results.json. It answers the items that it
answered in the study, in the same portions, with the study's own engine, threads and settings, in
one process of its own. Nothing that is remembered of it is used; the run directory stays as it is.

exit codes: 0 it reproduces: every score and every text is the same; 1 it does not, or cannot be
evaluated; 2 a mistake in the arguments, or models or items that are no longer those of the study.

examples:
  python -m evomerge replay runs/jp_math_tiny/seed0 17
  python -m evomerge replay runs/jp_math_tiny/seed0 best --held-out
"""


def replay_command(arguments: Sequence[str]) -> int:
    """Runs the verb with its arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    study = open_recorded(options.run, options.model)
    chosen = find(study, options.candidate)
    portions = recorded_answers(study, chosen, options.held_out)
    tasks = current_tasks(study, portions)
    with Progress() as progress:
        count = sum(len(part) for portion in portions for part in portion)
        progress.say(f"{chosen.name}: {count} items are answered anew")

        def report(done: int, total: int) -> None:
            progress.step(done, total, "portions")

        progress.start("replaying", 0, sum(map(len, portions)))
        found = replay(study, chosen, portions, tasks, progress.say, report)
    same = all(one.same for one in found)
    for one in found:
        for line in compared(one):
            print(line)
    changed = changed_versions(study)
    print("versions: " + ("the same as then" if not changed else "; ".join(changed)))
    if not same and not changed:
        print("With the same versions, answers differ where two tokens nearly tie and the batches,")
        print("the number of threads or the processor are others than then.")
    print(f"{chosen.name} {'reproduces' if same else 'does not reproduce'}")
    return 0 if same else 1


def compared(one: Comparison) -> Iterator[str]:
    """A comparison in lines."""
    count = len(one.ids)
    scores, texts = one.scores_differ, one.texts_differ
    yield f"{printable(one.task)}, {one.split} items:"
    yield f"  scores  {count - len(scores)} of {count} the same"
    yield f"  texts   {count - len(texts)} of {count} the same"
    if one.loglik_gap is not None:
        yield f"  log-likelihoods differ by at most {one.loglik_gap:.2g} nats"
    then, now = float(one.then.scores.mean()), float(one.now.scores.mean())
    if then == now:
        yield f"  mean    {percent(then)} then and now"
    else:
        yield f"  mean    {percent(then)} then, {percent(now)} now"
        yield f"          {meaning(one)}"
    differ = sorted({*scores, *texts}, key=lambda place: (place not in scores, place))
    for place in differ[:_SHOWN]:
        was, is_ = float(one.then.scores[place]), float(one.now.scores[place])
        yield f"  {printable(one.ids[place])}: score {was:g} then, {is_:g} now"
        if place in texts:
            yield f"    then: {_short(one.then.texts[place])}"
            yield f"    now:  {_short(one.now.texts[place])}"
    if len(differ) > _SHOWN:
        yield f"  and {len(differ) - _SHOWN} more items"


def meaning(one: Comparison) -> str:
    """What a difference of the means says."""
    test = one.paired()
    said = f"{points(test.difference)} {points_interval(test.low, test.high)}, {p_value(test.p)}: "
    if test.p < _SIGNIFICANT:
        return said + "more than chance on these items explains; something has changed"
    return said + "no more than chance on these items explains"


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LENGTH else f"{shown[: _LENGTH - 3]}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evomerge replay",
        description="Evaluates one merge of a study again and says whether it reproduces.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a study's run_dir")
    parser.add_argument("candidate", metavar="CANDIDATE", help="a number, best or a name")
    parser.add_argument("--held-out", action="store_true",
                        help="the validation and test items that it was measured on")  # fmt: skip
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH",
                        help="where a source, or base, is now, if it was moved")  # fmt: skip
    return parser
