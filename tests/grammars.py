"""Random grammars and JSON schemas, answers drawn within them, and llama.cpp's own sampler to compare with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.automaton import Frame
from pilocal.llamacpp.grammar import Grammar, Vocabulary
from pilocal.llamacpp.library import load_llama_cpp

Schema = dict[str, Any]


def draw(text: str, vocabulary: Vocabulary, seed: int, limit: int = 300) -> tuple[bytes, bool]:
    """Draw an answer with random logits, which favour short endings more and more; return it, and whether it ended."""
    rng = np.random.default_rng(seed)
    grammar = Grammar(text, vocabulary)
    closing = np.array([piece in (b'"', b"}", b"]", b"0", b"null") for piece in vocabulary.pieces], np.float32)
    closing[list(vocabulary.ends)] = 3
    answer = b""
    for step in range(limit):
        logits = (rng.normal(size=vocabulary.size) * 2 + closing * step / 2).astype(np.float32)
        token = int(logits.argmax())
        if not grammar.allows(token):
            if not grammar.apply(logits):
                return answer, grammar.complete
            token = int(logits.argmax())
        grammar.accept(token)
        if token in vocabulary.ends:
            return answer, True
        answer += vocabulary.pieces[token]
    return answer, False


class Sampler:
    """llama.cpp's sampler for grammars; whatever ends the process in it ends the process."""

    def __init__(self, vocabulary: Any, size: int, text: str) -> None:
        self._llama_cpp = load_llama_cpp()
        self._handle = self._llama_cpp.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        self.taken = bool(self._handle)
        self._data = (self._llama_cpp.llama_token_data * size)()
        kinds = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._array: NDArray[np.void] = np.frombuffer(self._data, kinds)

    def fitting(self) -> NDArray[np.bool_]:
        """Return which tokens it allows."""
        size = len(self._array)
        self._array["id"], self._array["logit"] = np.arange(size), 0
        tokens = self._llama_cpp.llama_token_data_array(data=self._data, size=size, selected=-1, sorted=False)
        self._llama_cpp.llama_sampler_apply(self._handle, ctypes.byref(tokens))
        return np.isfinite(self._array["logit"].astype(np.float32))

    def accept(self, token: int) -> None:
        self._llama_cpp.llama_sampler_accept(self._handle, token)

    def close(self) -> None:
        if self._handle:
            self._llama_cpp.llama_sampler_free(self._handle)


ATOMS = (
    *('"a"', '"b"', '"ab"', '"the"', '" "', '"\\n"', '"\\""', '"\\u00e9"', '"\\U0001F600"', '"\u6f22"', '""'),
    *("[a-z]", "[^a]", "[0-9a-f]", "[^\\n\\x00]", "[\u00e0-\u00ff]", "[\\-\\]x]", ".", "[a-]", "[\u3042-\uffff]"),
)
REPEATS = ("*", "+", "?", "{2}", "{0,3}", "{1,}", "{2,5}", "{0}", "{40,60}", "{ 1 , 2 }")
DAMAGE = (
    *("(", ")", "[", "]", '"', "|", "*", "{", "}", "{9}", "::=", "\\", "\\q", "\n", "\r"),
    *("#", "<", "!", "root", "-", "\u20ac"),
)


def random_grammar(rng: Random) -> str:
    """Return a grammar, which may be wrong in any way."""
    names = ["root", *(f"r{i}" for i in range(rng.randint(0, 4)))]

    def element(depth: int) -> str:
        kind = rng.random()
        if kind < 0.35:
            text = rng.choice(names[1:] or ['"x"'])
        elif kind < 0.5 and depth < 3:
            text = f"({alternatives(depth + 1)})"
        else:
            text = rng.choice(ATOMS)
        return text + (rng.choice(REPEATS) if rng.random() < 0.3 else "")

    def alternatives(depth: int) -> str:
        counts = [rng.randint(0 if depth else 1, 3) for _ in range(rng.randint(1, 3))]
        return " | ".join(" ".join(element(depth) for _ in range(count)) for count in counts)

    text = "\n".join(f"{name} ::= {alternatives(0)}" for name in names)
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(DAMAGE) + text[at + rng.randint(0, 2) :]
    return text


def random_schema(rng: Random, depth: int = 0) -> Schema:
    """Return a schema of the supported subset; some fit nothing, or ask for what is not done."""
    kinds: list[Callable[[Random, int], Schema]] = [_string, _number, _integer, _constant, _plain]
    if depth < 3:
        kinds += [_object, _object, _array, _array, _choice, _all_of]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.1:
        schema |= {"title": "a title", "description": "what it is", "examples": [1]}
    if depth == 0:
        schema |= {"$defs": {"name": {"type": "string", "maxLength": 5}, "tree": _tree(rng)}}
    elif rng.random() < 0.1:
        return {"$ref": rng.choice(("#/$defs/name", "#/$defs/tree"))}
    return schema


NAMES = ("a", "b", "ab", "name", 'q"uote', "back\\slash", "\u00e9t\u00e9", "a b", "", "line\nend", "\U0001f600")
PATTERNS = (
    *("^[A-Z]{2}-[0-9]{1,3}$", "^a|b$", "x+", "^\\w+@\\w+\\.(com|org)$", "^.{3}$", '^["\\\\]\\s?$', "", "^$"),
    *(
        "^[^\\d]{2,4}$",
        "^(?:a|bc)*?d$",
        "\\D\\W\\S",
        "^\\u00e9[\\x41-C\\-]$",
        "^[^a-z]$",
        "a\\/b\\.c",
        "^(ab?|(c|d){2}){0,3}$",
    ),
)


def _string(rng: Random, _depth: int) -> Schema:
    kind = rng.random()
    if kind < 0.25:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind < 0.5:
        return {"type": "string", "format": rng.choice(("date", "time", "date-time", "uuid"))}
    low = rng.randint(0, 4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}


def _plain(rng: Random, _depth: int) -> Schema:
    return {"type": rng.choice(("null", "boolean", "string", ["string", "null"]))}


def _bounds(rng: Random, most: int) -> Schema:
    low = rng.randint(-most, most)
    found = {rng.choice(("minimum", "exclusiveMinimum")): low} if rng.random() < 0.7 else {}
    high = {rng.choice(("maximum", "exclusiveMaximum")): low + rng.randint(1, most)} if rng.random() < 0.7 else {}
    return found | high


def _integer(rng: Random, _depth: int) -> Schema:
    return {"type": "integer"} | _bounds(rng, rng.choice((3, 30, 12345, 10**12)))


def _number(rng: Random, _depth: int) -> Schema:
    return {"type": "number"} | _bounds(rng, rng.choice((1, 3, 250, 10**6)))


def _constant(rng: Random, _depth: int) -> Schema:
    values: list[Any] = ["a", "b\n\u00e9", 'say "x"', 1, 2.5, -7, None, True, {"x": [1, {}]}, [], ["a", 1]]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    schema: Schema = {"enum": rng.sample(values, rng.randint(1, 4))}
    return schema | ({"type": ["string", "integer", "null"]} if rng.random() < 0.3 else {})


def _object(rng: Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(0, 4))
    schema: Schema = {"type": "object", "properties": {name: random_schema(rng, depth + 1) for name in names}}
    schema["required"] = [name for name in names if rng.random() < 0.5]
    if rng.random() < 0.4:
        schema["additionalProperties"] = rng.choice((False, True, {"type": "integer"}))
    return schema


def _array(rng: Random, depth: int) -> Schema:
    schema: Schema = {"type": "array"}
    if rng.random() < 0.7:
        schema["items"] = random_schema(rng, depth + 1)
    if rng.random() < 0.3:
        schema["prefixItems"] = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 2))]
    low = rng.randint(0, 3)
    return schema | rng.choice(({}, {"minItems": low}, {"maxItems": low}, {"minItems": low, "maxItems": low + 2}))


def _choice(rng: Random, depth: int) -> Schema:
    if rng.random() < 0.5:
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    kinds = [{"type": kind} | ({"maxLength": 4} if kind == "string" else {}) for kind in ("string", "integer", "null")]
    either = [{"kind": {"const": kind}, "of": random_schema(rng, depth + 1)} for kind in ("x", "y")]
    tagged: list[Schema] = [{"type": "object", "properties": each, "required": ["kind"]} for each in either]
    return {"oneOf": rng.choice((kinds, tagged, [tagged[0], {"type": "integer"}]))}


def _all_of(rng: Random, depth: int) -> Schema:
    parts = [_object(rng, depth + 1) for _ in range(2)]
    return {"allOf": parts} if rng.random() < 0.5 else {"allOf": parts[:1], **parts[1]}


def _tree(rng: Random) -> Schema:
    child: Schema = {"$ref": "#/$defs/tree"}
    return rng.choice((
        {"type": "object", "properties": {"v": {"type": "integer"}, "next": child}, "required": ["v"]},
        {"type": "array", "items": child, "maxItems": 3},
        {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"to": child}, "additionalProperties": False}]},
    ))  # fmt: skip


def stacks(grammar: Grammar) -> int:
    """Return how many stacks llama.cpp would keep where an answer is: the ways back through all rules that are open."""
    ways: dict[int, int] = {}

    def back(frame: Frame) -> int:
        if id(frame) not in ways:
            ways[id(frame)] = sum(1 if after is None else back(after) for _, after in frame.returns)
        return ways[id(frame)]

    return sum(back(frame) for _, _, frame in grammar.state.items)
