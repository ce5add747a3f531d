"""Functions that are strict where the answer may be text: no call is begun that does not fit its schema."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from pilocal.llamacpp.grammar import Form
from pilocal.server.form import read_form
from pilocal.server.tool_calls import parse
from pilocal.server.tool_family import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS, Family
from pilocal.server.tool_request import read_tools

FAMILIES = (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": PARAMETERS, "strict": True}},
    {"type": "function", "function": {"name": "now"}},
]
PLAIN = (
    "",
    "Hello.",
    "a < b | c",
    "<",
    "<tool",
    "<tool_cal",
    "<tool_ca<tool_",
    "[TOOL",
    "[[TOOL_CALL",
    "<|python_",
    "é\n[1]",
)
GOOD, BAD = ("add", '{"a": 12}'), (("add", '{"b": 1}'), ("add", '{"a": "x"}'), ("sub", '{"a": 1}'), ("add", "{}"))


def form(family: Family, **more: Any) -> Form:
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "add"}], "tools": TOOLS, **more}
    text = read_form(request, read_tools(request, family), family)
    assert text is not None
    return Form(text)


def before(family: Family) -> list[str]:
    """What may stand before a call."""
    return [""] if family is LLAMA else ["", "Well, ", "a < b and [1]\n", family.marks[0][:3] * 2]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_texts_go_through_and_calls_that_fit(family: Family) -> None:
    free = form(family)
    assert all(free.fits(text) for text in PLAIN)
    for text in before(family):
        for call in (GOOD, ("now", "{}")):
            assert free.fits(text + family.write([call]))
        assert free.fits(text + family.write([GOOD, ("now", "{}"), GOOD]))
        assert not form(family, parallel_tool_calls=False).fits(text + family.write([GOOD, GOOD]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_calls_that_do_not_fit_do_not(family: Family) -> None:
    free = form(family)
    for text in before(family):
        for call in BAD:
            assert not free.fits(text + family.write([call]))
            assert not free.fits(text + family.write([GOOD, call]))
    assert not free.fits("Well, " + family.marks[0])
    assert not free.fits(family.marks[0] + " of nothing")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_text_goes_through_unless_it_has_a_mark(family: Family) -> None:
    """A mark is found wherever it begins, also amid the beginning of another."""
    draw, free, mark = Random(7), form(family), family.marks[0]
    marked = 0
    for _ in range(300):
        parts = [mark[: draw.choice((1, 3, len(mark) - 1, len(mark)))] for _ in range(draw.randrange(1, 5))]
        text = "".join(part + draw.choice(("", "", "x", mark[0], " ")) for part in parts)
        assert free.fits(text) == (mark not in text), text
        marked += mark in text
    assert 20 < marked < 280


def test_a_text_that_begins_with_a_brace_is_a_call_where_calls_have_no_mark() -> None:
    free = form(LLAMA)
    for text in ('{"a": 1}', ' {"name": "add"', '\n{"name": "add", "parameters": {}}'):
        assert not free.fits(text)
    assert free.fits('It is {"a": 1}')


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_goes_through_is_read_as_it_was_meant(family: Family) -> None:
    for text in before(family):
        content, calls = parse(family, text + family.write([GOOD]), ["add", "now"], Random(1))
        assert content.strip() == text.strip()
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("add", {"a": 12})]


def test_functions_that_are_not_strict_leave_the_answer_free() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}]
    request = {"messages": [{"role": "user", "content": "add"}], "tools": tools}
    assert read_form(request, read_tools(request, HERMES), HERMES) is None
