"""One line of a JSONL file, read strictly: whatever programs read in different ways is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import InputError
from pilocal.task.text import MARK, is_deep

HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which is no character: no file, no tokenizer and no terminal takes it."""


@dataclass(frozen=True, slots=True)
class Line:
    """Where a record stands."""

    path: Path
    number: int
    """Counted from 1."""

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"


def read_json(text: str, where: Line) -> Any:
    """Return the value on a line.

    Raises InputError for broken JSON and for what is JSON only to some: a key that stands twice, numbers that are none
    or have thousands of digits, half a surrogate pair, a hundred levels of lists and objects.
    """
    text = text.lstrip(MARK)
    try:
        value = DECODER.decode(text)
        deep = is_deep(value)
    except json.JSONDecodeError as error:
        fix = "write one JSON object per line"
        raise InputError(where, f"broken JSON: {error.msg}", got=text, fix=fix) from None
    except RecursionError:
        deep = True
    except InputError as fault:
        raise InputError(where, fault.problem, got=fault.got, fix=fault.fix) from None
    if deep:
        raise InputError(where, "lists and objects are nested too deeply", got=text, fix="make the record flat")
    if "\\u" in text and (half := HALF.search(json.dumps(value, ensure_ascii=False))):
        fix = "write the whole character; the other half was cut off"
        raise InputError(where, "half a surrogate pair, which is no character", got=half[0], fix=fix)
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise InputError("", "a key stands twice in one object", got=twice, fix="keep one of the two")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # more digits than Python reads
        raise InputError("", "a whole number of thousands of digits", got=digits, fix="write it as text") from None


def _real(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise InputError("", "a number too large", got=digits, fix="write it as text")
    return found


def _constant(name: str) -> float:
    raise InputError("", "not a number of JSON", got=name, fix="write a number, null or text")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant)
