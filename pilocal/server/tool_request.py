"""Checks what a chat asks for with tools, and brings its messages into the form that chat templates take.

`tools`, `tool_choice`, `parallel_tool_calls` and messages with calls and results are done. The older `functions`,
`function_call` and the role `function` are refused, as are tools that are no functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.server.refusal import Refusal
from pilocal.server.tool_family import NO_TOOLS, NONE, Family, Forced, forced
from pilocal.server.tool_messages import check_depth, check_name, has_calls, messages_for

MOST_TOOLS = 128
FUNCTION = {"name": str, "description": str, "parameters": dict, "strict": bool}
"""What a function may say of itself."""
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
CHOICES = ("none", "auto", "required")
FIELDS = ("tool_choice", "parallel_tool_calls")
"""What a request may say beside `tools`, and not without them."""
OLD = {"functions": "tools", "function_call": "tool_choice"}
"""What OpenAI once had, and what to send now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    """What a chat asks for with tools, checked."""

    messages: Sequence[Mapping[str, Any]]
    """The chat as the chat template takes it."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the chat template is to show; nothing where there are no tools, or none is to be called."""
    must_call: tuple[str, ...] = ()
    """The functions of which the answer must call one; none where it may be text."""
    strict: frozenset[str] = frozenset()
    """The functions whose arguments must fit their schema; where there are any, those of all functions do."""
    parallel: bool = True
    """Whether the answer may have several calls."""

    @property
    def names(self) -> frozenset[str]:
        """The names that an answer may call; `CallStream` is to read it where there are any."""
        return frozenset(self.must_call) or frozenset(self.functions)

    @property
    def functions(self) -> dict[str, Mapping[str, Any]]:
        """The JSON schemas of the functions' parameters, by name."""
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}

    def forced(self, family: Family) -> Forced | None:
        """Return the form that the answer must have; None where it may be text."""
        functions = self.functions
        allowed = {name: functions[name] for name in self.must_call}
        return forced(family, allowed, parallel=self.parallel) if allowed else None

    def possible(self, family: Family) -> Forced:
        """Return the form of the calls that the answer may have."""
        return forced(family, self.functions, parallel=self.parallel)


def read_tools(request: Mapping[str, Any], family: Family) -> ToolRequest:
    """Return what a chat request asks for with tools; raises Refusal with what is wrong.

    `family` is that of the chat template that will write the chat. Values of null count as left out.
    """
    request = {key: value for key, value in request.items() if value is not None}
    _refuse_old(request)
    tools = _read_list(request["tools"]) if "tools" in request else []
    parallel, must_call = _read_fields(request, [tool["function"]["name"] for tool in tools])
    strict = frozenset(_strict_names(request.get("tools", ())))
    shown = () if must_call is None else tuple(tools)
    chat = messages_for(family, request.get("messages", []))
    if family == NONE and (shown or has_calls(chat)):
        param = "tools" if shown else "messages"
        raise Refusal(400, f"{param}: {NO_TOOLS}.", param=param, code="unsupported_parameter")
    return ToolRequest(messages=chat, tools=shown, must_call=must_call or (), strict=strict, parallel=parallel)


def _strict_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [tool["function"]["name"] for tool in tools if tool["function"].get("strict")]


def _refuse_old(request: Mapping[str, Any]) -> None:
    for name, new in OLD.items():
        if name in request:
            raise Refusal(400, f"{name}: deprecated; send {new}.", param=name, code="unsupported_parameter")


def _read_fields(request: Mapping[str, Any], names: Sequence[str]) -> tuple[bool, tuple[str, ...] | None]:
    """Return whether the answer may have several calls, and what `_read_choice` returns."""
    for name in FIELDS:
        if name in request and not names:
            raise Refusal(400, f"{name}: only where there are tools.", param=name, code="invalid_value")
    parallel = request.get("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        name = "parallel_tool_calls"
        raise Refusal(400, f"{name}: must be true or false.", param=name, code="invalid_type")
    return parallel, _read_choice(request.get("tool_choice", "auto"), names)


def _read_list(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise Refusal(400, "tools: must be a list.", param="tools", code="invalid_type")
    if not 1 <= len(given) <= MOST_TOOLS:
        problem = f"tools: must be 1 to {MOST_TOOLS}, not {len(given)}; leave it out where there are none."
        raise Refusal(400, problem, param="tools", code="invalid_value")
    tools = [_read_tool(tool, f"tools.{number}") for number, tool in enumerate(given)]
    seen = set[str]()
    for number, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in seen:
            param = f"tools.{number}.function.name"
            raise Refusal(400, f"{param}: another tool is called {name}.", param=param, code="invalid_value")
        seen.add(name)
    return tools


def _read_tool(tool: Any, param: str) -> dict[str, Any]:
    """Return a tool with all that chat templates expect of one."""
    if not isinstance(tool, dict):
        raise Refusal(400, f"{param}: must be an object.", param=param, code="invalid_type")
    if tool.get("type") != "function":
        problem = f'{param}.type: must be "function"; there are no other tools.'
        raise Refusal(400, problem, param=f"{param}.type", code="unsupported_value")
    _refuse_unknown(tool, ("type", "function"), param)
    function, param = tool.get("function"), f"{param}.function"
    if not isinstance(function, dict):
        raise Refusal(400, f"{param}: must be an object.", param=param, code="invalid_type")
    _refuse_unknown(function, FUNCTION, param)
    given = {key: value for key, value in function.items() if value is not None}
    check_name(given.get("name"), f"{param}.name")
    for key, kind in FUNCTION.items():
        if not isinstance(given.get(key, kind()), kind):
            kinds = {str: "text", dict: "a JSON schema, which is an object", bool: "true or false"}
            raise Refusal(400, f"{param}.{key}: must be {kinds[kind]}.", param=f"{param}.{key}", code="invalid_type")
    _check_schema(given.get("parameters", NO_PARAMETERS), f"{param}.parameters")
    shown = {key: given[key] for key in ("name", "description") if key in given}
    return {"type": "function", "function": {**shown, "parameters": given.get("parameters", NO_PARAMETERS)}}


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any], param: str) -> None:
    for key in given:
        if key not in known:
            problem = f"{param}.{key}: this server does not do that; known are {', '.join(known)}."
            raise Refusal(400, problem, param=f"{param}.{key}", code="unknown_parameter")


def _check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raise Refusal for what cannot be the schema of a function's parameters, which are an object."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    problem = None
    if schema.get("type") != "object":
        problem = 'must be a JSON schema whose type is "object"'
    elif not isinstance(properties, dict) or not all(isinstance(one, dict | bool) for one in properties.values()):
        problem = "properties must be an object of JSON schemas"
    elif not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        problem = "required must be a list of names"
    if problem:
        raise Refusal(400, f"{param}: {problem}.", param=param, code="invalid_function_parameters")
    check_depth(schema, param, "the JSON schema")


def _read_choice(choice: Any, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the functions of which one must be called; None where none may be."""
    if isinstance(choice, str) and choice in CHOICES:
        return {"none": None, "auto": (), "required": tuple(names)}[choice]
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict) or set(choice) != {"type", "function"} or set(function) != {"name"}:
        problem = f'tool_choice: must be {", ".join(CHOICES)}, or {{"type": "function", "function": {{"name": ...}}}}.'
        raise Refusal(400, problem, param="tool_choice", code="invalid_value")
    if function["name"] not in names:
        problem = f"tool_choice: there is no tool {function['name']!r}; there are {', '.join(names)}."
        raise Refusal(400, problem, param="tool_choice", code="invalid_value")
    return (function["name"],)
