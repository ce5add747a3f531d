"""Tool calls in what a model writes: which family, whole and streamed, well-formed and not."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.server.tool_calls import CallStream, join, parse
from pilocal.server.tool_family import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS, Family
from tests.json_values import CALLS, NAMES

FAMILIES = (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS)
LISTING = (HERMES, LLAMA, MISTRAL)
"""The families whose calls are objects with a name in them."""
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def read(family: Family, text: str, **options: Any) -> tuple[str, list[tuple[str, str]]]:
    """Return the content and the calls without their ids."""
    content, calls = parse(family, text, NAMES, Random(1), **options)
    return content, [(call.name, call.arguments) for call in calls]


def streamed(family: Family, pieces: list[str], **options: Any) -> list[dict[str, Any]]:
    stream = CallStream(family, NAMES, Random(1), **options)
    return [delta for piece in pieces for delta in stream.feed(piece)] + stream.end()


def cut(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


PLACES = st.lists(st.integers(0, 10_000), max_size=30)
BITS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]123456789",
            "<tool_",
            "[",
        ),
        *(
            "<think>",
            "</think>",
            "[THINK]",
            "[/THINK]",
            "{",
            "}",
            "]",
            ",",
            ";",
            ":",
            '"',
            "\\",
            "\n",
            " ",
            "é",
            "日本",
        ),
        *('{"name": "add", "arguments": {"a": 1}}', '{"name": "x", "parameters": {}}', '"name": "add"', "add", "Hello"),
        *(
            '{"parameters": {"b": [1, "}"]}, "name": "a-b_9"}',
            '"arguments": {',
            "-1.5e3",
            "01",
            "true",
            "null",
            "\\u00e9",
        ),
    ]
)
TEXTS = st.one_of(
    st.lists(BITS, max_size=12).map("".join),
    st.builds(
        lambda family, calls, bits, place: family.write(calls)[: place % 400] + "".join(bits),
        *(st.sampled_from(FAMILIES), CALLS, st.lists(BITS, max_size=5), st.integers(0, 400)),
    ),
)
OPTIONS = st.fixed_dictionaries({"eager": st.booleans(), "parallel": st.booleans()})


@each_family
@given(calls=CALLS, before=st.sampled_from(["", "Let me see.", "<b>", "\n\n"]), places=PLACES, eager=st.booleans())
def test_calls_are_read_as_they_were_written(
    family: Family, calls: list[tuple[str, str]], before: str, places: list[int], eager: bool
) -> None:
    if family is LLAMA and before.strip():
        before += "<|python_tag|>"
    text = f"{before}\n{family.write(calls)}\n"
    content, found = join(streamed(family, cut(text, places), eager=eager))
    assert [(call.name, call.arguments) for call in found] == calls
    assert content == before.removesuffix("<|python_tag|>").rstrip()


@each_family
@given(text=TEXTS, places=PLACES, options=OPTIONS)
@settings(max_examples=150)
def test_a_stream_is_the_whole_however_it_is_cut(
    family: Family, text: str, places: list[int], options: dict[str, bool]
) -> None:
    whole = parse(family, text, NAMES, Random(1), **options)
    assert join(streamed(family, cut(text, places), **options)) == whole
    assert join(streamed(family, list(text), **options)) == whole


@each_family
@given(text=TEXTS)
@settings(max_examples=150)
def test_nothing_is_lost_and_calls_are_whole(family: Family, text: str) -> None:
    content, calls = read(family, text)
    for name, arguments in calls:
        assert name in NAMES
        assert isinstance(json.loads(arguments), dict)
        assert arguments in text
    if not calls:
        assert content == text
    letters = iter(text)
    assert all(letter in letters for letter in content), "content has what was written, in its order"


@each_family
@given(text=st.text(st.sampled_from('<>[]|/{}"toolcaTOOL_pyhn \n'), max_size=40))
@settings(max_examples=200)
def test_content_is_held_back_only_where_a_call_may_begin(family: Family, text: str) -> None:
    stream, said = CallStream(family, NAMES, Random(1)), ""
    marks = (*family.marks, *family.thoughts)
    for end, character in enumerate(text, 1):
        said += join(stream.feed(character))[0]
        held = text[len(said) : end].lstrip()
        begins = any(mark.startswith(held) for mark in marks)
        assert begins or any(held.startswith(mark) for mark in family.marks) or (family is LLAMA and held[0] == "{")
    assert said + join(stream.end())[0] == text


@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        ('{"answer": 4', '2, "name": "add"}'),
        ('{"name": "Ann", "age": 7', "}"),
        ('{"type": 1, "x": {', "}}"),
        ('{"name": "add", "parameters": {}, "sure": t', "rue}"),
    ],
)
def test_a_json_answer_is_not_held_back_to_its_end(begin: str, rest: str) -> None:
    stream = CallStream(LLAMA, NAMES, Random(1))
    assert stream.feed(begin) == [{"content": begin}]
    assert join([*stream.feed(rest), *stream.end()]) == (rest, [])


def broken(call: str) -> list[str]:
    """Return a call in ways in which it is none."""
    return [
        call.replace('"add"', '"sub"'),
        call.replace('"add"', "add"),
        call.replace('"add"', "null"),
        call.replace('"add"', '["add"]'),
        call.replace('"name": "add", ', ""),
        call.replace('"name": "add"', '"name": "add", "name": "add"'),
        call.replace('{"a": 1}', '"{}"'),
        call.replace('{"a": 1}', "[1]"),
        call.replace('{"a": 1}', "null"),
        call.replace('{"a": 1}', ""),
        call.replace('{"a": 1}', '{"a": 1'),
        call.replace('{"a": 1}', '{"a": 1}}'),
        call.replace('{"a": 1}', '{"a": NaN}'),
        call.replace('{"a": 1}', '{"a": 01}'),
        call.replace('{"a": 1}', '{"a": "\n"}'),
        call.replace('{"a": 1}', '{"a": "\\x"}'),
        call.replace('{"a": 1}', "{'a': 1}"),
        call.replace('{"a": 1}', '{"a": 1,}'),
        call.replace('{"a": 1}', "{a: 1}"),
        call.replace('{"a": 1}', '{"a": ' + "[" * 1000 + "]" * 1000 + "}"),
        call.replace('"arguments"', '"args"').replace('"parameters"', '"args"'),
        call.replace('{"a": 1}', '{"a": 1}, "arguments": {}'),
        call[: call.index("1")],
        call[: call.index('"a"') + 2],
    ]


@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("family", LISTING, ids=lambda family: family.name)
def test_a_malformed_call_stays_content(family: Family, number: int) -> None:
    text = broken(family.write([("add", '{"a": 1}')]))[number]
    assert read(family, text) == (text, [])
    assert read(family, f"{text}\n") == (f"{text}\n", [])


@pytest.mark.parametrize("family", [MISTRAL_ARGS, MISTRAL_IDS], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("add", "sub"),
        ("add", ""),
        ("add", "add add"),
        ("add", "x" * 65),
        ("[ARGS]", "[ARG]"),
        ("[ARGS]", "[ARGS][ARGS]"),
        ('{"a": 1}', "[1]"),
        ('{"a": 1}', ""),
        ('{"a": 1}', '{"a": 1'),
        ('{"a": 1}', '{"a": tru}'),
        ('{"a": 1}', '"a"'),
    ],
)
def test_a_malformed_call_after_its_name_stays_content(family: Family, call: str, other: str) -> None:
    text = family.write([("add", '{"a": 1}')]).replace(call, other)
    assert read(family, text) == (text, [])


@pytest.mark.parametrize("family", LISTING, ids=lambda family: family.name)
def test_an_object_that_something_else_follows_stays_content(family: Family) -> None:
    text = family.write([("add", '{"a": 1}')]).removesuffix(family.closing).removesuffix("\n</tool_call>") + " is it"
    assert read(family, text) == (text, [])


@each_family
def test_a_good_call_counts_beside_a_bad_one(family: Family) -> None:
    calls = [("add", '{"a": 1}'), ("unknown", '{"b": "}"}'), ("get_weather", "{}")]
    for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1]):
        ordered = [calls[i] for i in order]
        content, found = read(family, family.write(ordered))
        assert found == [call for call in ordered if call[0] in NAMES]
        assert "unknown" in content
        assert '{"b": "}"}' in content
        assert "get_weather" not in content


@pytest.mark.parametrize(
    ("family", "text", "names", "content"),
    [
        (HERMES, '<tool_call>{"name": "add", "arguments": {}}', ["add"], ""),
        (HERMES, '<tool_call>{"name": "add", "arguments": {}}\n<tool_call>{"arguments": {}, "name": "add"}', 2, ""),
        (HERMES, '<tool_call> oh <tool_call>{"name": "add", "arguments": {}}</tool_call>', 1, "<tool_call> oh"),
        (HERMES, 'A\n<tool_call>{"name": "add", "arguments": {}}</tool_call>B', 1, "A\nB"),
        (HERMES, '{"name": "add", "arguments": {}}', 0, '{"name": "add", "arguments": {}}'),
        (LLAMA, '<|python_tag|>{"name": "add", "parameters": {}}', 1, ""),
        (LLAMA, '{"type": "function", "name": "add", "arguments": {}}', 1, ""),
        (LLAMA, '{"name": "add", "parameters": {}}\n{"name": "add", "parameters": {}}', 2, ""),
        (LLAMA, '{"name": "add", "parameters": {}};{"name": "add", "parameters": {}} ;', 2, ""),
        (LLAMA, '{"name": "add", "parameters": {}}\nDone.', 1, "Done."),
        (LLAMA, 'Say {"name": "add", "parameters": {}}', 0, 'Say {"name": "add", "parameters": {}}'),
        (LLAMA, '{"answer": 42}', 0, '{"answer": 42}'),
        (LLAMA, '<|python_tag|>brave_search.call(query="x")', 0, '<|python_tag|>brave_search.call(query="x")'),
        (MISTRAL, 'Hm.[TOOL_CALLS] [ {"name": "add", "arguments": {}, "id": "123456789"} ]', 1, "Hm."),
        (MISTRAL, "[TOOL_CALLS][]", 0, "[TOOL_CALLS][]"),
        (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {}}, {"name": "add", "argu', 1, '{"name": "add", "argu'),
        (MISTRAL, '[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]add{"a": 1}', 2, ""),
        (MISTRAL_ARGS, '[TOOL_CALLS][{"name": "add", "arguments": {}}]', 1, ""),
        (MISTRAL_IDS, "[TOOL_CALLS]add[CALL_ID]q0[ARGS] {}", 1, ""),
    ],
)  # fmt: skip
def test_what_models_write_otherwise(family: Family, text: str, names: Any, content: str) -> None:
    found = read(family, text)
    assert [name for name, _ in found[1]] == (names if isinstance(names, list) else ["add"] * names)
    assert found[0] == content


@pytest.mark.parametrize(
    ("family", "begin", "end"), [(HERMES, "<think>", "</think>"), (MISTRAL_ARGS, "[THINK]", "[/THINK]")]
)
def test_thoughts_hold_no_calls(family: Family, begin: str, end: str) -> None:
    call = family.write([("add", "{}")])
    thoughts = f"{begin}\nperhaps {call}?\n{end}"
    assert read(family, f"{thoughts}\n\n{call}") == (thoughts, [("add", "{}")])
    assert read(family, f"{begin} {call}") == (f"{begin} {call}", [])
    assert read(family, f"The mark {begin} {call}") == (f"The mark {begin}", [("add", "{}")])


@each_family
@pytest.mark.parametrize("eager", [False, True])
def test_deltas_are_openai_s(family: Family, eager: bool) -> None:
    calls = [("add", '{"a": "long enough"}'), ("get_weather", "{}")]
    text = ("" if family is LLAMA else "Well.\n") + family.write(calls)
    deltas = streamed(family, list(text), eager=eager)
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert all(len(delta) == 1 for delta in deltas)
    assert all(delta["content"] for delta in deltas if "content" in delta)
    begun = set[int]()
    for piece in pieces:
        function = piece["function"]
        if piece["index"] in begun:
            assert piece.keys() == {"index", "function"}
            assert function.keys() == {"arguments"}
            assert function["arguments"]
        else:
            assert piece.keys() == {"index", "id", "type", "function"}
            assert function == {"name": calls[piece["index"]][0], "arguments": ""}
            assert re.fullmatch(r"call_[A-Za-z0-9]{24}", piece["id"])
            begun.add(piece["index"])
    assert begun == {0, 1}
    arguments = [piece["function"]["arguments"] for piece in pieces if piece["index"] == 0]
    assert len(arguments) > 10 if eager else len(arguments) == 2


@each_family
def test_eager_arguments_come_before_the_call_is_complete(family: Family) -> None:
    text = family.write([("add", '{"a": [1, 2]}')])
    stream = CallStream(family, NAMES, Random(1), eager=True)
    before = stream.feed(text[: text.index("2")])
    assert [(call.name, call.arguments) for call in join(before)[1]] == [("add", '{"a": [1, ')]
    assert stream.end() == []
    assert stream.finish_reason(cut_off=True) == "length"


@each_family
def test_an_eager_call_that_breaks_off_keeps_what_it_has(family: Family) -> None:
    text = family.write([("add", '{"a": ?}')])
    content, calls = read(family, text, eager=True)
    assert calls == [("add", '{"a": ')]
    assert content.startswith("?}")
    assert read(family, text) == (text, [])


@each_family
def test_the_same_seed_gives_the_same_ids(family: Family) -> None:
    text = family.write([("add", "{}"), ("add", "{}")])
    ids = [[call.id for call in parse(family, text, NAMES, Random(seed))[1]] for seed in (5, 5, 6)]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 4


@each_family
@pytest.mark.parametrize("eager", [False, True])
def test_without_parallel_calls_the_answer_ends_with_the_first(family: Family, eager: bool) -> None:
    text = family.write([("add", "{}"), ("get_weather", "{}")])
    stream = CallStream(family, NAMES, Random(1), eager=eager, parallel=False)
    content, calls = join([*stream.feed(text), *stream.feed(" and more"), *stream.end()])
    assert (content, [call.name for call in calls]) == ("", ["add"])
    assert stream.is_over
    assert stream.finish_reason() == "tool_calls"


@each_family
@pytest.mark.parametrize(
    ("names", "cut_off", "reason"),
    [(["add"], False, "tool_calls"), ([], False, "stop"), ([], True, "length"), (["add"], True, "length")],
)
def test_finish_reasons(family: Family, names: list[str], cut_off: bool, reason: str) -> None:
    stream = CallStream(family, names, Random(1))
    stream.feed(family.write([("add", "{}")]))
    stream.end()
    assert stream.finish_reason(cut_off=cut_off) == reason


def test_a_call_as_openai_s_messages_have_it() -> None:
    call = parse(LLAMA, '{"name": "add", "parameters": {"a": "é"}}', NAMES, Random(1))[1][0]
    assert call.message == {
        "id": call.id,
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": "é"}'},
    }


@each_family
def test_blanks_without_end_belong_to_no_call(family: Family) -> None:
    blanks = " \n\t" * 40_000
    text = family.write([("add", "{}")])
    for eager in (False, True):
        assert read(family, text + blanks, eager=eager) == ("", [("add", "{}")])
    unfinished = text[: text.index("{}") + 1] + blanks
    assert read(family, unfinished) == (unfinished, [])
