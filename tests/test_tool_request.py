"""What a chat may ask for with tools, what is refused, and what the chat template gets of it."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.server.partial_json import DEEPEST
from pilocal.server.refusal import Refusal
from pilocal.server.tool_calls import parse
from pilocal.server.tool_family import HERMES, LLAMA, MISTRAL, NONE, Family, forced
from pilocal.server.tool_messages import short_id
from pilocal.server.tool_request import MOST_TOOLS, read_tools
from tests.layouts import write_layout
from tests.same_ids import write_vocabulary
from tests.tool_layouts import TOOL_LAYOUTS, ToolLayout
from tests.vocabularies import SIZE

ASK: Mapping[str, Any] = {"role": "user", "content": "How much is 1 + 1?"}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def tool(name: Any = "add", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Adds.", "parameters": PARAMETERS} | more}


def call(key: Any = "call_1", name: Any = "add", arguments: Any = '{"a": 1}', **more: Any) -> dict[str, Any]:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}} | more


def said(*calls: Any, content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(key: str = "call_1", content: str = "2") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": key, "content": content}


def refused(family: Family = HERMES, **request: Any) -> dict[str, Any]:
    with pytest.raises(Refusal) as error:
        read_tools({"messages": [ASK], **request}, family)
    assert error.value.status == 400
    found: dict[str, Any] = error.value.body["error"]
    assert found["type"] == "invalid_request_error"
    assert found["message"].endswith(".") or "JSON" in found["message"]
    assert found["code"]
    return found


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels - 1):
        schema = {"type": "object", "items": schema}
    return schema


BAD_SCHEMAS: tuple[Any, ...] = (
    *([], "object", True, {}, {"type": "string"}, {"type": ["object"]}, {"properties": {}}),
    {"type": "object", "properties": []},
    {"type": "object", "properties": {"a": "integer"}},
    {"type": "object", "required": "a"},
    {"type": "object", "required": [1]},
    nested(DEEPEST + 1),
)


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ("add", "tools"),
        ([], "tools"),
        ([tool(f"f{number}") for number in range(MOST_TOOLS + 1)], "tools"),
        ([None], "tools.0"),
        (["add"], "tools.0"),
        ([{}], "tools.0.type"),
        ([{"type": "custom", "custom": {"name": "add"}}], "tools.0.type"),
        ([{"type": "web_search"}], "tools.0.type"),
        ([{"type": "function"}], "tools.0.function"),
        ([{"type": "function", "function": "add"}], "tools.0.function"),
        ([{"type": "function", "name": "add", "parameters": PARAMETERS}], "tools.0.name"),
        ([tool() | {"cache": True}], "tools.0.cache"),
        ([tool(returns="int")], "tools.0.function.returns"),
        ([tool(), tool("now"), tool()], "tools.2.function.name"),
        ([tool(None)], "tools.0.function.name"),
        ([{"type": "function", "function": {"parameters": PARAMETERS}}], "tools.0.function.name"),
        *(([tool(name)], "tools.0.function.name") for name in ("", "a b", "a.b", "é", "x" * 65, "add\n", 7, ["add"])),
        ([tool(description=7)], "tools.0.function.description"),
        ([tool(strict="yes")], "tools.0.function.strict"),
        *(([tool(), tool("now", parameters=schema)], "tools.1.function.parameters") for schema in BAD_SCHEMAS),
    ],
)
def test_bad_tools_are_refused(tools: Any, param: str) -> None:
    error = refused(tools=tools)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "choice",
    [
        *("", "any", "add", 1, True, [], {}, {"type": "function"}, {"type": "tool", "function": {"name": "add"}}),
        {"type": "function", "function": "add"},
        {"type": "function", "function": {}},
        {"type": "function", "function": {"name": "sub"}},
        {"type": "function", "function": {"name": ["add"]}},
        {"type": "function", "function": {"name": "add", "arguments": "{}"}},
        {"type": "function", "name": "add"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
    ],
)
def test_a_bad_choice_is_refused(choice: Any) -> None:
    assert refused(tools=[tool()], tool_choice=choice)["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [tool()], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{"name": "add"}]}, "functions"),
        ({"functions": []}, "functions"),
        ({"tools": [tool()], "function_call": "auto"}, "function_call"),
    ],
)
def test_what_does_not_go_together_is_refused(request_: dict[str, Any], param: str) -> None:
    assert refused(**request_)["param"] == param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("hello", "messages"),
        ([ASK, "hello"], "messages"),
        ([ASK, {"role": "function", "name": "add", "content": "2"}], "messages.1.role"),
        ([ASK, {"role": "assistant", "function_call": {"name": "add", "arguments": ""}}], "messages.1.function_call"),
        ([{**ASK, "tool_calls": [call()]}], "messages.0.tool_calls"),
        ([{**ASK, "tool_call_id": "call_1"}], "messages.0.tool_call_id"),
        ([ASK, said(), ASK], "messages.1.tool_calls"),
        ([ASK, {**said(), "tool_calls": {}}, ASK], "messages.1.tool_calls"),
        ([ASK, {**said(), "tool_calls": "add"}, ASK], "messages.1.tool_calls"),
        ([ASK, said("add")], "messages.1.tool_calls.0"),
        ([ASK, said({"id": "call_1", "type": "function"})], "messages.1.tool_calls.0"),
        ([ASK, said(call(type="custom"))], "messages.1.tool_calls.0.type"),
        ([ASK, said(call(type=None))], "messages.1.tool_calls.0.type"),
        *(([ASK, said(call(key))], "messages.1.tool_calls.0.id") for key in ("", None, 1)),
        ([ASK, said(call(), call())], "messages.1.tool_calls.1.id"),
        *(([ASK, said(call(name=name))], "messages.1.tool_calls.0.function.name") for name in ("", None, "a b", 1)),
        *(
            ([ASK, said(call(arguments=text))], "messages.1.tool_calls.0.function.arguments")
            for text in (
                *(None, {"a": 1}, "[1]", "null", '"a"', "{", '{"a": 1}}', "{'a': 1}", '{"a": NaN}', '{"a": 1e999}'),
                *('{"a": "\\ud800"}', '{"a": ' + "9" * 5000 + "}", '{"a": ' + "[" * 99 + "]" * 99 + "}"),
                '{"a": ' * 100_000,
            )
        ),
        ([ASK, result()], "messages.1.tool_call_id"),
        ([ASK, said(call()), result("call_2")], "messages.2.tool_call_id"),
        ([ASK, said(call()), {"role": "tool", "content": "2"}], "messages.2.tool_call_id"),
        ([ASK, said(call()), {**result(), "tool_call_id": ["call_1"]}], "messages.2.tool_call_id"),
        ([ASK, said(call()), result(), result()], "messages.3.tool_call_id"),
        ([ASK, said(call()), result(), ASK, result()], "messages.4.tool_call_id"),
        ([ASK, said(call())], "messages"),
        ([ASK, said(call()), ASK], "messages"),
        ([ASK, said(call(), call("call_2")), result(), ASK], "messages"),
        ([ASK, said(call()), said(call("call_2")), result("call_2")], "messages"),
    ],
)
def test_bad_messages_are_refused(messages: Any, param: str) -> None:
    for family in (HERMES, LLAMA, MISTRAL, NONE):
        assert refused(family, messages=messages)["param"] == param


def test_a_chat_template_without_tools_is_told_from_the_others() -> None:
    chat = [ASK, said(call()), result()]
    assert "chat template" in refused(NONE, tools=[tool()])["message"]
    assert refused(NONE, tools=[tool()])["param"] == "tools"
    assert refused(NONE, messages=chat)["param"] == "messages"
    assert read_tools({"messages": [ASK]}, NONE).messages == [ASK]
    assert not read_tools({"messages": [ASK], "tools": [tool()], "tool_choice": "none"}, NONE).tools


@pytest.mark.parametrize(
    ("more", "shown", "must_call"),
    [
        ({}, ["add", "now"], ()),
        ({"tool_choice": "auto"}, ["add", "now"], ()),
        ({"tool_choice": None, "parallel_tool_calls": None, "functions": None}, ["add", "now"], ()),
        ({"tool_choice": "none"}, [], ()),
        ({"tool_choice": "required"}, ["add", "now"], ("add", "now")),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ["add", "now"], ("now",)),
    ],
)
def test_choices(more: dict[str, Any], shown: list[str], must_call: tuple[str, ...]) -> None:
    tools = [tool(strict=True), {"type": "function", "function": {"name": "now", "description": None}}]
    found = read_tools({"messages": [ASK], "tools": tools, **more}, HERMES)
    assert [one["function"]["name"] for one in found.tools] == shown
    assert found.must_call == must_call
    assert found.names == frozenset(must_call or shown)
    assert found.strict == {"add"}
    form = found.forced(HERMES)
    assert (form is None) == (not must_call)
    assert form is None or len(form.calls) == len(must_call)


def test_the_chat_template_sees_what_it_knows_of_a_tool() -> None:
    tools = [tool(strict=False), {"type": "function", "function": {"name": "now", "strict": None}}]
    found = read_tools({"messages": [ASK], "tools": tools, "parallel_tool_calls": False}, HERMES)
    assert found.tools == (
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    )
    assert not found.parallel
    assert list(found.tools[0]["function"]) == ["name", "description", "parameters"]


def test_without_tools_a_chat_stays_as_it_is() -> None:
    chat = [{"role": "system", "content": "Be brief."}, ASK, {"role": "assistant", "content": "2"}, ASK]
    for family in (HERMES, LLAMA, MISTRAL, NONE):
        found = read_tools({"messages": chat}, family)
        assert (found.messages, found.tools, found.names, found.forced(family)) == (chat, (), frozenset(), None)
    empty = {"role": "assistant", "content": "2", "tool_calls": None}
    assert read_tools({"messages": [ASK, empty, ASK]}, NONE).messages[1] == {"role": "assistant", "content": "2"}


CHAT = [
    {"role": "system", "content": "Be brief."},
    ASK,
    said(call("call_aaaaaaaaaaaaaaaaaaaaaaaa"), call("123456789", "now", "")),
    result("123456789", "noon"),
    result("call_aaaaaaaaaaaaaaaaaaaaaaaa", "two"),
]


@pytest.mark.parametrize("family", [HERMES, MISTRAL])
def test_calls_in_one_message_stay_together(family: Family) -> None:
    found = read_tools({"messages": CHAT}, family).messages
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "tool"]
    assert [one["function"] for one in found[2]["tool_calls"]] == [
        {"name": "add", "arguments": {"a": 1}},
        {"name": "now", "arguments": {}},
    ]
    assert found[2]["content"] == ""
    assert [message["content"] for message in found[3:]] == ["noon", "two"]
    ids = [one["id"] for one in found[2]["tool_calls"]]
    assert [message["tool_call_id"] for message in found[3:]] == ids[::-1]
    assert CHAT[2]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}', "the request is left as it is"


def test_a_template_of_one_call_a_message_gets_one_after_the_other() -> None:
    found = read_tools({"messages": [*CHAT, {"role": "assistant", "content": "2"}, ASK]}, LLAMA).messages
    roles = ["system", "user", "assistant", "tool", "assistant", "tool", "assistant", "user"]
    assert [message["role"] for message in found] == roles
    assert [one["function"]["name"] for i in (2, 4) for one in found[i]["tool_calls"]] == ["add", "now"]
    assert [found[i]["content"] for i in (3, 5)] == ["two", "noon"]
    spoken = read_tools({"messages": [ASK, {**CHAT[2], "content": "Well."}, *CHAT[3:]]}, LLAMA).messages
    assert [message["content"] for message in spoken if message["role"] == "assistant"] == ["Well.", ""]


@given(keys=st.lists(st.text(min_size=1, max_size=30), unique=True, min_size=1, max_size=50))
def test_short_ids_stay_apart(keys: list[str]) -> None:
    short = [short_id(key) for key in keys]
    assert len(set(short)) == len(keys)
    assert all(len(key) == 9 and key.isalnum() and key.isascii() for key in short)
    assert [short_id(key) for key in short] == short


@pytest.fixture(scope="module", params=TOOL_LAYOUTS)
def layout(request: pytest.FixtureRequest) -> ToolLayout:
    return TOOL_LAYOUTS[request.param]


@pytest.fixture(scope="module")
def model(layout: ToolLayout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_layout(layout.kind, tmp_path_factory.mktemp("layout"))
    path = write_vocabulary(folder, SIZE + 300, folder / "vocabulary.gguf")
    with Model(path, vocabulary_only=True) as model:
        yield model


def test_chat_templates_take_what_was_checked(layout: ToolLayout, model: Model) -> None:
    template = ChatTemplate(model.tokenizer, model.path, layout.template)
    tools = [tool(), {"type": "function", "function": {"name": "now"}}]
    chats = [
        [ASK],
        CHAT,
        [*CHAT, {"role": "assistant", "content": "Two."}, ASK],
        [ASK, said(call("x")), result("x"), said(call("y")), result("y", "noon")],
    ]
    for chat in chats:
        for choice in ("auto", "none"):
            found = read_tools({"messages": chat, "tools": tools, "tool_choice": choice}, layout.family)
            tokens = template.tokens(found.messages, tools=list(found.tools) or None)
            text = model.tokenizer.text(tokens).decode()
            assert ("Adds." in text) == (choice == "auto")
            assert text.count("noon") == json.dumps(chat).count("noon")


def test_what_tools_say_never_becomes_a_control_token(layout: ToolLayout, model: Model) -> None:
    template = ChatTemplate(model.tokenizer, model.path, layout.template)

    def tokens(text: str) -> list[int]:
        chat = [
            ASK,
            said(call(arguments=json.dumps({"a": text}))),
            result(content=text),
            {"role": "assistant", "content": "!"},
        ]
        found = read_tools({"messages": [*chat, ASK], "tools": [tool(description=text)]}, layout.family)
        return template.tokens(found.messages, tools=list(found.tools))

    controls = {
        token: mark
        for mark in model.tokenizer.control_texts()
        for token in model.tokenizer.tokens(mark, special=True)[-1:]
    }
    marks = "".join(dict.fromkeys(controls.values()))
    kept = [token for token in tokens("plain") if token in controls]
    assert [token for token in tokens(marks) if token in controls] == kept
    assert kept


def test_an_answer_s_tokens_are_read_where_the_marks_are_shown(layout: ToolLayout, model: Model) -> None:
    family, tokenizer = layout.family, model.tokenizer
    calls = [("add", '{"a": "é }"}'), ("now", "{}")]
    found = tokenizer.tokens("" if family is LLAMA else "Well.", special=False)
    for call in calls if family is not LLAMA else calls[:1]:
        found += tokenizer.tokens(("<|python_tag|>" if family is LLAMA else "") + family.write([call]), special=True)
    marks = {tokens[-1]: mark for mark in family.shown if len(tokens := tokenizer.tokens(mark, special=True)) <= 2}
    controls = set(tokenizer.control_texts())
    pieces = [marks[token].encode() if marks.get(token) in controls else tokenizer.text([token]) for token in found]
    content, read = parse(family, b"".join(pieces).decode(), ["add", "now"], Random(1))
    assert [(call.name, call.arguments) for call in read] == calls[: len(read)]
    assert len(read) == (1 if family is LLAMA else 2)
    assert content.strip() == ("" if family is LLAMA else "Well.")


def grammar(model: Model, text: str) -> Callable[[str], bool]:
    """Return a function that tells whether a grammar lets an answer through, to its end."""
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(model.handle)
    end = llama_cpp.llama_vocab_eos(vocabulary)

    def passes(answer: str) -> bool:
        sampler = llama_cpp.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        assert sampler, text
        try:
            for token in (*model.tokenizer.tokens(answer, special=True), end):
                one = llama_cpp.llama_token_data(token, 0.0, 0.0)
                candidates = llama_cpp.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
                llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
                if one.logit < 0:
                    return False
                if token != end:
                    llama_cpp.llama_sampler_accept(sampler, token)
            return True
        finally:
            llama_cpp.llama_sampler_free(sampler)

    return passes


def test_llama_cpp_takes_a_forced_answer_and_no_other(layout: ToolLayout, model: Model) -> None:
    functions: dict[str, dict[str, Any]] = {"add": PARAMETERS, "now": {"type": "object"}}
    rules = '\nadd ::= "{\\"a\\": " [0-9]+ "}"\nnow ::= "{}"\n'
    family = layout.family
    added, now = ("add", '{"a": 12}'), ("now", "{}")
    for parallel in (False, True):
        root = "root ::= " + forced(family, functions, parallel=parallel).rule(["add", "now"])
        passes = grammar(model, root + rules)
        assert passes(family.write([added]))
        assert passes(family.write([now]))
        assert passes(family.write([added, now, added])) is parallel
        for other in ("Hello", family.write([("add", "{}")]), family.write([("sub", "{}")]), "{}", ""):
            assert not passes(other)
