"""The families of chat templates with tools, and the answers that they are made to give."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings

from pilocal.server.tool_calls import parse
from pilocal.server.tool_family import HERMES, LLAMA, NONE, Family, family_of, forced
from tests.json_values import CALLS, NAMES
from tests.layouts import LAYOUTS
from tests.tool_layouts import TOOL_LAYOUTS, ToolLayout, rendered

FAMILIES = [layout.family for layout in TOOL_LAYOUTS.values()]


def read(family: Family, text: str) -> tuple[str, list[tuple[str, str]]]:
    content, calls = parse(family, text, NAMES, Random(1))
    return content, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("layout", TOOL_LAYOUTS.values(), ids=list(TOOL_LAYOUTS))
def test_the_family_is_known_by_the_chat_template(layout: ToolLayout) -> None:
    assert family_of(layout.template) is layout.family


@pytest.mark.parametrize(
    ("call", "family"),
    [
        ('{{ \'<tool_call>\\n{"name": "\' + c.name + \'", "arguments": \' }}', HERMES),
        ('{{ "<tool_call>{\\"name\\": \\"" ~ c.name ~ "\\"" }}', HERMES),
        ("<tool_call>\n{{- '{' }}{{ '\"name\": \"' }}{{ c.name }}", HERMES),
        ("{{ '<tool_call>\\n' }}{{ call.function | tojson }}{{ '</tool_call>' }}", HERMES),
        ("{{ '<tool_call>' + (call['function'] | tojson) }}", HERMES),
        ("{{ '<tool_call>\\n<function=' + c.name + '>' }}<parameter=a>", NONE),
        ("{{ '<tool_call>' + c.name + '<arg_key>a</arg_key>' }}", NONE),
        ("{{ '<tool_call>' + c.name }}", NONE),
        ('{{ \'<|start_header_id|>{"name": name, "parameters": object}\' }}', LLAMA),
        ('{{ "<|start_header_id|>{\\"name\\": name, \\"parameters\\": object}" }}', LLAMA),
        ("{{ '<|start_header_id|><function=' + c.name + '>{\"name\": n, \"parameters\": o}' }}", NONE),
        ('{{ \'{"name": name, "parameters": object}\' }}', NONE),
        ("{{ 'functools[{\"name\": ' }}", NONE),
    ],
)
def test_the_family_is_known_by_its_marks(call: str, family: Family) -> None:
    assert family_of("{% if tools %}{{ tools | tojson }}{% endif %}" + call) is family
    assert family_of(call) is NONE, "without tools there are no calls"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_chat_template_without_tools_has_no_family(name: str) -> None:
    assert family_of(LAYOUTS[name].template) is NONE


@pytest.mark.parametrize("layout", TOOL_LAYOUTS.values(), ids=list(TOOL_LAYOUTS))
@given(calls=CALLS)
@settings(max_examples=30)
def test_what_a_chat_template_writes_is_read(layout: ToolLayout, calls: list[tuple[str, str]]) -> None:
    calls = calls[:1] if layout.family.one_at_a_time else calls
    made = [
        {"id": f"call0000{i}", "type": "function", "function": {"name": name, "arguments": json.loads(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": made}]
    text = rendered(layout.template, chat, tools=[])
    answer = text.split(layout.answer[0], 1)[1].rsplit(layout.answer[1], 1)[0]
    content, found = read(layout.family, answer)
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]
    assert content == ""


SCHEMAS = {name: {"type": "object", "properties": {"a": {"type": "integer"}}} for name in NAMES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_a_forced_answer_is_calls(family: Family, parallel: bool, names: tuple[str, ...]) -> None:
    form = forced(family, {name: SCHEMAS[name] for name in names}, parallel=parallel)
    texts = [call.before + '{"a": 1}' + call.after for call in form.calls]
    assert [call.arguments for call in form.calls] == [SCHEMAS[name] for name in names]
    for text in texts:
        assert (form.opening + text).startswith(form.prefix)
    assert form.prefix != "" and (len(names) > 1 or form.prefix.endswith(form.calls[0].before))
    if parallel:
        written = form.opening + (form.between or "").join(texts) + form.closing
        assert read(family, written) == ("", [(name, '{"a": 1}') for name in names])
    else:
        assert form.between is None
        assert read(family, form.opening + texts[0] + form.closing) == ("", [(names[0], '{"a": 1}')])


def test_nothing_can_be_forced_without_functions_or_a_family() -> None:
    for family, functions in ((LLAMA, {}), (NONE, SCHEMAS)):
        with pytest.raises(ValueError, match="nothing can be called"):
            forced(family, functions, parallel=True)
