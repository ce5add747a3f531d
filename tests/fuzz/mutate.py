"""Broken inputs: a change along the structure of a text, a JSON value, TOML, a table or a file of tensors.

Each function takes what a file holds and a Random, and returns it changed in one place. What they put there is what
programs stumble over: `WORDS` in texts, `VALUES` in JSON and `SETTINGS` in TOML.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.door import Files

Change = Callable[[bytes, Random], bytes]
"""Changes a file in one place."""

WORDS = (
    "",
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u200b",
    "\u2028",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\U0001f600",
    "e\u0301" * 40,
    "..",
    "../../outside",
    "/",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "~",
    "~root/x",
    "a/b/c",
    "x" * 300,
    "x" * 70_000,
    "%s%n",
    "{}",
    "{0.__class__}",
    "{{today}}",
    "{{query}}",
    "{{ x }} {{x}}",
    "{% for i in range(9**9) %}",
    "\\",
    "\\u0000",
    "\\ud800",
    '"',
    "'",
    "`",
    "$(id)",
    "; rm",
    "<script>",
    "None",
    "nan",
    "true",
    "-",
    "0",
    "-0",
    "-1",
    "1",
    "9" * 19,
    "9" * 400,
    "9" * 5_000,
    "1e308",
    "1e400",
    "-1e-400",
    "1_000",
    "0x10",
    "\u0661\u0662",
    "1,000",
    "2026-11-30",
    "http://[",
    "http://127.0.0.1:1/v1",
    "base",
    "starter",
    "con",
    ".",
    "[" * 3_000,
    "(" * 300,
)
"""Texts that programs stumble over."""

RAW = (
    "NaN",
    "-Infinity",
    "1e400",
    "9" * 400,
    "9" * 5_000,
    "-" + "9" * 400,
    "1e-400",
    "-0",
    "0.1e1",
    "01",
    '"\\ud800"',
    '"\\udc00x"',
    '"\\u0000"',
    '{"a": 1, "a": 2}',
    "[" * 90 + "]" * 90,
    "[" * 200 + "]" * 200,
    "[" * 20_000 + "]" * 20_000,
    '{"a":' * 150 + "1" + "}" * 150,
    "[" + "0," * 3_000 + "0]",
    "undefined",
    "'x'",
    "",
)
"""What only the text of a JSON file can say."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**20, 10**399,
    0.0, -0.0, 0.5, 1.5, -1.0, 1e-300, 1e300, 1.7e308, [], {}, [[]], [{}], [None], [0], [""], ["x"], ["x", 1], {"": 0},
    {"x": None}, {"role": "user", "content": "x"}, [{"role": "tool", "content": "x"}], {"type": "text", "text": "x"},
)  # fmt: skip
"""Values of JSON in the place of another."""

SETTINGS = (
    "0", "1", "-1", "2", "3", "7", "64", "100", "101", "1000", "100000", "1000000000", "2147483648",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "9" * 400, "9" * 5_000, "1_000_000", "0xff",
    "0b1", "0o7", "0.0", "-0.0", "1.0", "0.5", "1e-320", "1e300", "1e308", "-1e308", "1e999", "inf", "-inf", "nan",
    "true", "false", '""', '" "', '"x"', "'x'", '"""\nx\n"""', '"\\u0000"', '"\\uD800"', '"\\U0010FFFF"', '"../x"',
    '"/"', '"~"', '"auto"', '"http://127.0.0.1:1/v1"', "[]", "[[]]", "[1]", '[""]', '["x", "y"]', '["x", 1]', "{}",
    "{a = 1}", "{a.b.c = 1}", "[" * 200 + "]" * 200, "[" * 5_000 + "]" * 5_000, "1979-05-27", "07:32:00",
    "1979-05-27T07:32:00Z", "", "x", "= 1", '"open', "1__0", "00", "+1", "{a = 1, a = 2}",
)  # fmt: skip
"""Values of TOML in the place of another."""

_HELD = "@raw@{}@"


def one_of(*changes: Change) -> Change:
    """Return the change that makes one of these."""
    return lambda data, random: random.choice(changes)(data, random)


def files_by(change_of: Callable[[str], Change]) -> Callable[[Files, Random], Files]:
    """Return the mutation of an input that changes one file, as `change_of` says for its name; rarely it goes."""

    def mutate(files: Files, random: Random) -> Files:
        name = random.choice(sorted(files))
        if len(files) > 1 and random.random() < 0.02:
            return {other: data for other, data in files.items() if other != name}
        return files | {name: change_of(name)(files[name], random)}

    return mutate


def any_bytes(data: bytes, random: Random) -> bytes:
    """Flip, take out, repeat or put in bytes, or cut the end off."""
    at = random.randrange(len(data) + 1)
    size = random.choice((1, 1, 2, 4, 8, 64, 1024))
    kind = random.randrange(6)
    if kind == 0:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + size :]
    if kind == 2:
        return data[:at] + data[at : at + size] * random.choice((2, 3, 50)) + data[at + size :]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + random.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80")) + data[at:]
    return data[:at] + random.randbytes(size) + data[at + size :]


def any_text(data: bytes, random: Random) -> bytes:
    """Put one of WORDS in the place of a word, a number or a sign, or between two."""
    text = data.decode("utf-8", "surrogateescape")
    found = [*re.finditer(r"\w+|[^\w\s]|\s+", text[:100_000])]
    word = random.choice(WORDS)
    if not found:
        return word.encode("utf-8", "surrogatepass")
    match = random.choice(found)
    start, end = (match.start(), match.end()) if random.random() < 0.7 else (match.end(), match.end())
    return (text[:start] + word + text[end:]).encode("utf-8", "surrogateescape")


def any_line(data: bytes, random: Random) -> bytes:
    """Take out, repeat, exchange or cut a line, or end lines in another way."""
    lines = data.split(b"\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(7)
    if kind == 0:
        return b"\n".join(lines[:at] + lines[at + 1 :])
    if kind == 1:
        return b"\n".join(lines[:at] + [lines[other]] * random.choice((1, 2, 40)) + lines[at:])
    if kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    elif kind == 4:
        return random.choice((b"\r\n", b"\r", b"\n\n", b"\x0b", b"\xe2\x80\xa8")).join(lines)
    elif kind == 5:
        lines[at] += lines[other]
    else:
        return random.choice((b"\xef\xbb\xbf", b"\n\n", b"[", b"#!\n")) + data
    return b"\n".join(lines)


def any_encoding(data: bytes, random: Random) -> bytes:
    """Write a text in another encoding."""
    text = data.decode("utf-8", "replace")
    return text.encode(random.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis")), "replace")


def any_json(data: bytes, random: Random) -> bytes:
    """Change a JSON value in one place; any text where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return any_text(data, random)
    return json_changed(value, random).encode("utf-8", "surrogatepass")


def json_changed(value: Any, random: Random) -> str:
    """Return a JSON value as text, changed in one place: a value, a key, what an object or a list holds."""
    root = [copy.deepcopy(value)]
    holder, key = random.choice(_places(root))
    _change(holder, key, random, root[0])
    text = json.dumps(root[0] if root else None, ensure_ascii=random.random() < 0.5)
    for number, raw in enumerate(RAW):
        text = text.replace(json.dumps(_HELD.format(number)), raw)
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in a value as its holder and its key there; of a long list its first places."""
    found, left = list[tuple[Any, Any]](), [value]
    while left and len(found) < 5_000:
        holder = left.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 200))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list) and holder[key]:
                left.append(holder[key])
    return found


def _change(holder: Any, key: Any, random: Random, root: Any) -> None:
    kind = random.randrange(10)
    if kind < 4:
        holder[key] = any_value(holder[key], random)
    elif kind == 4:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[random.choice((*WORDS[:40], str(key) + "x", str(key).upper()))] = holder.pop(key)
    elif kind == 6 and isinstance(holder, list):
        holder[key:key] = [holder[key]] * random.choice((1, 2, 300))
    elif kind == 7:
        holder[key] = copy.deepcopy(random.choice([each[place] for each, place in _places([root])]))
    elif kind == 8:
        holder[key] = [holder[key]] if random.random() < 0.5 else {"x": holder[key]}
    else:
        holder[key] = _HELD.format(random.randrange(len(RAW)))


def any_value(value: Any, random: Random) -> Any:
    """Return what may stand in the place of a value: of its kind more often than not."""
    if isinstance(value, str) and random.random() < 0.6:
        return random.choice(WORDS).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice((value + 1, value - 1, -value, 0, value * 1000, value // 2, str(value)))
    return copy.deepcopy(random.choice(VALUES))


def any_json_line(data: bytes, random: Random) -> bytes:
    """Change the JSON of one line."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = any_json(lines[at], random)
    return b"\n".join(lines)


def any_setting(data: bytes, random: Random) -> bytes:
    """Change a line of TOML: its value, its key, the table that it stands in."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    at = random.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    kind = random.randrange(10)
    if equals and kind < 7:
        lines[at] = f"{key}= {random.choice(SETTINGS)}"
    elif equals and kind == 7:
        lines[at] = lines[at].replace(key.strip(), random.choice(("", "x", "a.b", '"a b"', "é", key.strip() + "s")))
    elif lines[at].startswith("[") and kind < 8:
        lines[at] = random.choice(("[]", "[x]", "[[training]]", "[training.x]", lines[at][1:], f"[{lines[at]}]", "[a"))
    else:
        return any_line(data, random)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


JSON: Change = one_of(any_json, any_json, any_json, any_json, any_text, any_bytes)
JSON_LINES: Change = one_of(
    any_json_line, any_json_line, any_json_line, any_json_line, any_line, any_text, any_bytes, any_encoding
)
TOML: Change = one_of(any_setting, any_setting, any_setting, any_setting, any_line, any_text, any_bytes)
TEXT: Change = one_of(any_text, any_text, any_line, any_bytes, any_encoding)


def any_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header of a file of tensors, its length as it says it, or what follows."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(6)
    if kind < 3:
        header = any_json(header, random)
        said = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**62, 2**64 - 1))
        return said.to_bytes(8, "little") + header + rest
    if kind == 3:
        said = random.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**62, 2**63, 2**64 - 1))
        return (said % 2**64).to_bytes(8, "little") + data[8:]
    return any_bytes(data, random) if kind == 4 else data[: 8 + length] + any_bytes(rest, random)


def chosen(random: Random, *options: Sequence[Any]) -> Any:
    """Return one thing of one of several sequences."""
    return random.choice(random.choice(options))
