"""A base's chat template, settled: the same for training and serving, on every day, with thinking switched off.

What a chat template leaves open is written down in front of it, in its own language, so that the file that is shipped
says it to every program: the date, whether the model thinks before it answers, and a BOS or EOS that is not there. A
base without system messages gets them at the head of the first query.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

DATE_STRING = "26 Jul 2024"
"""What chat templates print as today's date (Llama 3.1's own default), so that a row is the same on every day."""

THINKING = ("enable_thinking", "thinking")
"""The variables by which chat templates are told whether the model thinks aloud first."""

SYSTEM_INTO_QUERY = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% if messages[1:] and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}"
    "{% else %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content']}] + messages[1:] %}"
    "{% endif %}{% endif %}"
)


def settle(template: str, *, bos: str | None, eos: str | None) -> str:
    """Return a chat template with what it leaves open written in front of it; one that leaves nothing open as it is.

    `bos` and `eos` are the tokenizer's; None where it has none. Raises jinja2.TemplateError, ValueError or TypeError
    where the template is broken.

    >>> settle("{{ bos_token }}{{ messages }}", bos="<s>", eos=None)
    '{{ bos_token }}{{ messages }}'
    >>> settle("{% if enable_thinking %}{{ '<think>' }}{% endif %}", bos=None, eos=None)[:35]
    '{% set enable_thinking = false %}{%'
    """
    from jinja2 import meta

    from pilocal.prompt.bounded_jinja import guarded, parsed

    tree = parsed(template)
    asked = guarded(lambda: meta.find_undeclared_variables(tree))
    lines = [f"{{% set {name} = false %}}" for name in THINKING if name in asked]
    if "date_string" in asked:
        lines.append(f"{{% set date_string = {quoted(DATE_STRING)} %}}")
    if "strftime_now" in asked:
        dates = guarded(lambda: {text: _date(text) for text in _formats(tree)})
        known = ", ".join(f"{quoted(text)}: {quoted(date)}" for text, date in dates.items())
        found = f"{{{{ ({{{known}}}).get(format, {quoted(DATE_STRING)}) }}}}"
        lines.append(f"{{% macro strftime_now(format) %}}{found}{{% endmacro %}}")
    for name, token in (("bos_token", bos), ("eos_token", eos)):
        if name in asked and token is None:
            lines.append(f"{{% set {name} = '' %}}")
    return prepend("".join(lines), template)


def prepend(blocks: str, template: str) -> str:
    """Return a chat template after some blocks; a newline that follows a block would be left out."""
    return blocks + ("\n" if blocks and template.startswith("\n") else "") + template


def append_to_prompt(template: str, text: str) -> str:
    """Return a chat template that writes a text behind all else where the model is to speak."""
    return template + "{% if add_generation_prompt %}{{ " + quoted(text) + " }}{% endif %}"


def _formats(tree: Any) -> Iterator[str]:
    """Yield the formats that a chat template asks the clock with."""
    from jinja2 import nodes

    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now":
            for argument in call.args[:1]:
                if isinstance(argument, nodes.Const) and isinstance(argument.value, str):
                    yield argument.value


def _date(text: str) -> str:
    from datetime import UTC, datetime

    return datetime.strptime(DATE_STRING, "%d %b %Y").replace(tzinfo=UTC).strftime(text)


def quoted(text: str) -> str:
    """Return a text as a literal of Jinja's."""
    return json.dumps(text, ensure_ascii=False)
