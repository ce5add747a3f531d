"""Every layout: the same tokens in training and serving whatever contents hold, and answers that come back whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from pilocal.base.base import Base
from pilocal.base.chat import ChatSettings
from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.prompt.render import render
from pilocal.prompt.tokens import layout_of, prompt_tokens, tokenize
from pilocal.task import Example
from tests.layouts import LAYOUTS, WITH_DEFAULT, write_layout
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
    "\n",
    '{\n  "a": 1\n}\n',
    "é日本😀",
    "one\r\ntwo\r\n",
)


def contents(tokenizer, count: int) -> list[str]:
    """Return odd contents: every control token's text among other text, and all that is hard on tokenizers."""
    rng, found = Random(7), []
    marks = [token for token, row in tokenizer.get_added_vocab().items()]
    for text in hard_texts(3, count):
        parts = [text, rng.choice(BOTH), rng.choice(marks), rng.choice(BOTH), unicodedata.normalize("NFD", "é ü ñ")]
        rng.shuffle(parts)
        found.append("".join(parts[: rng.randint(1, 5)]) or "x")
    return [text if text.strip() else f"a{text}b" for text in found]


def chats(tokenizer, count: int = 100) -> Iterator[list[dict[str, str]]]:
    """Yield chats of one to three queries, with a system message, a blank one, or none."""
    texts, rng = iter(contents(tokenizer, 8 * count)), Random(11)
    for _ in range(count):
        chat = [{"role": "system", "content": rng.choice((next(texts), "", " \n"))}] if rng.random() < 0.6 else []
        for turn in range(2 * rng.randint(0, 2) + 1):
            chat.append({"role": "assistant" if turn % 2 else "user", "content": next(texts)})
        yield chat


@pytest.fixture(scope="module", params=[*LAYOUTS, *(f"{name}{BARE}" for name in WITH_DEFAULT)])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def kind(name):
    return LAYOUTS[name.removesuffix(BARE)]


@pytest.fixture(scope="module")
def chat(name):
    return ChatSettings(default_system=not name.endswith(BARE))


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return write_layout(kind, tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def tokenizer(folder, chat):
    return replace(Base.at(folder), chat=chat).tokenizer


@pytest.fixture(scope="module")
def served(folder, chat):
    path = write_vocabulary(folder, ROWS, folder / "vocabulary.gguf", chat)
    with Model(path, vocabulary_only=True) as model:
        yield model.tokenizer, ChatTemplate(model.tokenizer, path)


def test_training_and_serving_cut_chats_alike(tokenizer, served):
    for chat in chats(tokenizer):
        assert served[1].tokens(chat) == prompt_tokens(chat, tokenizer), chat


def test_transformers_cuts_chats_alike(kind, tokenizer):
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


def test_a_content_never_yields_a_control_token(tokenizer):
    controls = {row for row, token in tokenizer.added_tokens_decoder.items() if token.special}
    for chat in chats(tokenizer):
        plain = [{**message, "content": "x" if message["content"].strip() else ""} for message in chat]
        found = [[token for token in prompt_tokens(each, tokenizer) if token in controls] for each in (chat, plain)]
        assert found[0] == found[1], chat


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_an_answer_is_learned_byte_for_byte(kind, tokenizer, served, answer):
    row = tokenize(render("Rules.", [], Example(id="1", query="ask", answer=answer)), tokenizer)
    layout = layout_of(tokenizer)
    around = layout.before_answer + answer + layout.after_answer
    assert kind.keeps_answers == (around == answer)
    assert row.tokens[-1] in layout.ends
    assert not layout.ends & set(row.completion[:-1])
    assert served[0].text(row.completion[:-1]).decode() == around
    prompt = [{"role": "system", "content": "Rules."}, {"role": "user", "content": "ask"}]
    assert list(row.tokens[: row.offset]) == prompt_tokens(prompt, tokenizer)


def test_an_ordinary_row_is_what_the_chat_template_writes(tokenizer):
    if "turns" in layout_of(tokenizer).source and "loop.last and system" in layout_of(tokenizer).source:
        pytest.skip("this one moves the system message once an answer follows")
    record = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say it"}]}
    whole = tokenizer.encode(
        layout_of(tokenizer).text(record["messages"], add_generation_prompt=False), add_special_tokens=False
    )
    row = tokenize(record, tokenizer)
    if "</think>" not in layout_of(tokenizer).template:
        assert list(row.tokens) == whole[: len(row.tokens)]
    assert tokenizer.decode(row.completion[:-1]).strip() == "say it"
