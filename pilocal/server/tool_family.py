"""The ways in which models write tool calls, and how the chat template tells which one it is.

A family is recognised by its marks in the chat template, whatever the model is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_TOOLS = (
    "the model's chat template has no tools that this server can read; it reads Hermes, Qwen, Llama 3 and Mistral"
)


HEAD_MARKS = ("[CALL_ID]", "[ARGS]")
"""What Mistral's newer models write between a name and what follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How calls are written: `opening`, then calls with `between` between them, then `closing`.

    A call is `before`, its name, `middle`, its arguments as JSON, and `after`.
    """

    name: str
    opening: str = ""
    before: str = ""
    middle: str = ""
    after: str = ""
    between: str = ""
    closing: str = ""
    marks: tuple[str, ...] = ()
    """What a call begins with."""
    thoughts: tuple[str, str] = ("", "")
    """What stands around thoughts at the head of an answer; there are no calls in them."""
    one_at_a_time: bool = False
    """Whether the chat template takes one call a message only."""
    short_ids: bool = False
    """Whether the chat template takes ids of nine letters and digits only."""

    @property
    def shown(self) -> tuple[str, ...]:
        """What the text of an answer must hold, although some of it is a control token in most vocabularies."""
        return (*self.marks, *filter(None, self.thoughts), *(HEAD_MARKS if self.short_ids else ()))

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Return calls, each a name and its arguments as JSON, as the model writes them.

        >>> LLAMA.write([("now", "{}")])
        '{"name": "now", "parameters": {}}'
        """
        written = [f"{self.before}{name}{self.middle}{arguments}{self.after}" for name, arguments in calls]
        return self.opening + self.between.join(written) + self.closing


NONE = Family(name="none")
"""No calls, or calls that cannot be read."""
HERMES = Family(
    name="hermes",
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    between="\n",
    marks=("<tool_call>",),
    thoughts=("<think>", "</think>"),
)
"""Hermes 2 and 3, Qwen 2.5 and 3, Granite 4."""
LLAMA = Family(
    name="llama",
    before='{"name": "',
    middle='", "parameters": ',
    after="}",
    between="; ",
    marks=("<|python_tag|>",),
    one_at_a_time=True,
)
"""Llama 3.1, 3.2 and 3.3: bare JSON at the head of an answer, or JSON after a mark."""
MISTRAL = Family(
    name="mistral",
    opening="[TOOL_CALLS][",
    before='{"name": "',
    middle='", "arguments": ',
    after="}",
    between=", ",
    closing="]",
    marks=("[TOOL_CALLS]",),
    thoughts=("[THINK]", "[/THINK]"),
    short_ids=True,
)
"""Mistral 7B v0.3, Nemo, Small to 3.1: one list."""
MISTRAL_ARGS = Family(
    name="mistral-args",
    before="[TOOL_CALLS]",
    middle="[ARGS]",
    marks=("[TOOL_CALLS]",),
    thoughts=("[THINK]", "[/THINK]"),
    short_ids=True,
)
"""Devstral, Ministral 3."""
MISTRAL_IDS = Family(
    name="mistral-ids",
    before="[TOOL_CALLS]",
    middle="[CALL_ID]000000000[ARGS]",
    marks=("[TOOL_CALLS]",),
    thoughts=("[THINK]", "[/THINK]"),
    short_ids=True,
)
"""Mistral Small 3.2, which writes an id of its own; the server gives another."""

JINJA = r"(?:\s|\\n|[-+~'\"(){}%\\])*"
"""What may stand in a chat template between two texts that it writes one after the other."""
HERMES_CALL = re.compile(
    rf"<tool_call>{JINJA}\{{{JINJA}name\b|<tool_call>{JINJA}\w+(?:\.\w+|\[['\"]\w+['\"]\])*\s*\|\s*tojson"
)
OTHER_TAGS = ("<function=", "<arg_key>", "<parameter")
"""What writes the arguments of calls as XML."""
LLAMA_CALL = re.compile(r"\{\\?[\"']name\\?[\"']\s*:[^{}|]{0,80}\\?[\"']parameters\\?[\"']\s*:")


def family_of(chat_template: str) -> Family:
    """Return the family of a chat template's text; NONE where it has no tools, or writes calls in another way.

    >>> family_of("{{ messages[0].content }}").name
    'none'
    >>> family_of("{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{% endif %}{{ '[TOOL_CALLS][' }}").name
    'mistral'
    """
    text = chat_template
    if not re.search(r"\btools\b", text) or any(tag in text for tag in OTHER_TAGS):
        return NONE
    if "[TOOL_CALLS]" in text:
        return MISTRAL_IDS if "[CALL_ID]" in text else MISTRAL_ARGS if "[ARGS]" in text else MISTRAL
    if HERMES_CALL.search(text):
        return HERMES
    if "<|start_header_id|>" in text and LLAMA_CALL.search(text):
        return LLAMA
    return NONE


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """A call that an answer may be: a text, then JSON that a schema describes, then a text."""

    before: str
    arguments: Mapping[str, Any]
    """JSON schema."""
    after: str


@dataclass(frozen=True, slots=True)
class Forced:
    """The form of an answer that must be calls: `opening`, one of the calls or several, `closing`."""

    opening: str
    calls: tuple[ForcedCall, ...]
    between: str | None
    """What stands between two calls; None where there is exactly one."""
    closing: str

    @property
    def prefix(self) -> str:
        """What every such answer begins with."""
        first, last = min(call.before for call in self.calls), max(call.before for call in self.calls)
        same = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
        return self.opening + first[:same]

    def rule(self, arguments: Sequence[str]) -> str:
        r"""Return the calls in GBNF; `arguments` are the names of each call's rule, in order.

        >>> forced(LLAMA, {"now": {"type": "object"}}, parallel=False).rule(["now-arguments"])
        '(("{\\"name\\": \\"now\\", \\"parameters\\": " now-arguments "}"))'
        """
        calls = [
            " ".join([*_literal(call.before), rule, *_literal(call.after)])
            for call, rule in zip(self.calls, arguments, strict=True)
        ]
        call = " | ".join(f"({one})" for one in calls)
        more = [] if self.between is None else [f"({' '.join([*_literal(self.between), f'({call})'])})*"]
        return " ".join([*_literal(self.opening), f"({call})", *more, *_literal(self.closing)])


def forced(family: Family, functions: Mapping[str, Mapping[str, Any]], *, parallel: bool) -> Forced:
    """Return the form of an answer that calls one of these functions, or several where `parallel`.

    `functions` are the JSON schemas of their parameters by name. Raises ValueError where there is none, or the family
    writes no calls.
    """
    if not functions or family == NONE:
        raise ValueError("nothing can be called")
    calls = tuple(
        ForcedCall(f"{family.before}{name}{family.middle}", schema, family.after) for name, schema in functions.items()
    )
    return Forced(family.opening, calls, family.between if parallel else None, family.closing)


def _literal(text: str) -> list[str]:
    r"""Return a text as GBNF writes it; nothing for an empty one.

    >>> _literal('a"\n')
    ['"a\\"\\n"']
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return [f'"{escaped}"'] if text else []


def free_rules(family: Family) -> list[str]:
    """Return rules of GBNF for `root`: any text that has no call, and behind it `calls` or nothing.

    A mark can begin at any place, so the rule `text-3` stands behind the first three characters of one. Calls that have
    no mark stand at the head of an answer; there a text without calls begins with no brace.
    """
    (mark,) = family.marks
    rules = [_text_rule(mark, state, f"text-{state}") for state in range(len(mark))]
    if family.before.startswith("{") and not family.opening:
        return ["root ::= head | calls", _text_rule(mark, 0, "head", first=True), *rules]
    return ["root ::= text-0 calls?", *rules]


def _text_rule(mark: str, state: int, name: str, *, first: bool = False) -> str:
    """Return the rule of what may follow `state` characters of a mark; white space is skipped before the `first`."""
    ways = {char: _matched(mark, mark[:state] + char) for char in dict.fromkeys(mark)}
    ways = {char: reached for char, reached in ways.items() if reached}
    parts = [f"{_class(char)} text-{reached}" for char, reached in ways.items() if reached < len(mark)]
    blanks = " \t\r\n" if first else ""
    if first:
        parts.append(f"{_class(blanks)} {name}")
    parts.append(f"{_class(''.join(ways) + blanks + '{' * first, none=True)} text-0")
    return f"{name} ::= ({' | '.join(parts)})?"


def _matched(mark: str, text: str) -> int:
    """Return how many characters at the end of a text are the beginning of a mark.

    >>> _matched("<|x<|y", "<|x<|"), _matched("<|x<|y", "<|x<|x")
    (5, 3)
    """
    return next(size for size in range(min(len(mark), len(text)), -1, -1) if text.endswith(mark[:size]))


def _class(characters: str, *, none: bool = False) -> str:
    r"""Return a class of characters in GBNF: one of them, or any but those.

    >>> _class("<"), _class("[{", none=True)
    ('[\\x3C]', '[^\\x5B\\x7B]')
    """
    escaped = "".join(rf"\x{ord(char):02X}" for char in characters)
    return f"[{'^' * none}{escaped}]"
