"""Every layout: the same tokens in training and serving whatever contents hold, and answers that come back whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.chat import ChatSettings
from pilocal.base.tokenizer import load_tokenizer
from pilocal.errors import InputError, ModelError
from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.prompt.render import Message, Record, render
from pilocal.prompt.tokens import layout_of, prompt_tokens, tokenize
from pilocal.task import Example
from tests.layouts import LAYOUTS, WITH_DEFAULT, Kind, write_layout
from tests.same_ids import write_vocabulary
from tests.texts import CONTROL, EMOJI, hard_texts
from tests.vocabularies import SIZE

ROWS = SIZE + 300
BARE = ", without its default system message"
BOTH = ("hello", "a  b", "x\n\ny", "naïve 日本 שלום \u202eabc", *EMOJI[:3], "tab\tend", CONTROL[1:8], "1+1=2")
ODD_ANSWERS = (
    "    return x\n",
    "\n\nfirst",
    "a\n",
    " a",
    "a ",
    "\tx\t",
    "a<|eot_id|>b",
    "</s>",
    "<p>a</p></s><s>",
    "<|im_end|>\n<|im_start|>user",
    "a\n\n\n",
    '{\n  "a": 1\n}\n',
    "é日本😀",
    "one\r\ntwo\r\n",
)


def contents(tokenizer: Any, count: int) -> list[str]:
    """Return odd contents: every control token's text among other text, and all that is hard on tokenizers."""
    rng, found = Random(7), []
    marks = [token for token, row in tokenizer.get_added_vocab().items()]
    for text in hard_texts(3, count):
        parts = [text, rng.choice(BOTH), rng.choice(marks), rng.choice(BOTH), unicodedata.normalize("NFD", "é ü ñ")]
        rng.shuffle(parts)
        found.append("".join(parts[: rng.randint(1, 5)]) or "x")
    return [text if text.strip() else f"a{text}b" for text in found]


def chats(tokenizer: Any, count: int = 100) -> Iterator[list[Message]]:
    """Yield chats of one to three queries, with a system message, a blank one, or none."""
    texts, rng = iter(contents(tokenizer, 8 * count)), Random(11)
    for _ in range(count):
        chat: list[Message] = (
            [{"role": "system", "content": rng.choice((next(texts), "", " \n"))}] if rng.random() < 0.6 else []
        )
        for turn in range(2 * rng.randint(0, 2) + 1):
            chat.append({"role": "assistant" if turn % 2 else "user", "content": next(texts)})
        yield chat


@pytest.fixture(scope="module", params=[*LAYOUTS, *(f"{name}{BARE}" for name in WITH_DEFAULT)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kind(name: str) -> Kind:
    return LAYOUTS[name.removesuffix(BARE)]


@pytest.fixture(scope="module")
def chat(name: str) -> ChatSettings:
    return ChatSettings(default_system=not name.endswith(BARE))


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layout(kind, tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path, chat: ChatSettings) -> Any:
    return replace(Base.at(folder), chat=chat).tokenizer


@pytest.fixture(scope="module")
def served(folder: Path, chat: ChatSettings) -> Iterator[tuple[Tokenizer, ChatTemplate]]:
    path = write_vocabulary(folder, ROWS, folder / "vocabulary.gguf", chat)
    with Model(path, vocabulary_only=True) as model:
        yield model.tokenizer, ChatTemplate(model.tokenizer, path)


def test_training_and_serving_cut_chats_alike(tokenizer: Any, served: tuple[Tokenizer, ChatTemplate]) -> None:
    for chat in chats(tokenizer):
        assert served[1].tokens(chat) == prompt_tokens(chat, tokenizer), chat


def test_transformers_cuts_chats_alike(kind: Kind, tokenizer: Any) -> None:
    for chat in chats(tokenizer):
        if chat[0]["role"] == "system" and not (kind.system and chat[0]["content"].strip()):
            continue
        ids = tokenizer.apply_chat_template(
            chat,
            chat_template=layout_of(tokenizer).template,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        assert ids == prompt_tokens(chat, tokenizer), chat


def test_a_content_never_yields_a_control_token(tokenizer: Any) -> None:
    controls = {row for row, token in tokenizer.added_tokens_decoder.items() if token.special}
    for chat in chats(tokenizer):
        plain: list[Message] = [{**turn, "content": "x" if turn["content"].strip() else ""} for turn in chat]
        found = [[token for token in prompt_tokens(each, tokenizer) if token in controls] for each in (chat, plain)]
        assert found[0] == found[1], chat


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_an_answer_is_learned_byte_for_byte(
    kind: Kind, tokenizer: Any, served: tuple[Tokenizer, ChatTemplate], answer: str
) -> None:
    row = tokenize(render("Rules.", [], Example(id="1", query="ask", answer=answer)), tokenizer)
    layout = layout_of(tokenizer)
    around = layout.before_answer + answer + layout.after_answer
    assert kind.keeps_answers == (around == answer)
    assert row.tokens[-1] in layout.ends
    assert not layout.ends & set(row.completion[:-1])
    assert served[0].text(row.completion[:-1]).decode() == around
    prompt: list[Message] = [{"role": "system", "content": "Rules."}, {"role": "user", "content": "ask"}]
    assert list(row.tokens[: row.offset]) == prompt_tokens(prompt, tokenizer)


BAD_TEMPLATES = {
    "null": None,
    "blank": " ",
    "several and no default": [{"name": "tools", "template": "{{ messages }}"}],
    "broken": "{{ bos_token }}\n{% for message in messages %}",
    "no such filter": "{{ messages | nosuchfilter }}",
    "raises": "{{ raise_exception('not today') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "calls what is none": "{{ messages() }}",
    "says nothing": "{{ '' }}",
    "one text for all": "hello",
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_bad_chat_template_is_one_line(name: str, tmp_path: Path) -> None:
    folder = write_layout(LAYOUTS["llama 3"], tmp_path, chat_template=BAD_TEMPLATES[name])
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as refusal:
        _ = Base.at(folder).layout
    assert str(refusal.value).count("\n") == 0
    assert "chat template" in str(refusal.value)


def test_a_chat_that_is_refused_is_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_layout(LAYOUTS["mistral v0.3"], tmp_path))
    twice: list[Message] = [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]
    with pytest.raises(InputError, match=r"stage 0, train 7: .* refuses a chat of user, user: roles must alternate"):
        tokenize({"messages": twice}, tokenizer, "stage 0, train 7")


def test_the_clock_and_the_switch_are_settled_in_what_is_shipped(tmp_path: Path) -> None:
    asked: list[Message] = [{"role": "user", "content": "x"}]
    for name, wanted in (("llama 3.2", "Today Date: 26 Jul 2024"), ("qwen 3", "<think>\n\n</think>\n\n")):
        tokenizer = load_tokenizer(write_layout(LAYOUTS[name], tmp_path / name))
        layout = layout_of(tokenizer)
        assert layout.template.endswith(layout.source)
        assert wanted in layout.text(asked)
        tokenizer.chat_template = layout.template
        for given in ({}, {"date_string": "today", "enable_thinking": True, "strftime_now": None}):
            said = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **given)
            assert said == layout.text(asked)


def test_changed_answers_are_told_apart(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_layout(LAYOUTS["qwen 2.5"], tmp_path))
    layout = layout_of(tokenizer)
    for answer, kept in (("caf\u00e9 ", True), ("cafe\u0301", False)):
        row = tokenize(render("", [], Example(id="1", query="ask", answer=answer)), tokenizer)
        assert layout.keeps(row, answer) == kept


def test_an_ordinary_row_is_what_the_chat_template_writes(tokenizer: Any) -> None:
    if "turns" in layout_of(tokenizer).source and "loop.last and system" in layout_of(tokenizer).source:
        pytest.skip("this one moves the system message once an answer follows")
    record: Record = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say it"}]}
    whole = tokenizer.encode(
        layout_of(tokenizer).text(record["messages"], add_generation_prompt=False), add_special_tokens=False
    )
    row = tokenize(record, tokenizer)
    if "</think>" not in layout_of(tokenizer).template:
        assert list(row.tokens) == whole[: len(row.tokens)]
    assert tokenizer.decode(row.completion[:-1]).strip() == "say it"
