"""Files in the forms of other programs, known by their looks; each is named with the command that converts it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import InputError
from pilocal.task.json_lines import Line
from pilocal.task.text import beside

FILE = 'open(sys.argv[1], encoding="utf-8-sig")'

LINES = f"map(json.loads, filter(str.strip, {FILE}))"
"""The Python that reads the records of a JSONL file."""

SYSTEM = '{"messages": [m for m in r["messages"] if m["role"] not in ("system", "developer")]}'
"""The Python that takes the system message out of a record."""


@dataclass(frozen=True, slots=True)
class Form:
    """The records of another program."""

    name: str
    fields: Mapping[str, type]
    """What such a record has."""
    record: str
    """The Python that makes a record of one, `r`."""
    fix: str = ""
    """What to do where no command helps."""

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Tell whether a record looks like one of these."""
        return all(isinstance(record.get(name), kind) for name, kind in self.fields.items())


def _pair(query: str, answer: str) -> str:
    return f'{{"query": {query}, "answer": {answer}}}'


def _plain(query: str, answer: str) -> Form:
    fields = {query: str, answer: str}
    return Form(f"a record of {query} and {answer}", fields, _pair(f'r["{query}"]', f'r["{answer}"]'))


SHAREGPT = (
    '{"messages": [{"role": {"human": "user", "gpt": "assistant"}.get(m["from"], m["from"]), "content": m["value"]} '
    'for m in r["conversations"]]}'
)

GEMINI = (
    '{"messages": [{"role": {"model": "assistant"}.get(m["role"], m["role"]), '
    '"content": "".join(p["text"] for p in m["parts"])} for m in r["contents"]]}'
)

FORMS = (
    Form("a ShareGPT record", {"conversations": list}, SHAREGPT),
    Form(
        "a record of OpenAI's preference fine-tuning",
        {"input": dict, "preferred_output": list},
        '{"messages": r["input"]["messages"] + r["preferred_output"]}',
    ),
    Form(
        "a request of OpenAI's batch files",
        {"custom_id": str, "body": dict},
        "",
        "it asks without an answer; write records with both",
    ),
    Form("a record of Gemini's fine-tuning", {"contents": list}, GEMINI),
    Form(
        "a TRL record of two chats",
        {"prompt": list, "completion": list},
        '{"messages": r["prompt"] + r["completion"]}',
    ),
    Form("a preference pair", {"prompt": str, "chosen": str, "rejected": str}, _pair('r["prompt"]', 'r["chosen"]')),
    Form(
        "an Alpaca record",
        {"instruction": str, "output": str},
        _pair('(r["instruction"] + "\\n" + (r.get("input") or "")).strip()', 'r["output"]'),
    ),
    Form(
        "a Dolly record",
        {"instruction": str, "response": str},
        _pair('(r["instruction"] + "\\n" + (r.get("context") or "")).strip()', 'r["response"]'),
    ),
    _plain("prompt", "completion"),
    _plain("prompt", "response"),
    _plain("question", "answer"),
    _plain("question", "response"),
    _plain("input", "output"),
    _plain("text", "label"),
    _plain("text", "answer"),
    Form("a record of one text", {"text": str}, "", "a record has two texts, the query and the answer"),
)
"""The forms that are known, the most telling first."""

COLUMNS = (
    ("query", "question", "prompt", "input", "instruction", "text"),
    ("answer", "completion", "output", "response", "label", "target"),
)
"""Names of the columns of queries and of answers, the most telling first."""


def foreign_record(record: Mapping[str, Any], where: Line) -> InputError | None:
    """Return what is wrong with a record of another program's; None if it has no form that is known."""
    form = _form_of(record)
    if form is None:
        return None
    what = f"this is {form.name}, not of query and answer"
    if not form.record:
        return InputError(where, what, fix=form.fix)
    return InputError(where, what, fix=_command(where.path, LINES, form.record))


def system_message(where: Line) -> InputError:
    """Return what is wrong with a record that has a system message."""
    fix = f"its text belongs in the template; {_command(where.path, LINES, SYSTEM, 'take it out of the records')}"
    return InputError(where, "a system message inside a record", fix=fix)


def foreign_file(path: Path, text: str) -> InputError | None:
    """Return what is wrong with a file that holds records, but not one per line; None if it may hold such."""
    body = text.strip()
    if body[0] not in "{[":
        return _table(path, body)
    first_line = body.partition("\n")[0]
    try:
        value, end = json.JSONDecoder().raw_decode(body)
    except json.JSONDecodeError as error:
        if body[0] == "{" or _is_json(first_line):
            return None
        line = text[: text.index(body[0])].count("\n") + error.lineno
        fix = "correct it, and write one object per line"
        return InputError(f"{path}:{line}", f"a broken JSON array: {error.msg}", fix=fix)
    except (ValueError, RecursionError):
        return None
    whole = end == len(body)
    if isinstance(value, list):
        records = _objects(value)
        return _told(path, "one JSON array", records[0], f"json.load({FILE})") if whole and records else None
    if whole and (key := _key_of_records(value)):
        source = f"json.load({FILE})[{json.dumps(key, ensure_ascii=False)}]"
        return _told(path, f"one JSON object with its records under {key!r}", value[key][0], source)
    if end > len(first_line):
        source = f'(json.loads(t.strip(", \\n")) for t in re.split(r"\\n(?={{)", {FILE}.read().strip()))'
        return _told(path, "JSON with several lines per record", value, source)
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _told(path: Path, what: str, record: Mapping[str, Any], source: str) -> InputError:
    """Return the fault of a file whose records come from `source`, and look like `record`."""
    form = _form_of(record)
    each = f", each {form.name}" if form else ""
    how = form.record if form and form.record else "r"
    return InputError(path, f"this is {what}{each}; it must be one object per line", fix=_command(path, source, how))


def _form_of(record: Mapping[str, Any]) -> Form | None:
    if record.get("messages") is not None or ("query" in record and "answer" in record):
        return None
    form = next((form for form in FORMS if form.fits(record)), None)
    if form and form.record == SHAREGPT and not all("from" in turn for turn in _objects(record["conversations"])):
        return Form("a chat under conversations", form.fields, '{"messages": r["conversations"]}')
    return form


def _objects(values: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _key_of_records(value: Mapping[str, Any]) -> str | None:
    """Return under which key an object holds a list of records, if it is no record itself."""
    if {"query", "answer", "messages"} & value.keys() or _form_of(value):
        return None
    for key, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            first = inner[0]
            if {"query", "answer", "messages"} & first.keys() or _form_of(first):
                return key
    return None


def _table(path: Path, text: str) -> InputError | None:
    """Return what is wrong with a file of comma- or tab-separated values; None if it does not look like one."""
    named = path.suffix.lower() in (".csv", ".tsv")
    lines = text.split("\n")[:3]
    for mark in ("\t", ";", ","):
        rows = list(csv.reader(lines, delimiter=mark))
        counts = {len(row) for row in rows}
        if min(counts) > 1 and (named or (len(counts) == 1 and len(lines) > 1)):
            break
    else:
        what = "this is a table (CSV) of one column, not JSON with a query and an answer"
        return InputError(path, what, fix="write one JSON object per line") if named else None
    query, answer = (_column(rows[0], names, place) for names, place in zip(COLUMNS, (0, -1), strict=True))
    opened = f'open(sys.argv[1], encoding="utf-8-sig", newline=""), delimiter={json.dumps(mark)}'
    record = _pair(f"r[{json.dumps(query, ensure_ascii=False)}]", f"r[{json.dumps(answer, ensure_ascii=False)}]")
    what = f"this is a table (CSV), not one JSON object per line; its columns are taken to be {query!r} and {answer!r}"
    return InputError(path, what, fix=_command(path, f"csv.DictReader({opened})", record))


def _column(header: list[str], names: Iterable[str], place: int) -> str:
    """Return the column with the first of the names that there is, else the one at the place."""
    known = {name.strip().lower(): name for name in reversed(header)}
    return next((known[name] for name in names if name in known), header[place])


def _command(path: Path, source: str, record: str, aim: str = "make records of it") -> str:
    """Return the advice to run the Python that writes records, from `source`, into a file of its own."""
    code = f"import csv, json, re, sys; [print(json.dumps({record})) for r in {source}]"
    made = beside(path)
    command = f"python3 -c {shlex.quote(code)} {shlex.quote(str(path))} > {shlex.quote(str(made))}"
    return f"{aim}, and name the new file in task.toml: {command}"
