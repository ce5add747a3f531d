"""Which schemas exclude each other, so that an answer for one of them is an answer for one alone."""

from __future__ import annotations

from collections.abc import Sequence

from pilocal.llamacpp.json_merge import (
    TYPES,
    Document,
    Schema,
    canonical,
    constants_of,
    properties_of,
    required_of,
    type_of,
    wider_types,
)

DEPTH = 3
"""Properties within properties that are compared."""

VALUES = 5
"""Constants that weigh as much as a schema in the limit of schemas that are read."""


def apart(document: Document, one: object, other: object, path: str, depth: int = 0) -> bool:
    """Tell whether it is certain that no answer written for either of two schemas fits the other."""
    first, second = document.flat(one, path), document.flat(other, path)
    if isinstance(first, bool) or isinstance(second, bool):
        return first is False or second is False
    if not {"anyOf", "oneOf"}.isdisjoint([*first, *second]):
        return False
    mine, others = constants_of(first, path), constants_of(second, path)
    if mine is not None and others is not None:
        document.visited += (len(mine) + len(others)) // VALUES
        return set(map(canonical, mine)).isdisjoint(map(canonical, others))
    shared = _types(first, mine, path) & _types(second, others, path)
    if not shared:
        return True
    if shared != {"object"} or mine is not others:
        return False
    return _objects_apart(document, first, second, path, depth)


def _types(schema: Schema, constants: Sequence[object] | None, path: str) -> set[str]:
    """Return the types that a flat schema takes, whichever are written for it."""
    if constants is None:
        return wider_types(schema, path) if "type" in schema else set(TYPES)
    return {type_of(each) for each in constants}


def _objects_apart(document: Document, first: Schema, second: Schema, path: str, depth: int) -> bool:
    """Tell whether a property that both must have differs, or each has one that the other's answers never have."""
    mine, others = properties_of(first, path), properties_of(second, path)
    shared = set(required_of(first, path)) & set(required_of(second, path)) & mine.keys() & others.keys()
    if depth < DEPTH and any(apart(document, mine[name], others[name], path, depth + 1) for name in sorted(shared)):
        return True
    return _needs_more(first, second, path) and _needs_more(second, first, path)


def _needs_more(schema: Schema, other: Schema, path: str) -> bool:
    """Tell whether an object has a property that no answer for another has: its listed and required ones alone."""
    if other.get("additionalProperties", False) is not False:
        return False
    return bool(set(required_of(schema, path)) - properties_of(other, path).keys() - set(required_of(other, path)))
