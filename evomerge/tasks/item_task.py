"""A task whose items come from files or datasets."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat, TypeVar

from evomerge.errors import Problem, TaskError
from evomerge.tasks.carve import Carve, carve
from evomerge.tasks.overlap import find_overlaps
from evomerge.tasks.readers import Row
from evomerge.tasks.sampling import make_sampling
from evomerge.tasks.scorers import Exact, Scorer, make_scorer
from evomerge.tasks.sources import Source
from evomerge.tasks.template import Template, TemplateError
from evomerge.types import SPLITS, Chat, Item, Sampling

T = TypeVar("T")


class ItemTask:
    """Asks the items of files or datasets, and scores the answers.

    Nothing is read before the first use, and construction never fails: `validate` lists what is
    wrong, and `items` raises it.

    Args:
        name: name of the task.
        search: where the items of the search come from: a path or a mapping, see `Source`.
        validation: the same, or `{split_from: search, fraction: 0.2}` to take a fixed share of
            another split's items, chosen by the hash of their ids.
        test: the held-out items; the same forms.
        id: column of the ids, unique over all splits; None for a hash of the row's content.
        prompt: template over the columns, such as "{question}"; see `Template`.
        target: template of the answer that the scorer compares with.
        gold: template of the complete text of a right answer, for the log-likelihood.
        target_pattern: regular expression; where it matches a target, its first group (or the
            whole match) becomes the target, stripped. Other targets stay as they are.
        scorer: a callable `(item, text) -> float`, or see `make_scorer`.
        sampling: how the answers are generated: a mapping, see `make_sampling`.
        chat_template: whether the prompt is a user's turn for the chat template of the tokenizer,
            which then brings the special tokens and the beginning of the answer.
        system: text of the system's turn before it, for a chat; empty for none.
        loglik_weight: weight of the mean log-likelihood a token (nats) in an item's fitness.
        key: config key of this task, for messages.
    """

    def __init__(
        self,
        name: str,
        search: object,
        validation: object,
        test: object,
        id: str | None = None,
        prompt: str = "{question}",
        target: str = "{answer}",
        gold: str = "",
        target_pattern: str | None = None,
        scorer: object = "exact",
        sampling: object = None,
        chat_template: bool = False,
        system: str = "",
        loglik_weight: float = 0.0,
        key: str = "task",
    ) -> None:
        self.name = name
        self._key = key
        self._config_problems: list[Problem] = []
        self._id = id
        templates = {"prompt": prompt, "target": target, "gold": gold}
        empty = Template("", ())
        self._templates = {
            part: self._try(self._template, empty, part, text) for part, text in templates.items()
        }
        self._pattern = self._try(self._compile, None, target_pattern)
        fallback: Scorer = Exact()
        self._scorer = self._try(make_scorer, fallback, scorer, f"{key}.scorer")
        self.sampling = self._try(make_sampling, Sampling(), sampling, f"{key}.sampling")
        self._system: str | None = self._try(self._chat, None, chat_template, system)
        self.loglik_weight = self._try(self._weight, 0.0, loglik_weight)
        specs = dict(zip(SPLITS, (search, validation, test), strict=True))
        parents = [split for split, spec in specs.items() if not Carve.is_meant(spec)]
        self._sources: dict[str, Source | None] = {}
        self._carves: dict[str, Carve | None] = {}
        for split, spec in specs.items():
            field = f"{key}.{split}"
            if split in parents:
                self._sources[split] = self._try(Source.of, None, spec, field)
            else:
                self._carves[split] = self._try(Carve.of, None, spec, split, parents, field)
        self._cache: dict[str, tuple[Item, ...]] = {}

    def items(self, split: str) -> Sequence[Item]:
        """The items of one of `SPLITS`, in the order of their source; read once.

        Raises:
            TaskError: the config, the source, a template or the ids are not usable.
        """
        if split not in SPLITS:
            known = ", ".join(SPLITS)
            raise TaskError.of("split", repr(split), f"one of {known}", "Name one of these.")
        if self._config_problems:
            raise TaskError(self._config_problems)
        if split not in self._cache:
            own = self._carves.get(split)
            self._load(own.split_from if own is not None else split)
        return self._cache[split]

    def prompt(self, item: Item) -> str:
        """The text that the model is given for an item; a `Chat` with `chat_template`."""
        text = self._templates["prompt"].render(item.fields)
        return text if self._system is None else Chat(text, self._system)

    def score(self, item: Item, text: str) -> float:
        """Plain score of an answer in [0, 1].

        Raises:
            TaskError: the scorer returned something else.
        """
        value = self._scorer(item, text)
        if not isinstance(value, SupportsFloat) or not 0.0 <= float(value) <= 1.0:
            raise TaskError.of(
                f"{self._key}.scorer",
                f"the score {value!r} of item {item.id!r}",
                "a number in [0, 1]",
                "Correct the scorer, or scale what it returns.",
            )
        return float(value)

    def validate(self) -> list[Problem]:
        """Everything wrong with the task, read or not; empty if it can be used.

        Reads all splits. Besides what `items` raises, finds items that two splits share (by id or
        by prompt text), targets that no answer could match, and missing gold answers.
        """
        problems: list[Problem] = []
        loaded: dict[str, Sequence[Item]] = {}
        for split in SPLITS:
            try:
                loaded[split] = self.items(split)
            except TaskError as error:
                problems += error.problems
        overlaps = find_overlaps(loaded, self.prompt)
        problems += [overlap.problem(self._key) for overlap in overlaps]
        for split, items in loaded.items():
            problems += self._unanswerable(split, items)
        return list(dict.fromkeys(problems))

    def _load(self, split: str) -> None:
        """Reads the source of a split, and divides its items among those carved out of it."""
        source = self._sources[split]
        if source is None:  # cannot be: the problem was raised above
            raise TaskError(self._config_problems)
        field = f"{self._key}.{split}"
        rows = source.read(field)
        items = [self._item(row, id) for row, id in zip(rows, self._ids(rows, field), strict=True)]
        shares = {
            name: own.fraction
            for name, own in self._carves.items()
            if own is not None and own.split_from == split
        }
        rest, carved = carve(items, shares, self.prompt)
        for name, part in {split: rest, **carved}.items():
            if not part:
                raise TaskError.of(
                    f"{self._key}.{name}",
                    f"no item left of {len(items)}",
                    "at least one item in every split",
                    "Give more items, or smaller fractions.",
                )
        self._cache.update({name: tuple(part) for name, part in {split: rest, **carved}.items()})

    def _ids(self, rows: Sequence[Row], field: str) -> list[str]:
        """The rows' ids: from the column, or else by content, repeated rows numbered from 2."""
        if self._id is None:
            seen: Counter[str] = Counter()
            ids = []
            for row in rows:
                text = json.dumps(row, sort_keys=True)
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                seen[digest] += 1
                ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
            return ids
        for number, row in enumerate(rows, start=1):
            if not row.get(self._id):
                found = f"the column {self._id!r}, which is missing or empty in row {number}"
                remedy = f"Set {self._key}.id to another column, or to null for ids by content."
                columns = "a column of ids; there are " + ", ".join(row)
                raise TaskError.of(f"{self._key}.id", f"{found} of {field}", columns, remedy)
        ids = [row[self._id] for row in rows]
        repeated = [id for id, count in Counter(ids).items() if count > 1]
        if repeated:
            raise TaskError.of(
                f"{self._key}.id",
                f"{len(repeated)} repeated ids in {field}, for example {repeated[0]!r}",
                "ids unique within the task",
                f"Set {self._key}.id to another column, or to null for ids by content.",
            )
        return ids

    def _item(self, row: Row, id: str) -> Item:
        parts = {}
        for part, template in self._templates.items():
            try:
                parts[part] = template.render(row)
            except TemplateError as error:
                raise TaskError.of(
                    f"{self._key}.{part}",
                    str(error),
                    "the columns of every row",
                    "Correct the template; for a file without a header line, name its columns.",
                ) from None
        target = parts["target"]
        match = self._pattern.search(target) if self._pattern is not None else None
        if match is not None:
            target = (match.group(1) if match.re.groups else match.group()) or ""
            target = target.strip()
        return Item(id=id, fields=row, target=target, gold=parts["gold"])

    def _unanswerable(self, split: str, items: Sequence[Item]) -> list[Problem]:
        """Problems with the targets and gold answers of a split, one of each kind."""
        problems = []
        check: Callable[[Item], str | None] | None = getattr(self._scorer, "check", None)
        wrong = [(item, said) for item in items if check is not None and (said := check(item))]
        if wrong:
            item, said = wrong[0]
            problems.append(
                Problem(
                    f"{self._key}.target",
                    f"{len(wrong)} items of {split} whose target cannot be met, for example item "
                    f"{item.id!r}: {said}",
                    "targets that the scorer can compare",
                    f"Correct {self._key}.target or .target_pattern, or choose another scorer.",
                )
            )
        if self.loglik_weight and not all(item.gold for item in items):
            problems.append(
                Problem(
                    f"{self._key}.gold",
                    f"empty gold answers in {split}",
                    "a gold answer for every item, as loglik_weight is not 0",
                    f"Set {self._key}.gold to a template, or {self._key}.loglik_weight to 0.",
                )
            )
        return problems

    def _try(self, make: Callable[..., T], otherwise: T, *arguments: Any) -> T:
        """What `make` makes of the arguments; if it fails, its problems are kept for later."""
        try:
            return make(*arguments)
        except TaskError as error:
            self._config_problems += error.problems
            return otherwise

    def _template(self, part: str, text: object) -> Template:
        field = f"{self._key}.{part}"
        if not isinstance(text, str):
            raise TaskError.of(field, repr(text), "a template, as text", f"Correct {field}.")
        try:
            return Template.parse(text)
        except TemplateError as error:
            expected = "a template of text and {column} places"
            raise TaskError.of(field, str(error), expected, f"Correct {field}.") from None

    def _compile(self, pattern: str | None) -> re.Pattern[str] | None:
        try:
            return None if pattern is None else re.compile(pattern)
        except (re.error, TypeError) as error:
            field = f"{self._key}.target_pattern"
            expected = "a regular expression"
            raise TaskError.of(field, f"{pattern!r} ({error})", expected, "Correct it.") from None

    def _chat(self, chat: object, system: object) -> str | None:
        """The system's text for chats; None where there are none."""
        for key, value, kind, expected in (
            ("chat_template", chat, bool, "true or false"),
            ("system", system, str, "a text"),
        ):
            if not isinstance(value, kind):
                field = f"{self._key}.{key}"
                raise TaskError.of(field, repr(value), expected, f"Correct {field}.")
        if system and not chat:
            raise TaskError.of(
                f"{self._key}.system", repr(system), "none without a chat template",
                f"Set {self._key}.chat_template to true, or write it into the prompt.",
            )  # fmt: skip
        return str(system) if chat else None

    def _weight(self, weight: object) -> float:
        number = float(weight) if isinstance(weight, (int, float)) else math.nan
        if not isinstance(weight, bool) and math.isfinite(number) and number >= 0:
            return number
        field = f"{self._key}.loglik_weight"
        raise TaskError.of(field, repr(weight), "a number of at least 0", f"Correct {field}.")
