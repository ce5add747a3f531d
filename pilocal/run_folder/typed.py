"""A dataclass from the values of a JSON object, each of the kind that its field says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def made(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass from its fields' values.

    Raises TypeError for a field that is unknown or missing, or whose value is of another kind, and whatever its own
    checks raise. A whole number is a number, too.
    """
    kind: Any = cls
    hints = _hints(kind)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{name} is {value!r:.60}")
    return cls(**values)


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the kind that an annotation says.

    >>> fits([1, 2.5], list[float]), fits({"a": None}, dict[str, int]), fits(True, int), fits((), tuple[str, ...])
    (True, False, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if origin is not None:
        return _holds(value, origin, inner)
    if hint in (int, float):
        return isinstance(value, (int,) if hint is int else (int, float)) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)


def _holds(value: Any, origin: Any, inner: Sequence[Any]) -> bool:
    """Tell whether a value is a list, or an object, of what an annotation says."""
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
