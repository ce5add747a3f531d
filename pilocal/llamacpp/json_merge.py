"""JSON schemas as values: read within bounds, references resolved, parts put together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

MAX_BYTES = 65_536
"""Bytes of a schema as JSON."""

MAX_DEPTH = 48
"""Objects and arrays within each other in a schema."""

MAX_VISITED = 5_000
"""Schemas that are read, counted again where parts are put together."""

ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions"),
    )
)
"""Keywords that say nothing about which answers are valid."""

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
"""Keywords that speak of values of one type."""

NEARER: Mapping[str, Callable[[float, float], float]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minItems", "minLength"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxItems", "maxLength"), min),
}
"""Which of two bounds holds where both are asked for."""

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
PASSED = ANNOTATIONS.union(("$ref", "allOf"))
KNOWN = ANNOTATIONS.union(*KEYWORDS.values(), ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"))

Schema = Mapping[str, Any]


class UnsupportedSchema(ValueError):
    """A JSON schema that is not taken; `str()` is one line: the path in the schema, and what is wrong."""


def fail(path: str, what: str, got: object = None) -> NoReturn:
    """Raise UnsupportedSchema."""
    where = path if len(path) <= 160 else f"{path[:80]}...{path[-70:]}"
    raise UnsupportedSchema(f"{where}: {what}" + ("" if got is None else f"; got {ascii(got)[:80]}"))


def below(path: str, key: str) -> str:
    """Return the path of what an object has under a key.

    >>> below("$.properties", "a b")
    '$.properties["a b"]'
    """
    plain = key.isascii() and key.replace("$", "").isidentifier()
    return f"{path}.{key}" if plain else f"{path}[{json.dumps(key)[:60]}]"


def check_size(schema: object) -> None:
    """Raise UnsupportedSchema for a schema that is too large, too deep, or no JSON; in time that its limits bound."""
    todo: list[tuple[object, int]] = [(schema, 1)]
    size = 0
    while todo:
        value, depth = todo.pop()
        if depth > MAX_DEPTH:
            fail("$", f"more than {MAX_DEPTH} levels")
        length, inside = _measured(value)
        todo += [(each, depth + 1) for each in inside]
        size += length
        if size > MAX_BYTES:
            fail("$", f"more than {MAX_BYTES} bytes")
    try:
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:  # NaN, a number of too many digits, half a surrogate pair
        fail("$", f"this is no JSON: {error}")


def _measured(value: object) -> tuple[int, Iterable[object]]:
    """Return about how many bytes a value takes, and the values within it."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            fail("$", "a key is no text")
        return sum(len(key) + 4 for key in value) + 2, value.values()
    if isinstance(value, list | tuple):
        return 2 * len(value) + 2, value
    if not (value is None or isinstance(value, bool | int | float | str)):
        fail("$", "this is no JSON", value)
    return len(value) + 3 if isinstance(value, str) else 1, ()


def canonical(value: object) -> str:
    """Return equal texts for values that JSON Schema calls equal: 1 and 1.0, and objects in any order."""

    def plain(each: Any) -> Any:
        if isinstance(each, Mapping):
            return {key: plain(inner) for key, inner in each.items()}
        if isinstance(each, list | tuple):
            return [plain(inner) for inner in each]
        return int(each) if isinstance(each, float) and each.is_integer() else each

    return json.dumps(plain(value), sort_keys=True)


def type_of(value: object) -> str:
    """Return a JSON value's type; a number without fraction is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = ((float, "number"), (str, "string"), (Mapping, "object"), (type(None), "null"))
    return next((name for kind, name in names if isinstance(value, kind)), "array")


def types_of(schema: Schema, path: str) -> list[str]:
    """Return the types that a flat schema allows; without `type`, those of which its keywords speak, or all."""
    if "type" not in schema:
        return _spoken_of(schema) or [kind for kind in TYPES if kind != "integer"]
    found = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not isinstance(found, list | tuple) or not found or not set(map(str, found)) <= set(TYPES):
        fail(f"{path}.type", f"one of {', '.join(TYPES)}, or a list of these", schema["type"])
    return list(dict.fromkeys(each for each in found if each != "integer" or "number" not in found))


def _spoken_of(schema: Schema) -> list[str]:
    return [kind for kind, keywords in KEYWORDS.items() if not schema.keys().isdisjoint(keywords)]


def constants_of(schema: Schema, path: str) -> list[Any] | None:
    """Return the values that `enum` and `const` allow; None without these."""
    if "enum" not in schema and "const" not in schema:
        return None
    found = schema.get("enum", [schema.get("const")])
    if not isinstance(found, list | tuple) or not found:
        fail(f"{path}.enum", "a list of values", found)
    values = {canonical(each): each for each in found}
    if "const" in schema:
        wanted = canonical(schema["const"])
        values = {wanted: values[wanted]} if wanted in values else {}
    allowed = wider_types(schema, path) if "type" in schema else set(TYPES)
    return [each for each in values.values() if type_of(each) in allowed]


def wider_types(schema: Schema, path: str) -> set[str]:
    """Return the types that a flat schema allows, integers among numbers."""
    types = set(types_of(schema, path))
    return types | {"integer"} if "number" in types else types


@dataclass(slots=True)
class Document:
    """A schema in which references are resolved."""

    root: Schema
    visited: int = field(default=0)
    depth: int = field(default=0)

    def flat(self, schema: object, path: str) -> Schema | bool:
        """Return a schema without $ref, allOf and annotations; raises UnsupportedSchema for an unknown keyword."""
        self.visited += 1
        if self.visited > MAX_VISITED:
            fail(path, f"more than {MAX_VISITED} schemas, counting those that are put together of others")
        if isinstance(schema, bool):
            return schema
        schema = _known(schema, path)
        parts = []
        if "$ref" in schema:
            target, where = self.resolved(schema["$ref"], path)
            parts.append((target, where))
        if "allOf" in schema:
            parts += [(each, f"{path}.allOf[{i}]") for i, each in enumerate(schemas_of(schema, "allOf", path))]
        whole: Schema | bool = {key: schema[key] for key in schema if key not in PASSED}
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail(path, f"more than {MAX_DEPTH} schemas are put together of each other")
        for part, where in parts:
            whole = _both(whole, self.flat(part, where), path)
        self.depth -= 1
        return whole

    def resolved(self, reference: object, path: str) -> tuple[object, str]:
        """Return what a reference points to, and its path; a chain of references is followed to its end."""
        seen = set()
        while True:
            if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
                fail(f"{path}.$ref", "only references such as #/$defs/name are resolved", reference)
            if reference in seen:
                fail(f"{path}.$ref", "it refers to itself", reference)
            seen.add(reference)
            target, where = self._pointed(reference, path)
            if not (isinstance(target, Mapping) and "$ref" in target and not (target.keys() - ANNOTATIONS - {"$ref"})):
                return target, where
            reference = target["$ref"]

    def _pointed(self, reference: str, path: str) -> tuple[object, str]:
        target: Any = self.root
        where = "$"
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target, where = target[key], below(where, key)
            elif isinstance(target, list | tuple) and key.isdecimal() and key.isascii() and int(key[:6]) < len(target):
                target, where = target[int(key[:6])], f"{where}[{key}]"
            else:
                fail(f"{path}.$ref", "there is no such place in the schema", reference)
        return target, where


def _known(schema: object, path: str) -> Schema:
    """Return a schema; raises UnsupportedSchema for a keyword that is unknown."""
    if not isinstance(schema, Mapping):
        fail(path, "a schema is an object, true or false", schema)
    unknown = next((key for key in schema if key not in KNOWN), None)
    if unknown is not None:
        fail(below(path, unknown), "this server does not do that")
    return schema


def schemas_of(schema: Schema, key: str, path: str) -> Sequence[object]:
    """Return the list of schemas under a key."""
    found = schema[key]
    if not isinstance(found, list | tuple) or not found:
        fail(f"{path}.{key}", "a list of schemas", found)
    return found


def properties_of(schema: Schema, path: str) -> Mapping[str, Any]:
    """Return an object's properties by name."""
    found = schema.get("properties", {})
    if not isinstance(found, Mapping):
        fail(f"{path}.properties", "an object of schemas", found)
    return found


def required_of(schema: Schema, path: str) -> list[str]:
    """Return the names of the properties that an object must have."""
    found = schema.get("required", [])
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        fail(f"{path}.required", "a list of names", found)
    return list(dict.fromkeys(found))


def _both(one: Schema | bool, other: Schema | bool, path: str) -> Schema | bool:
    """Return a flat schema for what fits both."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one and other
    joined: dict[str, Any] = {**other, **one}
    for key in sorted((one.keys() & other.keys()) - {"properties", "additionalProperties"}):
        joined[key] = _both_values(key, one, other, path)
    if not (one.keys().isdisjoint(KEYWORDS["object"]) or other.keys().isdisjoint(KEYWORDS["object"])):
        joined |= _both_objects(one, other, path)
    return joined


def _both_values(key: str, one: Schema, other: Schema, path: str) -> Any:
    mine, others = one[key], other[key]
    if canonical(mine) == canonical(others):
        return mine
    if key == "required":
        return list(dict.fromkeys([*required_of(one, path), *required_of(other, path)]))
    if key == "items" and "prefixItems" not in {**one, **other}:
        return {"allOf": [mine, others]}
    if key in NEARER and isinstance(mine, int | float) and isinstance(others, int | float):
        return NEARER[key](mine, others)
    if key not in ("type", "enum"):
        fail(f"{path}.{key}", "two parts say this differently, which is not put together here")
    shared = _both_types(one, other, path) if key == "type" else _both_enums(mine, others, path)
    return shared or fail(f"{path}.{key}", "nothing of it is in both parts", [mine, others])


def _both_types(one: Schema, other: Schema, path: str) -> list[str]:
    shared = wider_types(one, path) & wider_types(other, path)
    return [each for each in TYPES if each in shared]


def _both_enums(mine: object, others: object, path: str) -> list[Any]:
    wanted = {canonical(each) for each in constants_of({"enum": others}, path) or ()}
    return [each for each in constants_of({"enum": mine}, path) or () if canonical(each) in wanted]


def _both_objects(one: Schema, other: Schema, path: str) -> dict[str, Any]:
    """Return the properties that fit both; a name that one part does not list is up to its additionalProperties."""
    mine, others = properties_of(one, path), properties_of(other, path)
    found: dict[str, Any] = {}
    listed = {
        name: _all([mine.get(name, one.get("additionalProperties", True)),
                    others.get(name, other.get("additionalProperties", True))])
        for name in dict.fromkeys([*mine, *others])
    }  # fmt: skip
    if listed:
        found["properties"] = listed
    extra = [each["additionalProperties"] for each in (one, other) if "additionalProperties" in each]
    if extra:
        found["additionalProperties"] = _all(extra)
    return found


def _all(schemas: Iterable[object]) -> object:
    """Return a schema for what fits all of these."""
    kept = [each for each in schemas if each is not True and each != {}]
    if any(each is False for each in kept):
        return False
    return True if not kept else kept[0] if len(kept) == 1 else {"allOf": kept}
