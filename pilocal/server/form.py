"""The form of an answer, as a request wants it: a JSON object, a JSON schema, GBNF, or calls of functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.llamacpp.grammar import GrammarError, check_grammar
from pilocal.llamacpp.json_schema import JSON_OBJECT, UnsupportedSchema, schema_grammar
from pilocal.server.refusal import Refusal
from pilocal.server.tool_family import Family, Forced, free_rules
from pilocal.server.tool_request import ToolRequest

FORMATS = ("text", "json_object", "json_schema")
PARTS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*|[A-Za-z][A-Za-z0-9-]*')
"""What GBNF is made of, as far as names are concerned: texts, characters, comments, and names."""


def read_form(request: Mapping[str, Any], tools: ToolRequest | None = None, family: Family | None = None) -> str | None:
    """Return the grammar that a request's answer must fit; None where it may be any text.

    Raises Refusal for a form that this server does not do, for two forms at once, and for one beside functions that may
    be called.
    """
    asked = [name for name in ("grammar", "response_format") if _asks(request, name)]
    if len(asked) == 2 or (asked and tools is not None):
        other = "response_format" if tools is None else "tools"
        raise _refused(asked[0], f"not beside {other}: an answer has one form.", "invalid_value")
    if tools is not None and family is not None:
        return _called(tools, family)
    if not asked:
        return None
    return _checked(request["grammar"]) if asked == ["grammar"] else _format(request["response_format"])


def _asks(request: Mapping[str, Any], name: str) -> bool:
    return name in request and not (name == "response_format" and request[name] == {"type": "text"})


def _refused(param: str, problem: str, code: str) -> Refusal:
    return Refusal(400, f"{param}: {problem}", param=param, code=code)


def _checked(grammar: str) -> str:
    try:
        check_grammar(grammar)
    except GrammarError as error:
        raise _refused("grammar", f"{error}.", "invalid_grammar") from None
    return grammar


def _format(given: Any) -> str:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in FORMATS:
        problem = f"must be an object whose type is one of {', '.join(FORMATS)}."
        raise _refused("response_format", problem, "invalid_value")
    if kind == "json_object":
        return JSON_OBJECT
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise _refused("response_format.json_schema", "must be an object with a schema.", "invalid_type")
    return _of_schema(schema, "response_format.json_schema.schema")


def _of_schema(schema: Mapping[str, Any], param: str) -> str:
    try:
        return schema_grammar(schema)
    except UnsupportedSchema as error:
        raise _refused(param, f"{error}.", "unsupported_schema") from None


def _called(tools: ToolRequest, family: Family) -> str | None:
    """Return the grammar of an answer that must be calls, or whose calls must fit; None where it may be any text."""
    must = tools.forced(family)
    if must is not None:
        return join_calls(must, ["root ::= calls"])
    return join_calls(tools.possible(family), free_rules(family)) if tools.strict else None


def join_calls(forced: Forced, rules: Sequence[str]) -> str:
    """Return the grammar of calls, after the rules that use them, with a grammar for the arguments of each function.

    Raises Refusal for a schema that this server does not do.
    """
    arguments, names = [], []
    for number, call in enumerate(forced.calls):
        names.append(f"call{number}-root")
        arguments.append(_renamed(_of_schema(call.arguments, "tools"), f"call{number}-"))
    return "\n".join([*rules, f"calls ::= {forced.rule(names)}", *arguments])


def _renamed(grammar: str, prefix: str) -> str:
    """Return a grammar with a prefix before every rule's name.

    >>> _renamed('root ::= "a root" [root] b # root', "x-")
    'x-root ::= "a root" [root] x-b # root'
    """
    return PARTS.sub(lambda found: prefix + found[0] if found[0][0].isalpha() else found[0], grammar)
