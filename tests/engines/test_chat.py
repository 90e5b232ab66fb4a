"""Chat templates: the ids that engines see are those of the tokenizer's own template."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_family import Family, tokenizer

from evomerge.engines.tokens import Codec
from evomerge.engines.transformers import TransformersEngine
from evomerge.errors import ConfigError
from evomerge.tasks.item_task import ItemTask
from evomerge.types import Chat, Item, Sampling

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ {'system': 'w50', 'user': 'w51'}[m.role] }} "
    "{{ m.content }} w52{% endfor %}{% if add_generation_prompt %} w53 {% endif %}"
)


@pytest.fixture
def chatty(make_family: Callable[[bool], Family], tmp_path: Path) -> Path:
    """The random base with a chat template."""
    folder = tmp_path / "chatty"
    shutil.copytree(make_family(True).base, folder)
    own = tokenizer()
    own.chat_template = TEMPLATE
    own.save_pretrained(folder)
    return folder


def ids(text: str) -> list[int]:
    """Ids of words, the special tokens as words, nothing added."""
    return [int(i) for i in tokenizer()(text, add_special_tokens=False)["input_ids"]]


def test_a_chat_has_the_ids_of_its_template_and_one_beginning(chatty: Path) -> None:
    codec = Codec(chatty)
    for system, begin in (("", ""), ("w9 w8", "w50 w9 w8 w52 ")):
        chat = Chat("w1 w2", system)
        assert codec.encode(chat) == ids(f"<s> {begin}w51 w1 w2 w52 w53")
        told = codec.tokenizer.apply_chat_template(
            chat.turns(), add_generation_prompt=True, return_dict=False
        )
        assert codec.encode(chat) == told
        assert codec.encode(chat).count(1) == 1
    assert codec.encode("w1") == ids("<s> w1")
    assert codec.prompts([Chat("w1"), "w1", [5, 6]])[1:] == [ids("<s> w1"), [5, 6]]


def test_a_right_answer_stands_behind_the_generation_prompt(chatty: Path) -> None:
    joint, start = Codec(chatty).pair(Chat("w1"), "w3 w4")
    assert joint == ids("<s> w51 w1 w52 w53 w3 w4")
    assert joint[start:] == ids("w3 w4")


def test_an_engine_answers_a_chat_as_its_written_out_text(chatty: Path) -> None:
    engine = TransformersEngine(chatty)
    chat, ordinary = Chat("w1 w2"), "w51 w1 w2 w52 w53 "  # the tokenizer adds <s> here
    assert engine.generate([chat], Sampling(8)) == engine.generate([ordinary], Sampling(8))
    assert engine.generate([chat], Sampling(8)) != engine.generate(["w1 w2"], Sampling(8))
    np.testing.assert_array_equal(
        engine.loglikelihood([(chat, "w3 w4")]), engine.loglikelihood([(ordinary, "w3 w4")])
    )


def test_a_model_without_a_template_and_a_refused_chat_are_named(
    make_family: Callable[[bool], Family], chatty: Path
) -> None:
    with pytest.raises(ConfigError, match=r"task\.chat_template.*no template"):
        Codec(make_family(True).base).encode(Chat("w1"))
    codec = Codec(chatty)
    codec.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ConfigError, match=r"task\.chat_template.*no system here"):
        codec.encode(Chat("w1", "w2"))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"chat_template": "yes"}, r"task\.chat_template: found 'yes'"),
        ({"chat_template": True, "system": 3}, r"task\.system: found 3"),
        ({"system": "Be brief."}, r"task\.system.*none without a chat template"),
    ],
)
def test_a_task_names_chat_settings_that_cannot_be(settings: dict[str, object], field: str) -> None:
    task = ItemTask("t", "a.csv", "b.csv", "c.csv", **settings)  # type: ignore[arg-type]
    assert any(re.search(field, str(p)) for p in task.validate())


def test_a_task_makes_chats_of_its_prompts() -> None:
    item = Item("1", {"question": "w1"}, "w2")
    task = ItemTask("t", "a", "b", "c", chat_template=True, system="w9")
    asked = task.prompt(item)
    assert isinstance(asked, Chat) and (asked, asked.system) == ("w1", "w9")
    assert not isinstance(ItemTask("t", "a", "b", "c").prompt(item), Chat)
