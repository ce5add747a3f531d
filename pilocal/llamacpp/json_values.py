"""JSON's own values as GBNF."""

from __future__ import annotations

import json
from collections.abc import Mapping

_DAYS = '"0" [1-9] | [12] [0-9]'
_MONTHS = (
    f'("0" [13578] | "1" [02]) "-" ({_DAYS} | "3" [01]) | ("0" [469] | "11") "-" ({_DAYS} | "30") | '
    '"02-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
)
_LEAP = '("0" [48] | [2468] [048] | [13579] [26])'

BUILTIN: Mapping[str, str] = {
    "ws": '(" " | "\\n" [ \\t]{0,32})?',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" code)',
    "code": "[0-9a-cefA-CEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}",
    "string": r'"\"" char* "\""',
    "plain-string": r'"\"" [^"\\\x7F\x00-\x1F]* "\""',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (member ("," ws member)* ws)? "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "date": f'[1-9] [0-9] ([0-9] [0-9] "-" ({_MONTHS}) | {_LEAP} "-02-29")',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": "-".join(f"[0-9a-fA-F]{{{count}}} " for count in (8, 4, 4, 4, 12)).replace("-[", '"-" ['),
}
"""Rules that are written where they are used; numbers stay within doubles, and \\u writes no half of a pair."""

USES: Mapping[str, tuple[str, ...]] = {
    "string": ("char",),
    "char": ("code",),
    "number": ("integer",),
    "value": ("array", "boolean", "null", "number", "object", "string"),
    "object": ("member", "ws"),
    "member": ("string", "value", "ws"),
    "array": ("value", "ws"),
    "date-time": ("date", "time"),
}
"""The rules that these use."""

FORMATS = ("date", "time", "date-time", "uuid")


def json_text(value: object) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def literal(text: str) -> str:
    r"""Return a text as GBNF.

    >>> print(literal('a"\n'))
    "a\"\n"
    """
    escaped = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\x00"}
    return '"' + "".join(escaped.get(character, character) for character in text) + '"'
