"""Records and rows: one prompt, one border, one BOS, and the same completion in every stage."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.prompt.render import render
from pilocal.prompt.tokens import end_tokens, prompt_tokens, token_counter, tokenize
from pilocal.task import Example

SHOTS = [Example(id=str(i), query=f"ask {i}", answer=f"say {i}") for i in range(3)]
ASKED = Example(id="q", query="please dim the lamp in the kitchen", answer="send ZOR, MIP", history=())


@pytest.fixture(scope="module")
def tokenizer(starter: Base) -> Any:
    return starter.tokenizer


def test_the_completion_is_identical_in_every_stage(tokenizer: Any) -> None:
    rows = [
        tokenize(render(template, SHOTS[:k], ASKED), tokenizer)
        for template, k in (("Long rules.\n\n- a\n- b", 3), ("Rules.", 1), ("", 2), ("", 0))
    ]
    assert len({row.completion for row in rows}) == 1
    assert tokenizer.decode(rows[0].completion) == "send ZOR, MIP<|eot_id|>"


def test_the_query_is_rendered_the_same_in_every_stage_and_at_serving(tokenizer: Any) -> None:
    turn = tokenizer.encode(
        "<|start_header_id|>user<|end_header_id|>\n\nplease dim the lamp in the kitchen<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        add_special_tokens=False,
    )
    for template, k in (("Rules.", 3), ("", 0)):
        row = tokenize(render(template, SHOTS[:k], ASKED), tokenizer)
        assert list(row.tokens[: row.offset])[-len(turn) :] == turn
    assert list(row.tokens[1 : row.offset]) == turn


def test_there_is_exactly_one_bos(tokenizer: Any) -> None:
    row = tokenize(render("Rules.", SHOTS, ASKED), tokenizer)
    assert row.tokens.count(tokenizer.bos_token_id) == 1
    assert row.tokens[0] == tokenizer.bos_token_id


def test_the_prompt_of_a_row_is_what_is_asked_at_inference(tokenizer: Any) -> None:
    record = render("Rules.", SHOTS, ASKED)
    row = tokenize(record, tokenizer)
    assert list(row.tokens[: row.offset]) == prompt_tokens(record["messages"][:-1], tokenizer)


def test_the_last_token_of_a_completion_ends_the_turn(tokenizer: Any) -> None:
    row = tokenize(render("", [], ASKED), tokenizer)
    assert row.tokens[-1] in end_tokens(tokenizer)
    assert not set(row.completion[:-1]) & end_tokens(tokenizer)


def test_a_multi_turn_example_keeps_its_history_in_the_prompt(tokenizer: Any) -> None:
    asked = Example(id="m", query="c", answer="d", history=(("user", "a"), ("assistant", "b")))
    record = render("", [], asked)
    assert [message["content"] for message in record["messages"]] == ["a", "b", "c", "d"]
    assert tokenizer.decode(tokenize(record, tokenizer).completion) == "d<|eot_id|>"


def test_a_chat_template_that_rewrites_the_prompt_is_refused(tokenizer: Any) -> None:
    rewriting = deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="rewrites the prompt"):
        tokenize(render("", [], ASKED), rewriting)


def test_what_stands_only_before_the_answer_that_is_asked_for_is_of_the_prompt(tokenizer: Any) -> None:
    thinking = deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% if not enable_thinking %}(){% endif %}{% endif %}"
    )
    asked = Example(id="m", query="c", answer="d", history=(("user", "a"), ("assistant", "b")))
    row = tokenize(render("", [], asked), thinking)
    assert thinking.decode(row.tokens[: row.offset]).endswith(
        "[user]a<|eot_id|>[assistant]b<|eot_id|>[user]c<|eot_id|>[assistant]()"
    )
    assert thinking.decode(row.completion) == "d<|eot_id|>"


def test_counting_tokens_leaves_bos_out(tokenizer: Any) -> None:
    assert token_counter(tokenizer)("") == 0
