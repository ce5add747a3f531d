"""A JSON schema as GBNF: every answer in the grammar is valid, and what the grammar cannot say is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from pilocal.llamacpp.gbnf import MAX_BYTES, MAX_REPEATED, GrammarError
from pilocal.llamacpp.gbnf_rules import read_grammar
from pilocal.llamacpp.json_apart import apart
from pilocal.llamacpp.json_merge import (
    ANNOTATIONS,
    MAX_DEPTH,
    Document,
    Schema,
    UnsupportedSchema,
    below,
    check_size,
    constants_of,
    fail,
    properties_of,
    required_of,
    schemas_of,
    types_of,
)
from pilocal.llamacpp.json_numbers import MOST, MOST_BOUND, Bounds, decimal_numbers, whole_numbers
from pilocal.llamacpp.json_pattern import PatternError, json_characters, pattern_grammar
from pilocal.llamacpp.json_values import BUILTIN, FORMATS, USES, json_text, literal

__all__ = ["JSON_OBJECT", "UnsupportedSchema", "schema_grammar"]

MAX_PATTERN_GRAMMAR = 20_000
"""Bytes of GBNF for one regular expression."""

MAX_NAME = 100
"""Characters of a property's name beside additionalProperties."""


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return GBNF whose every text is valid JSON that fits a schema.

    It may write less than the schema allows: properties in the schema's order, none beyond those listed unless
    `additionalProperties` is given, all of `prefixItems`, and only types of which the keywords speak where there is no
    `type`.

    It does type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
    minLength, maxLength, pattern, format (date, time, date-time, uuid), minimum, maximum, exclusiveMinimum,
    exclusiveMaximum, anyOf, oneOf if its branches exclude each other, allOf, and $ref within the schema, also in a
    circle. Annotations are passed over.

    Raises UnsupportedSchema, with the path, for any other keyword, a value that a keyword cannot have, what no finite
    answer fits, and a schema or grammar over its limits.
    """
    check_size(schema)
    if not isinstance(schema, Mapping):
        fail("$", "a schema is an object", schema)
    text = _Writer(schema).text()
    try:
        read_grammar(text)
    except GrammarError as error:
        fail("$", f"the schema makes no grammar that can be followed, as where no finite answer fits: {error}")
    return text


class _Writer:
    """Writes a rule for each schema in a document; equal rules are one."""

    def __init__(self, root: Schema) -> None:
        self._document = Document(root)
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._size = self._depth = 0

    def text(self) -> str:
        """Return the whole grammar."""
        root = self._rule(self._document.root, "$")
        return "".join(f"{name} ::= {body}\n" for name, body in [*self._bodies.items(), ("root", root)])

    def _builtin(self, name: str) -> str:
        if name not in self._bodies:
            self._bodies[name] = BUILTIN[name]
            for used in USES.get(name, ()):
                self._builtin(used)
        return name

    def _named(self, body: str) -> str:
        if body in self._bodies:
            return body
        if body not in self._names:
            self._size += len(body)
            if self._size > MAX_BYTES:
                fail("$", f"its grammar has more than {MAX_BYTES} bytes")
            self._names[body] = f"r{len(self._names) + len(self._references)}"
            self._bodies[self._names[body]] = body
        return self._names[body]

    def _rule(self, schema: object, path: str) -> str:
        """Return the name of a rule for a schema."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            fail(path, f"with its references followed, the schema is deeper than {MAX_DEPTH} schemas")
        name = self._of_schema(schema, path)
        self._depth -= 1
        return name

    def _of_schema(self, schema: object, path: str) -> str:
        if isinstance(schema, Mapping) and "$ref" in schema and not schema.keys() - ANNOTATIONS - {"$ref"}:
            return self._reference(schema["$ref"], path)
        flat = self._document.flat(schema, path)
        if flat is False:
            fail(path, "nothing fits it")
        if flat is True or not flat:
            return self._builtin("value")
        choice = next((key for key in ("anyOf", "oneOf") if key in flat), None)
        if choice:
            return self._choice(flat, choice, path)
        constants = constants_of(flat, path)
        if constants is not None:
            return self._constants(flat, constants, path)
        kinds = [self._of_type(kind, flat, path) for kind in types_of(flat, path)]
        return self._named(" | ".join(kinds))

    def _reference(self, reference: object, path: str) -> str:
        target, where = self._document.resolved(reference, path)
        if where not in self._references:
            # Named before it is written, as it may refer to itself.
            name = self._references[where] = f"r{len(self._names) + len(self._references)}"
            self._bodies[name] = ""
            self._bodies[name] = self._rule(target, where)
        return self._references[where]

    def _choice(self, schema: Schema, key: str, path: str) -> str:
        rest = {name: value for name, value in schema.items() if name != key}
        listed = schemas_of(schema, key, path)
        branches: list[object] = [{"allOf": [rest, each]} for each in listed] if rest else list(listed)
        if key == "oneOf":
            flat = [self._document.flat(each, f"{path}.oneOf[{i}]") for i, each in enumerate(branches)]
            for (i, one), (k, other) in combinations(enumerate(flat), 2):
                if not apart(self._document, one, other, path):
                    fail(f"{path}.oneOf", f"an answer might fit both [{i}] and [{k}]; write anyOf if it may")
        return self._named(" | ".join(self._rule(each, f"{path}.{key}[{i}]") for i, each in enumerate(branches)))

    def _constants(self, schema: Schema, constants: Sequence[object], path: str) -> str:
        beside = next((key for key in schema if key not in ("type", "enum", "const")), None)
        if beside is not None:
            fail(below(path, beside), "this server does not do that beside enum or const")
        if not constants:
            fail(path, "no value of enum or const is of the type")
        return self._named(" | ".join(self._constant(each) for each in constants))

    def _constant(self, value: object) -> str:
        if isinstance(value, Mapping | list | tuple) and value:
            self._builtin("ws")
            if isinstance(value, Mapping):
                parts = [f"{literal(json_text(key) + ':')} ws {self._constant(each)}" for key, each in value.items()]
            else:
                parts = [self._constant(each) for each in value]
            begin, end = ("{", "}") if isinstance(value, Mapping) else ("[", "]")
            return f'"{begin}" ws ' + ' "," ws '.join(parts) + f' ws "{end}"'
        return literal(json_text(value))

    def _of_type(self, kind: str, schema: Schema, path: str) -> str:
        writers: dict[str, Callable[[Schema, str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }
        return writers[kind](schema, path) if kind in writers else self._builtin(kind)

    def _object(self, schema: Schema, path: str) -> str:
        listed, required = properties_of(schema, path), required_of(schema, path)
        closed = bool(required) or "properties" in schema
        extra = schema.get("additionalProperties", not closed)
        if not listed and not required and _is_anything(extra):
            return self._builtin("object")
        self._builtin("ws")
        after, first = 'ws "}"', '"}"'
        if self._document.flat(extra, f"{path}.additionalProperties") is not False:
            value = self._rule(extra, f"{path}.additionalProperties")
            other = self._named(f'{self._other_name([*listed, *required], path)} ":" ws {value}')
            after = self._named(f'("," ws {other})* ws "}}"')
            first = self._named(f'{other} {after} | "}}"')
        unlisted = schema.get("additionalProperties", True)
        for member, needed in reversed(self._members(listed, required, unlisted, path)):
            first = self._named(f"{member} {after}" if needed else f"{member} {after} | {first}")
            after = self._named(f'"," ws {member} {after}' if needed else f'("," ws {member})? {after}')
        return self._named(f'"{{" ws {first}')

    def _members(
        self, listed: Mapping[str, Any], required: Sequence[str], unlisted: object, path: str
    ) -> list[tuple[str, bool]]:
        """Return a rule for each property with its name, and whether it is required."""
        found = []
        for name in dict.fromkeys([*listed, *required]):
            schema, where = listed.get(name, unlisted), below(f"{path}.properties", name)
            if self._document.flat(schema, where) is not False:
                key = literal(json_text(name) + ":")
                found.append((self._named(f"{key} ws {self._rule(schema, where)}"), name in required))
            elif name in required:
                fail(where, "it is required, and nothing fits it")
        return found

    def _other_name(self, names: Sequence[str], path: str) -> str:
        """Return a rule for a property's name that is none of these, without escapes, which could spell one of them."""
        if not names:
            return self._builtin("plain-string")
        if max(map(len, names)) > MAX_NAME:
            fail(f"{path}.additionalProperties", f"beside it this server does names of {MAX_NAME} characters at most")
        tree: dict[str, Any] = {}
        for name in names:
            node = tree
            for character in name:
                node = node.setdefault(character, {})
            node[""] = {}

        def rest(node: dict[str, Any]) -> str:
            inside = {character: inner for character, inner in node.items() if character}
            taken = "".join(f"\\U{ord(character):08X}" for character in inside)
            found = [f'[^"\\\\\\x7F\\x00-\\x1F{taken}] {plain}* "\\""']
            plain_ones = (each for each in inside if json_characters([(ord(each), ord(each))]).startswith("["))
            found += [f"{literal(each)} {rest(inside[each])}" for each in plain_ones]
            if "" not in node:
                found.append('"\\""')
            return self._named(" | ".join(found))

        plain = self._named('[^"\\\\\\x7F\\x00-\\x1F]')
        return self._named(f'"\\"" {rest(tree)}')

    def _array(self, schema: Schema, path: str) -> str:
        low, high = _counts(schema, "minItems", "maxItems", path)
        if "prefixItems" not in schema and (low, high) == (0, None) and _is_anything(schema.get("items", True)):
            return self._builtin("array")
        prefix = self._prefix(schema, high, path)
        whole = len(prefix) == len(schema.get("prefixItems", ()))
        items = schema.get("items", low > len(prefix) if prefix else True)
        if isinstance(items, list | tuple):
            fail(f"{path}.items", "a list of schemas is written prefixItems here")
        if not whole or self._document.flat(items, f"{path}.items") is False:
            high = len(prefix)
        if high is not None and low > high:
            fail(path, f"no array has at least {low} and at most {high} items")
        self._builtin("ws")
        fixed = [self._rule(each, f"{path}.prefixItems[{i}]") for i, each in enumerate(prefix)]
        return self._named(self._list(fixed, items, low, high, path))

    def _prefix(self, schema: Schema, high: int | None, path: str) -> Sequence[object]:
        """Return the schemas of an array's first items, up to the first that cannot be."""
        prefix = schemas_of(schema, "prefixItems", path) if "prefixItems" in schema else []
        for i, each in enumerate(prefix[:high]):
            if self._document.flat(each, f"{path}.prefixItems[{i}]") is False:
                return prefix[:i]
        return prefix[:high]

    def _list(self, fixed: list[str], items: object, low: int, high: int | None, path: str) -> str:
        """Return an array of so many items, of which the first are these rules."""
        low = max(0, low - len(fixed))
        high = None if high is None else high - len(fixed)
        begin = '"[" ws ' + ' "," ws '.join(fixed)
        if high == 0:
            return f'{begin} ws "]"' if fixed else f'{begin}"]"'
        item = self._rule(items, f"{path}.items")
        if fixed:
            return f'{begin} ("," ws {item}){_times(low, high)} ws "]"'
        further = f'{item} ("," ws {item}){_times(max(low - 1, 0), None if high is None else high - 1)} ws'
        return f'"[" ws {further if low else f"({further})?"} "]"'

    def _string(self, schema: Schema, path: str) -> str:
        said = [key for key in ("pattern", "format", "minLength", "maxLength") if key in schema]
        if not said:
            return self._builtin("string")
        if said[0] in ("pattern", "format"):
            if len(said) > 1:
                fail(f"{path}.{said[1]}", f"this server does not do that beside {said[0]}")
            write = self._pattern if said == ["pattern"] else self._format
            return write(schema[said[0]], path)
        low, high = _counts(schema, "minLength", "maxLength", path)
        return self._named(f'"\\"" {self._builtin("char")}{_times(low, high)} "\\""')

    def _format(self, name: object, path: str) -> str:
        if name not in FORMATS:
            fail(f"{path}.format", f"this server does {', '.join(FORMATS)}", name)
        return self._named(f'"\\"" {self._builtin(str(name))} "\\""')

    def _pattern(self, pattern: object, path: str) -> str:
        if not isinstance(pattern, str):
            fail(f"{path}.pattern", "a regular expression is a text", pattern)
        try:
            found = pattern_grammar(pattern, self._builtin("char"))
            if len(found) > MAX_PATTERN_GRAMMAR:
                raise PatternError(f"its grammar has more than {MAX_PATTERN_GRAMMAR} bytes")
        except PatternError as error:
            fail(f"{path}.pattern", f"this server does not do that: {error}")
        return self._named(f'"\\"" ({found}) "\\""')

    def _integer(self, schema: Schema, path: str) -> str:
        low, above = _bound(schema, "minimum", "exclusiveMinimum", path)
        high, below_it = _bound(schema, "maximum", "exclusiveMaximum", path)
        if low is None and high is None:
            return self._builtin("integer")
        least = -MOST if low is None else math.floor(low) + 1 if above else math.ceil(low)
        most = MOST if high is None else math.ceil(high) - 1 if below_it else math.floor(high)
        found = whole_numbers(max(least, -MOST), min(most, MOST))
        return self._named(found) if found else fail(path, "no whole number of 16 digits is between its bounds")

    def _number(self, schema: Schema, path: str) -> str:
        low, above = _bound(schema, "minimum", "exclusiveMinimum", path)
        high, below_it = _bound(schema, "maximum", "exclusiveMaximum", path)
        if low is None and high is None:
            return self._builtin("number")
        for bound in (low, high):
            if bound is not None and (bound != int(bound) or abs(bound) > MOST_BOUND):
                fail(path, f"this server does bounds of a number that are whole, up to {MOST_BOUND}", bound)
        least, most = (None if bound is None else int(bound) for bound in (low, high))
        found = decimal_numbers(Bounds(least, most, above=above, below=below_it))
        return self._named(found) if found else fail(path, "no number is between its bounds")


def _is_anything(schema: object) -> bool:
    return schema is True or schema == {}


def _bound(schema: Schema, key: str, exclusive: str, path: str) -> tuple[int | float | None, bool]:
    """Return the nearer of two bounds, and whether it is itself left out."""
    found = []
    for name in (key, exclusive):
        bound = schema.get(name)
        if name in schema and (isinstance(bound, bool) or not isinstance(bound, int | float)):
            fail(f"{path}.{name}", "a bound is a number", bound)
        if bound is not None:
            found.append((bound, name == exclusive))
    sign = 1 if key == "minimum" else -1
    return max(found, key=lambda each: (sign * each[0], each[1])) if found else (None, False)


def _counts(schema: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
    """Return the lowest and the highest count that a schema allows."""
    for key in (least, most):
        count = schema.get(key, 0)
        if isinstance(count, bool) or not isinstance(count, int | float) or count != int(count) or count < 0:
            fail(f"{path}.{key}", "a count is a whole number from 0", count)
        if count > MAX_REPEATED:
            fail(f"{path}.{key}", f"this server counts to {MAX_REPEATED}", count)
    low, high = int(schema.get(least, 0)), schema.get(most)
    if high is not None and low > high:
        fail(f"{path}.{least}", f"it is over {most}", low)
    return low, None if high is None else int(high)


def _times(low: int, high: int | None) -> str:
    return "*" if low == 0 and high is None else f"{{{low},{'' if high is None else high}}}"


JSON_OBJECT = schema_grammar({"type": "object"})
"""GBNF for any JSON object."""
