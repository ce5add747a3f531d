r"""Slots: what changes inside the template from request to request, such as a date, a name or a retrieved passage.

`{{today}}` in template.md is the place of a value that each record carries, in `"slots": {"today": "..."}`. Where the
place is gone, the value is stated: a line `today: ...` before the first thing that the user says. `\{{today}}` is no
slot but that text without the backslash, and so is a name that means the query, such as `{{query}}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, did_you_mean
from pilocal.task.json_lines import Line
from pilocal.task.placeholders import NAMES

KEY = "slots"
"""The field of a record that holds the values."""

SLOT = re.compile(r"(?<!\{)(?P<literal>\\?)(?P<mark>\{\{[ \t]*(?P<name>[^\W\d][\w.-]*)[ \t]*\}\}(?!\}))")
"""A slot, or with a backslash before it the text of one."""

QUERY = re.compile(NAMES, re.IGNORECASE)
"""Names that mean the query, which comes in a turn of its own."""


def _is_slot(match: re.Match[str]) -> bool:
    return not match["literal"] and not QUERY.fullmatch(match["name"])


def slot_names(text: str) -> tuple[str, ...]:
    r"""Return the names of a text's slots, each once, in its order.

    >>> slot_names(r"Today is {{today}}, {{ user }}; {{today}}. Not \{{this}}, {that} or {{query}}.")
    ('today', 'user')
    """
    return tuple(dict.fromkeys(match["name"] for match in SLOT.finditer(text) if _is_slot(match)))


def slot_marks(text: str) -> tuple[str, ...]:
    """Return the slots of a text as it writes them, each once.

    >>> slot_marks("{{today}} {{ today }} {{today}}")
    ('{{today}}', '{{ today }}')
    """
    return tuple(dict.fromkeys(match["mark"] for match in SLOT.finditer(text) if _is_slot(match)))


def line_of_slot(text: str, name: str) -> int:
    """Return the line on which a slot of a text first stands, counted from 1; 1 where it does not."""
    found = (match.start() for match in SLOT.finditer(text) if _is_slot(match) and match["name"] == name)
    return text.count("\n", 0, next(found, 0)) + 1


def literals(text: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    r"""Return the texts before, between and behind the slots of these names, and the name of each slot between.

    >>> literals(r"It is {{today}} in {{place}}. Write \{{x}}.", ["today", "place"])
    (['It is ', ' in ', '. Write {{x}}.'], ['today', 'place'])
    """
    texts, found, done = [""], list[str](), 0
    for match in SLOT.finditer(text) if names else ():
        texts[-1] += text[done : match.start()]
        done = match.end()
        if _is_slot(match) and match["name"] in names:
            found.append(match["name"])
            texts.append("")
        else:
            texts[-1] += match["mark"]
    texts[-1] += text[done:]
    return texts, found


def escaped(text: str) -> str:
    r"""Return a text as a template writes it, so that nothing in it is a slot and no backslash is lost.

    >>> escaped(r"{{today}} \{{x}} {{query}} {today}")
    '\\{{today}} \\\\{{x}} {{query}} {today}'
    """
    return SLOT.sub(lambda match: f"\\{match[0]}" if match["literal"] or _is_slot(match) else match[0], text)


def fill(text: str, values: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    r"""Return a text with each value in its place, and the values that have none in it.

    Without values the text is as it was.

    >>> fill(r"It is {{today}}. \{{x}}", {"today": "Monday", "user": "Ann"})
    ('It is Monday. {{x}}', {'user': 'Ann'})
    """
    if not values:
        return text, {}
    texts, names = literals(text, list(values))
    filled = "".join(part for pair in zip(texts, [values[name] for name in names] + [""], strict=True) for part in pair)
    return filled, {name: value for name, value in values.items() if name not in names}


def stated(values: Mapping[str, str]) -> str:
    r"""Return the lines that state values, and the blank line behind them; empty without values.

    >>> stated({"today": "2026-11-30", "passages": ""})
    'today: 2026-11-30\npassages:\n\n'
    """
    return "\n".join(f"{name}: {value}".rstrip() for name, value in values.items()) + "\n\n" if values else ""


def stated_form(names: Iterable[str]) -> str:
    r"""Return the form of what is stated before a query, for people to read.

    >>> stated_form(["today"])
    'today: ...\n\nthe query'
    """
    return stated(dict.fromkeys(names, "...")) + "the query"


def clean(value: str) -> str:
    """Return a value without the white space around it, every line end as a line feed."""
    return value.replace("\r\n", "\n").replace("\r", "\n").strip()


def written(names: Iterable[str]) -> str:
    """Return how a record gives values to slots.

    >>> written(["today"])
    '"slots": {"today": "..."}'
    """
    return '"slots": {' + ", ".join(f'"{name}": "..."' for name in names) + "}"


def read_slots(given: Any, names: Sequence[str] | None, where: Line) -> dict[str, str]:
    """Return the values of a record's slots in the template's order; any that it has where `names` is None.

    Raises InputError for an unknown slot, a slot without a value and a value that is no text.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise InputError(where, "slots must be an object", got=given, fix=f"write {written(names or ('today',))}")
    return slot_values(given, names, where)


def slot_values(given: Mapping[str, Any], names: Sequence[str] | None, where: object) -> dict[str, str]:
    """Return values in the template's order, checked as `read_slots` does."""
    for name, value in given.items():
        if names is not None and name not in names:
            fix = did_you_mean(name, names) if names else "take it out, or write {{" + name + "}} in the template"
            if QUERY.fullmatch(name):
                fix = "this name means the query, which needs no slot; give the slot another name"
            raise InputError(where, "the template has no slot of this name", got=name, fix=fix)
        if not isinstance(value, str):
            what = f"the value of the slot {name} must be text"
            raise InputError(where, what, got=value, fix="write it as text, in quotes")
    for name in names or ():
        if name not in given:
            fix = f"add {written([name])}; where the template means the text itself, write \\{{{{{name}}}}} there"
            raise InputError(where, f"no value for the slot {name} of the template", fix=fix)
    return {name: clean(given[name]) for name in (given if names is None else names)}


def read_template(text: str, path: Path) -> tuple[str, tuple[str, ...]]:
    r"""Return a template and the names of its slots; without slots, a text like `\{{x}}` has lost its backslash.

    Raises InputError for a template of nothing but slots.

    >>> read_template(r"Write \{{x}}.", Path("template.md"))
    ('Write {{x}}.', ())
    """
    names = slot_names(text)
    if not names:
        return SLOT.sub(lambda match: match["mark"], text), ()
    if not re.search(r"\w", "".join(literals(text, names)[0])):
        where = f"{path}:{line_of_slot(text, names[0])}"
        fix = "write the text that every request repeats around them"
        raise InputError(where, "nothing but slots, so there is nothing to learn", got=text, fix=fix)
    return text, names
