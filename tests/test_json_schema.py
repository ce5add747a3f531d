"""JSON schemas as grammars: every answer is valid for another's validator, and what is not done is refused by name."""

from __future__ import annotations

import json
import re
import uuid
from datetime import date, datetime, time
from random import Random
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.llamacpp.automaton import Automaton
from pilocal.llamacpp.gbnf_rules import read_grammar
from pilocal.llamacpp.grammar import Vocabulary
from pilocal.llamacpp.json_merge import MAX_BYTES, MAX_DEPTH
from pilocal.llamacpp.json_numbers import Bounds, decimal_numbers, whole_numbers
from pilocal.llamacpp.json_pattern import PatternError, pattern_grammar
from pilocal.llamacpp.json_schema import JSON_OBJECT, UnsupportedSchema, schema_grammar
from pilocal.llamacpp.model import Model
from tests.grammars import draw, random_schema

jsonschema = pytest.importorskip("jsonschema")

SCHEMAS = 300
"""Random schemas of a run; 3,000 took a minute and a half, with as many answers for each."""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Vocabulary:
    path = export_fused(starter, None, tmp_path_factory.mktemp("schema") / "starter.gguf", "f16")
    with Model(path, vocabulary_only=True) as model:
        return Vocabulary.of(model.tokenizer)


def validator(schema: Any) -> Any:
    """A validator that is not ours, with the formats that we do."""
    checker = jsonschema.FormatChecker(formats=())
    readers: dict[str, Any] = {
        "date": date.fromisoformat,
        "time": lambda text: time.fromisoformat(text).utcoffset() is not None,
        "date-time": lambda text: datetime.fromisoformat(text).utcoffset() is not None,
        "uuid": uuid.UUID,
    }
    for name, read in readers.items():
        checker.checks(name, raises=ValueError)(lambda text, read=read: not isinstance(text, str) or bool(read(text)))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def fits(schema: Any, text: str) -> bool:
    """Whether a schema's grammar takes a text as a whole."""
    machine = Automaton(read_grammar(schema_grammar(schema)))
    state = machine.walk(machine.start, text.encode())
    return state is not None and state.complete


def test_every_answer_to_a_random_schema_is_valid(vocabulary: Vocabulary) -> None:
    answers = 0
    for seed in range(SCHEMAS):
        schema = random_schema(Random(seed))
        try:
            grammar = schema_grammar(schema)
        except UnsupportedSchema as error:
            assert len(str(error).splitlines()) == 1
            continue
        valid = validator(schema)
        for attempt in range(2):
            answer, ended = draw(grammar, vocabulary, 2 * seed + attempt)
            if ended:
                answers += 1
                valid.validate(json.loads(answer))
    assert answers > 1.6 * SCHEMAS


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (True, ("1", "[]"), ()),
        ({}, ('{"a": [1, null]}', "true", "-0.5e-3"), ("nul", "01", "+1", "1.", "{,}", "'a'")),
        ({"type": "string"}, ('"a\\n\\u00e9\\"\u6f22"', '""'), ('"\n"', '"\\x"', '"\\ud83d"', "a")),
        ({"type": ["integer", "null"]}, ("12", "null", "-3"), ("1.5", '"1"', "true")),
        ({"type": ["integer", "number"]}, ("12", "1.5"), ("null",)),
        ({"enum": ["a", 1, None, {"b": [True]}]}, ('"a"', "1", "null", '{"b": [true]}'), ("2", '"b"')),
        ({"enum": ["a", 1, 2.0], "type": "integer"}, ("1", "2.0"), ('"a"',)),
        ({"const": 'say "\u00e9\n"'}, ('"say \\"\u00e9\\n\\""',), ('"say"',)),
        ({"minLength": 2, "maxLength": 3}, ('"ab"', '"\\u00e9\U0001f600a"'), ('"a"', '"abcd"', "12")),
        ({"minimum": 0, "type": "integer"}, ("0", "123456789012345"), ("-1",)),
        ({"exclusiveMinimum": 1.5, "maximum": 3.5, "type": "integer"}, ("2", "3"), ("1", "4", "2.0")),
        (
            {"exclusiveMinimum": 0, "maximum": 1, "type": "number"},
            ("0.5", "1", "1.0"),
            ("0", "0.0", "1.1", "-0.5", "1e0"),
        ),
        ({"items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ("[null]", "[null, null]"), ("[]", "[1]")),
        ({"prefixItems": [{"type": "null"}, {"const": 1}]}, ("[null,1]",), ("[null]", "[null,1,1]")),
        ({"prefixItems": [{"const": 1}], "minItems": 2}, ('[1,"x"]',), ("[1]", "[2,1]")),
        ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, ("[1]", "[1,2,2]"), ("[2]", "[1,1]")),
        ({"items": False, "type": "array"}, ("[]",), ("[1]",)),
        ({"prefixItems": [{"const": 1}, False, True], "items": True}, ("[1]",), ("[]", "[1,1]")),
        ({"prefixItems": [{"const": 1}, True], "maxItems": 1}, ("[1]",), ("[]", "[1,1]")),
        ({"type": "object", "required": ["x"], "additionalProperties": {"const": 1}}, ('{"x":1,"y":1}',), ('{"x":2}',)),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]},
            ('{"b":2}', '{"a":1,"b":2}', '{\n  "a": 1,\n  "b": 2\n}'),
            ("{}", '{"a":1}', '{"b":2,"a":1}', '{"b":2,}', '{,"b":2}', '{"b":2,"c":3}'),
        ),
        (
            {"properties": {"a": {"const": 1}, "ab": {"const": 2}}, "additionalProperties": {"const": 3}},
            ("{}", '{"a":1,"ab":2,"abc":3}', '{"":3,"b":3}', '{"ab":2}'),
            ('{"a":3}', '{"ab":3}', '{"\\u0061":3}', '{"abc":1}'),
        ),
        ({"type": "object", "required": ["x"]}, ('{"x":[1]}',), ("{}", '{"y":1}')),
        ({"type": "object", "properties": {}}, ("{}",), ('{"a":1}',)),
        ({"properties": {"a": False, "b": True}}, ("{}", '{"b":null}'), ('{"a":1}',)),
        ({"type": "object", "additionalProperties": {"type": "null"}}, ('{"x":null}',), ('{"x":1}',)),
        ({"anyOf": [{"const": 1}, {"type": "null"}], "description": "x"}, ("1", "null"), ("2",)),
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ('{"a":1}', '{"b":1}'), ("{}",)),
        ({"allOf": [{"type": ["number", "null"]}, {"type": ["integer", "string"]}]}, ("1",), ("1.5", "null", '"a"')),
        ({"allOf": [{"minimum": 2, "type": "integer"}], "maximum": 3}, ("2", "3"), ("1", "4")),
        (
            {
                "allOf": [
                    {"properties": {"a": {"minimum": 0}, "b": True}, "additionalProperties": False},
                    {"properties": {"a": {"type": "integer", "maximum": 2}, "c": True}, "required": ["a"]},
                ],
                "type": "object",
            },
            ('{"a":0}', '{"a":2,"b":[]}'),
            ('{"a":-1}', '{"a":3}', '{"a":1,"c":1}', "{}"),
        ),
        (
            {"$defs": {"n": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/n"}}]}}, "$ref": "#/$defs/n"},
            ("null", "[[null, []]]"),
            ("1", "[1]"),
        ),
        ({"definitions": {"a/b~c d": {"const": 1}}, "$ref": "#/definitions/a~1b~0c%20d"}, ("1",), ("2",)),
        ({"format": "date"}, ('"2024-02-29"', '"2025-12-31"'), ('"2025-02-29"', '"2025-04-31"', '"2025-1-1"')),
        ({"format": "time"}, ('"23:59:59Z"', '"00:00:00.5+01:30"'), ('"24:00:00Z"', '"12:00:00"')),
        ({"format": "date-time"}, ('"2025-06-30T12:00:00Z"',), ('"2025-06-30 12:00:00Z"',)),
        ({"format": "uuid"}, ('"123e4567-e89b-12d3-a456-426614174000"',), ('"123e4567e89b12d3a456426614174000"',)),
        ({"pattern": "b+$"}, ('"abb"', '"b"', '"\\nb"'), ('"bc"', '""')),
        ({"pattern": '^["\\\\]\\t[^a]$'}, ('"\\"\\t\\n"', '"\\\\\\tb"'), ('"\\"\\ta"', '"\\"tb"')),
    ],
)
def test_a_schema_takes_its_values_and_no_others(
    schema: Any, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    if schema is True:
        schema = {"title": "anything"}
    assert [text for text in inside if not fits(schema, text)] == []
    assert [text for text in outside if fits(schema, text)] == []
    for text in inside:
        validator(schema).validate(json.loads(text))


LEVELS: Any = True
for _ in range(100):
    LEVELS = {"type": "array", "items": LEVELS}
CHAIN = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(900)} | {"d900": True}
ENDLESS = {"properties": {"p": {"allOf": [{"$ref": "#/$defs/e"}, {"required": ["p"]}]}}}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": {"a": {"multipleOf": 2}}}, "$.properties.a.multipleOf: this server does not do that"),
        *(({"items": {key: 1}}, f"$.items.{key}: this server does not do that")
          for key in ("uniqueItems", "contains", "not", "if", "patternProperties", "minProperties", "propertyNames",
                      "dependentRequired", "unevaluatedProperties", "contentEncoding", "nullable", "$anchor")),
        ({"properties": {"a b": {"x-y": 1}}}, '$.properties["a b"]["x-y"]: this server does not do that'),
        ({"$defs": {"a": {"not": {}}}, "$ref": "#/$defs/a"}, "$.$defs.a.not: this server does not do that"),
        ({"type": "strnig"}, "$.type: one of object, array"),
        ({"type": []}, "$.type: one of object, array"),
        ({"format": "email"}, "$.format: this server does date, time, date-time, uuid; got 'email'"),
        ({"pattern": "(?=a)b"}, "$.pattern: this server does not do that: look-around"),
        ({"pattern": 7}, "$.pattern: a regular expression is a text; got 7"),
        ({"pattern": "a", "maxLength": 3}, "$.maxLength: this server does not do that beside pattern"),
        ({"enum": ["a"], "maxLength": 3}, "$.maxLength: this server does not do that beside enum"),
        ({"enum": []}, "$.enum: a list of values"),
        ({"enum": ["a"], "type": "integer"}, "$: no value of enum or const is of the type"),
        ({"minItems": -1}, "$.minItems: a count is a whole number from 0; got -1"),
        ({"minLength": "3"}, "$.minLength: a count is a whole number from 0; got '3'"),
        ({"maxLength": 5000}, "$.maxLength: this server counts to 2000; got 5000"),
        ({"minItems": 3, "maxItems": 2}, "$.minItems: it is over maxItems"),
        ({"items": [{}, {}]}, "$.items: a list of schemas is written prefixItems here"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "$: no whole number of 16 digits is between its bounds"),
        ({"type": "integer", "minimum": True}, "$.minimum: a bound is a number; got True"),
        ({"type": "number", "minimum": 0.5}, "$: this server does bounds of a number that are whole"),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}, "$: no number is between its bounds"),
        ({"properties": {"a": False}, "required": ["a"]}, "$.properties.a: it is required, and nothing fits it"),
        ({"properties": []}, "$.properties: an object of schemas; got []"),
        ({"required": "a"}, "$.required: a list of names; got 'a'"),
        ({"items": 1}, "$.items: a schema is an object, true or false; got 1"),
        ({"type": "object", "additionalProperties": 1}, "$.additionalProperties: a schema is an object, true or false"),
        ({"items": 3}, "$.items: a schema is an object, true or false; got 3"),
        ({"anyOf": []}, "$.anyOf: a list of schemas; got []"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "$.oneOf: an answer might fit both [0] and [1]"),
        ({"oneOf": [{"type": "string"}, {"properties": {}}]}, "$.oneOf: an answer might fit both [0] and [1]"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "$.oneOf: an answer might fit both [0] and [1]"),
        ({"allOf": [{"type": "null"}, {"type": "string"}]}, "$.type: nothing of it is in both parts"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "$.pattern: two parts say this differently"),
        ({"$ref": "#"}, "$.$ref: it refers to itself"),
        ({"$ref": "#/$defs/none"}, "$.$ref: there is no such place in the schema"),
        ({"$ref": "https://example.com/a.json"}, "$.$ref: only references such as #/$defs/name are resolved"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "$: the schema makes no grammar that can be"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "$: the schema makes no grammar that can be followed"),
        ({"allOf": [{"$ref": "#"}]}, f"more than {MAX_DEPTH} schemas are put together"),
        ({"$defs": {"e": ENDLESS}, "$ref": "#/$defs/e", "required": ["p"]}, "the schema is deeper than"),
        ({"$defs": CHAIN, "$ref": "#/$defs/d0"}, "the schema is deeper than"),
        ({"oneOf": [{"enum": [f"{i}-{k}" for k in range(80)]} for i in range(65)]}, "more than 5000 schemas"),
        ({"anyOf": [{"pattern": "a{0,1999}" * 5 + str(i)} for i in range(900)]}, "$: the schema makes no grammar"),
        (LEVELS, f"$: more than {MAX_DEPTH} levels"),
        ({"enum": ["x" * 1_000_000]}, f"$: more than {MAX_BYTES} bytes"),
        ({"properties": {f"p{i}": True for i in range(30_000)}}, f"$: more than {MAX_BYTES} bytes"),
        ({"enum": [float("nan")]}, "$: this is no JSON"),
        ({"const": "\ud800"}, "$: this is no JSON"),
        ({"const": {1, 2}}, "$: this is no JSON"),
        ({"anyOf": [{"pattern": "." * 200 + str(i)} for i in range(80)]}, "bytes"),
        ({"properties": {"n" * 5000: True}, "additionalProperties": True}, "names of 100 characters at most"),
        ([], "$: a schema is an object; got []"),
    ],
    ids=lambda value: ascii(value)[1:41],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name_in_one_line(schema: Any, problem: str) -> None:
    with pytest.raises(UnsupportedSchema) as caught:
        schema_grammar(schema)
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_whole_numbers_are_those_between_their_bounds() -> None:
    rng = Random(0)
    for _ in range(60):
        most = rng.choice((5, 50, 1200))
        low = rng.randint(-most, most)
        high = low + rng.randint(0, most)
        machine = Automaton(read_grammar(f"root ::= {whole_numbers(low, high)}"))
        for number in range(low - 15, high + 15):
            state = machine.walk(machine.start, str(number).encode())
            assert (state is not None and state.complete) == (low <= number <= high), (low, high, number)


def test_decimal_numbers_are_those_between_their_bounds() -> None:
    rng = Random(0)
    for _ in range(60):
        low, above, below = rng.randint(-12, 12), rng.random() < 0.5, rng.random() < 0.5
        high = low + rng.randint(1, 15)
        machine = Automaton(read_grammar(f"root ::= {decimal_numbers(Bounds(low, high, above=above, below=below))}"))
        for tenths in range(-300, 300):
            state = machine.walk(machine.start, f"{tenths / 10:.1f}".encode())
            number = tenths / 10
            inside = (low < number if above else low <= number) and (number < high if below else number <= high)
            assert (state is not None and state.complete) == inside, (low, high, above, below, number)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("^(a|b{2,3})*?c?$", ("", "c", "abbc", "bc", "abbbbbc", "ca")),
        ("^[\\w.-]+@x\\.y$", ("a.b-c@x.y", "@x.y", "a@xzy")),
        ("a|^b|c$", ("xax", "bx", "xb", "xc", "cx")),
        ("^\\d{3}(?:-\\d)?$", ("123", "123-4", "12", "123-")),
        ("^.\\u00e9\\x41\\/$", ("x\u00e9A/", "\u00e9A/")),
        ("^[^a-c\\]]{2}$", ("de", "a]", "x]", "\u6f22\U0001f600")),
        ("^\\s\\S$", (" x", "xx", "  ")),
        ("^()$|^(|x)y$", ("", "y", "xy", "x")),
    ],
)
def test_a_pattern_finds_what_python_finds(pattern: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        assert fits({"pattern": pattern}, json.dumps(text, ensure_ascii=False)) == bool(re.search(pattern, text)), text


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(?!a)",
            "(?<=a)b",
            "(?P<n>a)",
            "(a)\\1",
            "\\bword",
            "\\p{L}",
            "a**",
            "(a*)*",
            "(a|b?)+",
            "a{3,1}",
            "a{5000}",
        ),
        *(
            "(",
            ")",
            "[a",
            "[z-a]",
            "[]",
            "a$b",
            "(^a)",
            "*a",
            "\\",
            "\\x4",
            "[\\w-z]",
            "[^\\W]",
            "\x01",
            "(" * 500,
            "a++",
        ),
        "a" * 2000,
    ],
)
def test_a_pattern_that_is_not_done_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        pattern_grammar(pattern, "char")
    assert len(str(caught.value).splitlines()) == 1


def test_json_object_is_any_object_and_nothing_else(vocabulary: Vocabulary) -> None:
    for seed in range(40):
        answer, ended = draw(JSON_OBJECT, vocabulary, seed)
        if ended:
            assert isinstance(json.loads(answer), dict)
    machine = Automaton(read_grammar(JSON_OBJECT))
    values: tuple[Any, ...] = ({}, {"a": [1, -2.5, {"b": None}], "\u00e9\n": "x"}, {"a": {"a": {"a": [[]]}}})
    for value in values:
        for indent in (None, 2):
            state = machine.walk(machine.start, json.dumps(value, indent=indent).encode())
            assert state is not None
            assert state.complete
    assert machine.walk(machine.start, b"[") is None


def test_the_same_schema_makes_the_same_grammar() -> None:
    schema = random_schema(Random(3))
    assert schema_grammar(schema) == schema_grammar(json.loads(json.dumps(schema)))
