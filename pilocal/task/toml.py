"""Strict reading of TOML tables into frozen dataclasses; every fault is reported at once, with its file and line."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pilocal.errors import InputError, PilocalError, did_you_mean, nearest
from pilocal.task.text import absent, decoded, is_deep, meant

T = TypeVar("T")

DEEP = "lists and tables are nested too deeply"

LARGEST = 2**63
"""TOML's whole numbers lie below it and have 64 bits."""

LARGE = re.compile(r"[=\[,]\s*[+-]?(\d[\d_]{18,}|0[xob][\da-fA-F_]{16,}|inf|nan|\d[\d_.]*[eE]\+?[\d_]{3,})")
"""How a number that may be too large is written."""


Check = tuple[bool, str, str] | tuple[bool, str, str, str]
"""Whether a setting holds, its key, what it must be, and what to do where that is not "correct it"."""

CORRECT = "correct it"


class InvalidSettings(ValueError):
    """Raised by a dataclass's `__post_init__`: (key, what it must be, what to do) for each bad value."""

    def __init__(self, problems: list[tuple[str, str, str]]) -> None:
        self.problems = problems
        said = [f"{key}: {problem}" + (f"; {fix}" if fix != CORRECT else "") for key, problem, fix in problems]
        super().__init__("; ".join(said))


def require(*checks: Check) -> None:
    """Raise `InvalidSettings` for every check that does not hold."""
    problems = [(key, problem, fix[0] if fix else CORRECT) for holds, key, problem, *fix in checks if not holds]
    if problems:
        raise InvalidSettings(problems)


def one_of(value: str | None, key: str, known: Iterable[str], otherwise: str = "") -> Check:
    """Return the check that a setting is one of some words; where it is nearly one of them, that one is named.

    `otherwise` follows the words where something else would do as well.

    >>> one_of("Linaer", "decay", ["linear", "drop"])
    (False, 'decay', 'must be "linear" or "drop"', 'did you mean linear?')
    """
    known = list(known)
    near = nearest(value or "", known)
    words = '"{}" or "{}"'.format(*known) if len(known) == 2 else f"one of {', '.join(known)}"
    must = f"must be {words}{otherwise}"
    return value in known, key, must, f"did you mean {near}?" if near else CORRECT


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the parsed table and the text of a TOML file.

    Raises InputError when the file is missing, not UTF-8 or not TOML (with the line).
    """
    text = read_text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise InputError(where, f"not valid TOML: {error}", fix="fix this line") from None
    except RecursionError:
        raise InputError(path, DEEP, fix="no setting needs that") from None
    except ValueError:  # more digits than Python reads
        raise _too_large(text, path) from None
    if is_deep(values):
        raise InputError(path, DEEP, fix="no setting needs that")
    if not _fits_64_bits(values):
        raise _too_large(text, path)
    return values, text


def _fits_64_bits(value: Any) -> bool:
    """Tell whether all numbers in a value that is not deep are finite and have the 64 bits of TOML's."""
    if isinstance(value, dict | list):
        return all(map(_fits_64_bits, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -LARGEST <= value < LARGEST


def _too_large(text: str, path: Path) -> InputError:
    found = LARGE.search(text)
    where = f"{path}:{text.count(chr(10), 0, found.end()) + 1}" if found else str(path)
    return InputError(where, "a number that no setting can be", fix="correct this value")


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark and with every line end as a line feed.

    Raises InputError unless it exists, is UTF-8 and is not blank.
    """
    try:
        text = decoded(path.read_bytes(), path)
    except FileNotFoundError:
        near = meant(path)
        fix = f"did you mean {near}?" if near else "create it or correct the path"
        raise InputError(path, absent(path, "no such file"), fix=fix) from None
    except (IsADirectoryError, NotADirectoryError):
        raise InputError(path, "this must be a file, not a directory", fix="correct the path") from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", fix="correct the path or its rights") from None
    except ValueError:
        raise InputError(path, "not the name of a file", fix="correct the path") from None
    if not text.strip():
        raise InputError(path, "the file is empty", fix="fill it in")
    return text


def line_of(text: str, key: str, table: str = "", nth: int = 0) -> int:
    r"""Return the 1-based line where `key` is set in (the nth) `[table]` of a TOML text; the table's line if absent.

    >>> line_of('a = 1\n[t]\nb = 2\n', "b", "t")
    3
    """
    current, count, header_line = "", -1, 1
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([\w.-]+)\s*\]+", line):
            current = header[1]
            if current == table:
                count += 1
                if count == nth:
                    header_line = number
        elif (
            current == table and (not table or count == nth) and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line)
        ):
            return number
    return header_line


def build(
    cls: type[T],
    values: dict[str, Any],
    faults: list[PilocalError],
    path: Path,
    text: str,
    table: str = "",
    nth: int = 0,
) -> T | None:
    """Make `cls` from a TOML table, or append its faults to `faults` and return None.

    Unknown keys, wrong types, missing keys and the objections of `__post_init__` are all reported with their lines.
    """
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    before = len(faults)

    def where(key: str) -> str:
        return f"{path}:{line_of(text, key, table, nth)}"

    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            what = f"unknown key {key}" + (f" in [{table}]" if table else "")
            faults.append(InputError(where(key), what, fix=did_you_mean(key, fields)))
        elif not _fits(value, hints[key]):
            faults.append(InputError(where(key), f"{key} must be {_name(hints[key])}", got=value, fix="correct it"))
        else:
            ready[key] = tuple(value) if isinstance(value, list) else value
            if hints[key] is float:
                ready[key] = float(value)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            faults.append(InputError(where(name), f"{name} is missing", fix=f"add {name} = ..."))
    if len(faults) > before:
        return None
    try:
        return cls(**ready)
    except InvalidSettings as error:
        faults += [
            InputError(where(key), f"{key} {problem}", got=ready.get(key), fix=fix)
            for key, problem, fix in error.problems
        ]
        return None


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is type(None):
        return value is None
    return isinstance(value, hint)


def _name(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list of {_name(get_args(hint)[0])}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_name(option) for option in get_args(hint) if option is not type(None))
    return {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))
