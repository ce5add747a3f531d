"""An object that is read a character at a time is read as JSON says."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.server.partial_json import DEEPEST, ObjectReader
from tests.json_values import VALUES


def strict(text: str) -> Any:
    """Return an object as JSON has it; raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    value = json.loads(text, parse_constant=refuse)
    if not isinstance(value, dict) or text != text.strip(" \t\r\n"):
        raise ValueError("no object")
    return value


@given(
    text=st.dictionaries(st.text(max_size=5), VALUES, max_size=4).map(json.dumps),
    place=st.integers(0, 500),
    character=st.sampled_from('{}[]",:\\0123.eE+-tfn \t\n\x0bé'),
    change=st.sampled_from(["insert", "replace", "remove", "none"]),
)
@settings(max_examples=600)
def test_an_object_is_read_exactly_where_json_has_one(text: str, place: int, character: str, change: str) -> None:
    place %= len(text)
    put = {"insert": character + text[place], "replace": character, "remove": "", "none": text[place]}[change]
    text = text[:place] + put + text[place + 1 :]
    reader = ObjectReader()
    taken = all(reader.feed(one) for one in text)
    try:
        value = strict(text)
    except ValueError:
        assert not (taken and reader.done)
        return
    assert taken
    assert reader.done
    assert reader.text == text
    assert {field.key: json.loads(field.text) for field in reader.fields} == value


def test_objects_have_bounded_depth() -> None:
    for levels, taken in ((DEEPEST, True), (DEEPEST + 1, False)):
        text = '{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"
        reader = ObjectReader()
        assert all(reader.feed(one) for one in text) is taken
