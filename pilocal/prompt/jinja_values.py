"""How large what a chat template makes may become, looked at before it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.utils import Namespace


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


WORK = 2**27
"""What one rendering may do; a character that is made is 1. It is spent within seconds."""

CALL, STEP, ITEM = 512, 128, 32
"""A call; a round of a loop, a filter or a computation; an item of a list that is made or looked at."""

MOST_TEXT = 2**25
"""Characters of one value, its items counted as `ITEM` each."""

MOST_ITEMS = MOST_TEXT // ITEM

MOST_DIGITS = 2**14
"""Bits of a whole number."""

TEXT_METHODS = names("""
    capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition
    removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper zfill
""")
"""Methods of texts that a chat template may call."""

CONSTANT = names("""
    attr count d default first float int last length safe
""")
"""Filters whose work does not grow with the value."""

ITERATING = names("""
    items join list map reject rejectattr reverse select selectattr title wordcount
""")
"""Filters that take each item once, as it is."""

_PRODUCTS = names("lstrip rfind rindex rpartition rsplit rstrip strip trim")
"""Methods and filters whose work may be the product of both texts' lengths."""

_TAKEN_APART = names("rsplit split splitlines")

_TEXT_FILTERS = names("format indent replace trim")

_WIDTHS = dict.fromkeys(("center", "indent", "ljust", "rjust", "truncate", "zfill"), 1000) | {
    "round": 100,
    "tojson": 100,
}
"""To how much a text may be filled up, or a line be indented; digits that are kept."""

_WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*|:[^{}]*\{")
"""A format that fills up to more than 999 characters, or to a width that is given with the values."""


class TooMuch(TemplateRuntimeError):
    """A chat template that takes more time or memory than any chat needs."""


class Named(Namespace):
    """A namespace that holds no names of Python's own, and is not written out."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            Named._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        Named._check(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace has no {name}")


def weight(value: Any, *, held: bool = False) -> int:
    """Return how many characters a value has, its items counted too; with `held` only the items, which are `ITEM` each.

    Raises TooMuch where it is too large, as a list that holds another twice, which holds another twice.

    >>> weight(["ab", {"c": 1}]), weight(["ab", {"c": 1}], held=True)
    (131, 128)
    """
    text, items = 0, 0
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str | bytes):
            text += len(one)
        elif isinstance(one, Mapping):
            items += 2 * len(one)
            if items <= MOST_ITEMS:
                todo += one.keys()
                todo += one.values()
        elif isinstance(one, Named):
            items += 8
            todo += one._Namespace__attrs.values()
        elif isinstance(one, list | tuple):
            items += len(one)
            if items <= MOST_ITEMS:
                todo += one
        if text + ITEM * items > MOST_TEXT:
            raise TooMuch("it makes a value that is too large")
    return ITEM * items if held else text + ITEM * items


def check_binary(operator: str, left: Any, right: Any) -> None:
    """Raise TooMuch for a computation whose result is too large."""
    if operator == "*":
        for one, times in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(times, int):
                _check_size(len(one) * (1 if isinstance(one, str) else ITEM) * max(times, 0))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if abs(left).bit_length() * max(right, 0) > MOST_DIGITS:
            raise TooMuch("it makes a number with too many digits")
    elif operator == "%" and isinstance(left, str):
        check_format(left, right)


def check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], spend: Callable[[int], None]) -> None:
    """Raise TooMuch for a filter whose result is too large, or that takes too long; `args` begin with the value."""
    given = [*args[1:], *kwargs.values()]
    if name in _TEXT_FILTERS:
        _check_text(str(args[0]) if args else "", name, given, spend)
    elif name in _WIDTHS:
        _check_widths(name, given)
    elif name == "sum" and not all(isinstance(each, int | float | str) for each in given):
        raise TooMuch("it may only sum numbers")


def check_text_call(
    owner: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], spend: Callable[[int], None]
) -> tuple[Any, ...]:
    """Return the arguments of a text's method; raises TooMuch as `check_filter` does, SecurityError for an odd one."""
    if name not in TEXT_METHODS:
        raise SecurityError(f"a chat template may not call {name} of a text")
    spend(len(owner) >> 4)
    if name == "join" and args:
        return (_joined_parts(owner, args[0], spend), *args[1:])
    _check_text(owner, name, [*args, *kwargs.values()], spend)
    return args


def _check_text(text: str, name: str, given: list[Any], spend: Callable[[int], None]) -> None:
    """Raise TooMuch for a filter or method that makes too much of a text."""
    if name in _PRODUCTS:
        spend(len(text) * sum(len(each) for each in given if isinstance(each, str)) >> 4)
    if name in _WIDTHS:
        width = _check_widths(name, given)
        _check_size(len(text) + (text.count("\n") + 1) * max(width, ITEM))
    elif name in _TAKEN_APART:
        _check_size(ITEM * _pieces(text, given))
    elif name == "replace":
        old, new = (str(each) for each in (*given, "", "")[:2])
        _check_size(len(text) + text.count(old) * len(new))
    elif name == "format":
        check_format(text, given)


def _pieces(text: str, given: list[Any]) -> int:
    """Return into how many pieces a text may be taken apart."""
    seps = [each for each in given if isinstance(each, str) and each]
    return text.count(seps[0]) if seps else len(text) // 2


def _check_widths(name: str, given: list[Any]) -> int:
    """Return the widest of what a filter or method is given to fill up to; raises TooMuch where it is too wide."""
    widths = [len(each) if isinstance(each, str) else each for each in given if isinstance(each, str | int)]
    if max(widths, default=0) > _WIDTHS[name]:
        raise TooMuch(f"{name} is given too much")
    return max(widths, default=0)


def _joined_parts(between: str, parts: Any, spend: Callable[[int], None]) -> list[Any]:
    found = []
    for part in parts:
        spend(len(between) + (len(part) if isinstance(part, str) else 1))
        found.append(part)
    return found


def written_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return a value as JSON, as chat templates have it: no character is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_size(size: int) -> None:
    if size > MOST_TEXT:
        raise TooMuch("it makes a value that is too large")


def check_format(text: str, given: Any) -> None:
    """Raise TooMuch for a format that writes too much."""
    if _WIDE.search(text):
        raise TooMuch("a format is too wide")
    _check_size((len(text) // 2 + 1) * (weight(given) + 1000))
