"""The part of Go's text/template that a Modelfile of ours uses: text, fields, if, else, range, and five functions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Scope = dict[str, Any]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "and": lambda a, b: a and b,
    "len": len,
    "slice": lambda items, first: items[first:],
}


def render(template: str, data: Scope) -> str:
    """Return what Go would write; raises on anything that is not known here."""
    pieces = re.split(r"(\{\{ .*? \}\})", template, flags=re.DOTALL)
    assert "{{" not in "".join(pieces[::2])
    text, rest = _block(pieces, {"": data, "$": data})
    assert not rest
    return text


def _block(pieces: list[str], scope: Scope | None) -> tuple[str, list[str]]:
    """Render up to the block's end or else, which is left in front of the rest; without a scope, only skip it."""
    out = ""
    while pieces:
        piece, *pieces = pieces
        if not piece.startswith("{{ "):
            out += piece if scope else ""
            continue
        action = piece[3:-3]
        word, _, argument = action.partition(" ")
        if word in ("else", "end"):
            return out, [piece, *pieces]
        if word == "if":
            text, pieces = _if(argument, pieces, scope)
            out += text
        elif word == "range":
            names, _, items = argument.partition(" := ")
            number, item = names.split(", ")
            body = pieces
            _, pieces = _block(body, None)
            for i, value in enumerate(_value(items, scope) if scope else []):
                out += _block(body, {**scope, "": value, number: i, item: value})[0] if scope else ""
            assert pieces.pop(0) == "{{ end }}"
        elif scope:
            out += _value(action, scope)
    return out, pieces


def _if(condition: str, pieces: list[str], scope: Scope | None) -> tuple[str, list[str]]:
    true = bool(scope) and bool(_value(condition, scope))
    out, pieces = _block(pieces, scope if true else None)
    scope = None if true else scope
    closing, *pieces = pieces
    if closing.startswith("{{ else if "):
        text, pieces = _if(closing[len("{{ else if ") : -3], pieces, scope)
        return out + text, pieces
    if closing == "{{ else }}":
        text, pieces = _block(pieces, scope)
        out += text
        closing, *pieces = pieces
    assert closing == "{{ end }}"
    return out, pieces


def _value(expression: str, scope: Scope | None) -> Any:
    assert scope is not None
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', expression)
    value, rest = _call(tokens, scope)
    assert not rest
    return value


def _call(tokens: list[str], scope: Scope) -> tuple[Any, list[str]]:
    values = []
    while tokens and tokens[0] != ")":
        token, *tokens = tokens
        if token == "(":
            value, tokens = _call(tokens, scope)
            assert tokens.pop(0) == ")"
        elif token in FUNCTIONS:
            value = FUNCTIONS[token]
        elif "." in token:
            name, _, field = token.partition(".")
            value = scope[name][field]
        else:
            value = scope[token] if token.startswith("$") else json.loads(token)
        values.append(value)
    return values[0] if len(values) == 1 else values[0](*values[1:]), tokens
