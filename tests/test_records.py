"""Records as people bring them: each kind of fault is one line with file and line, and no traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilocal.errors import InputError, PilocalError
from pilocal.task import Example, load_examples, load_task
from pilocal.task.examples import find_leaks
from tests.test_task import refusal, write_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path)


GOOD = '{"query": "a", "answer": "b"}'


def write(path: Path, *records: object) -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def chat(*contents: object, **last: object) -> dict[str, Any]:
    """A record of these turns, from the user on; `last` goes into the last message."""
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    turns[-1] |= last
    return {"messages": turns}


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_examples(path)
    return str(caught.value)


DEEP = 10_000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"query": "half \ud83d", "answer": "b"}', "half a surrogate pair, which is no character; got '\\ud83d'"),
        (r'{"query": "x", "answer": "\ude00 b"}', "half a surrogate pair"),
        (r'{"query": "x", "answer": "b", "\ud83d": 1}', "half a surrogate pair"),
        (r'{"id": "\udfff", "query": "x", "answer": "b"}', "half a surrogate pair"),
        (r'{"query": "x", "answer": "b", "tests": [{"a": ["\ud800"]}]}', "half a surrogate pair"),
        (r'{"messages": [{"role": "user", "content": "\udc00"}]}', "half a surrogate pair"),
        ('{"query": "x", "answer": "b", "e": ' + "[" * DEEP + "]" * DEEP + "}", "nested too deeply"),
        ('{"query": "x", "answer": "b", "e": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}", "nested too deeply"),
        ('{"query": "x", "answer": "b", "e": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ("[" * DEEP, "nested too deeply"),
        ('{"query": "x", "answer": "b", "e": ' + "9" * 5000 + "}", "a whole number of thousands of digits"),
        ('{"query": "x", "answer": -' + "9" * 5000 + "}", "a whole number of thousands of digits"),
        ('{"query": "x", "answer": "b", "e": 1e999}', "a number too large; got '1e999'"),
        ('{"query": "x", "answer": "b", "e": NaN}', "not a number of JSON; got 'NaN'"),
        ('{"query": "x", "answer": "b", "e": [-Infinity]}', "not a number of JSON; got '-Infinity'"),
        ('{"query": "x", "answer": "b", "answer": "c"}', "a key stands twice in one object; got 'answer'"),
        ('{"query": "x", "answer": "b", "e": {"f": 1, "f": 1}}', "a key stands twice in one object; got 'f'"),
        ('{"query": "x", "query": "x", "answer": "b"}', "a key stands twice in one object; got 'query'"),
        ('{"query": "x", "messages": [{"role": "user", "content": "y"}]}', "messages and query in one record"),
        ('{"answer": "x", "messages": []}', "messages and answer in one record"),
        ("{'query': 'x', 'answer': 'b'}", "broken JSON: Expecting property name enclosed in double quotes"),
        (f"{GOOD}{GOOD}", "broken JSON: Extra data"),
        ('"text"', "not a JSON object; got 'text'"),
        ('{"id": true, "query": "x", "answer": "b"}', "the id must be text or a number; got True"),
    ],
)
def test_what_is_no_record_is_one_line_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    text = fault(write(tmp_path / "train.jsonl", GOOD, line))
    assert text.startswith(f"{tmp_path}/train.jsonl:2: ")
    assert said in text
    assert len(text.splitlines()) == 1
    text.encode()


def test_null_is_no_second_form(tmp_path: Path) -> None:
    joined = {"query": None, "answer": None, "messages": None}
    path = write(tmp_path / "train.jsonl", joined | {"query": "a", "answer": "b"}, joined | chat("c", "d"))
    assert [(example.query, example.extra) for example in load_examples(path)] == [("a", {}), ("c", {})]
    assert "the query is null" in fault(write(path, joined))


def test_what_looks_odd_and_is_right_is_taken(tmp_path: Path) -> None:
    lines = (r'{"query": "\ud83d\ude00", "answer": "\u0000\u2028", "e": [[1e300, 12345678901234567890]]}', GOOD)
    first, _ = load_examples(write(tmp_path / "train.jsonl", *lines))
    assert (first.query, first.answer) == ("\U0001f600", "\0\u2028")
    assert first.extra == {"e": [[1e300, 12345678901234567890]]}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (4, 'the answer must be text; got 4; write it as text, in quotes: "answer": "4"'),
        (1.5, 'the answer must be text; got 1.5; write it as text, in quotes: "answer": "1.5"'),
        (True, 'the answer must be text; got True; write it as text, in quotes: "answer": "true"'),
        (None, "the answer is null"),
        ([], "the answer must be text, not a list; got []; write it as text"),
        ({"a": 1}, "the answer must be text, not an object; got {'a': 1}; write it as text"),
        ("  ", "the answer is empty"),
    ],
)
def test_an_answer_and_a_query_are_text_and_a_fault_says_how(tmp_path: Path, value: Any, said: str) -> None:
    path = write(tmp_path / "train.jsonl", {"query": "2+2", "answer": value})
    assert fault(path).startswith(f"{path}:1: {said}")
    assert said.replace("answer", "query") in fault(write(path, {"query": value, "answer": "4"}))
    if value != []:
        assert said.replace("answer", "content") in fault(write(path, chat("2+2", value)))


# Chats


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (chat("x", "y") | {"tools": [{"type": "function"}]}, "tools and calls of tools"),
        (chat("x", "y") | {"functions": [{"name": "f"}]}, "tools and calls of tools"),
        (chat("x", None, tool_calls=[{"id": "1"}]), "tools and calls of tools"),
        (chat("x", "y", function_call={"name": "f"}), "tools and calls of tools"),
        ({"messages": [{"role": "tool", "content": "3"}, *chat("x", "y")["messages"]]}, "tools and calls of tools"),
        ({"messages": [{"role": "function", "content": "3"}, *chat("x", "y")["messages"]]}, "tools and calls of tools"),
        (chat([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}], "y"), "got 'image_url'"),
        (chat([{"type": "input_audio", "input_audio": {}}], "y"), "a part of a message that is not text"),
        (chat([{"type": "text"}], "y"), "a part of a message that is not text"),
        (chat(["x"], "y"), "a part of a message that is not text; got 'x'"),
        (chat([], "y"), "the content must be text, not a list"),
        (chat("x", "y", refusal="I will not"), "a message with refusal"),
        (chat("x", "y", audio={"id": "1"}), "a message with audio"),
        (chat("x", "y", reasoning_content="hm"), "a message with reasoning_content"),
        (chat("x", "y", weight=0.5), "the weight of a message must be 0 or 1; got 0.5"),
        (chat("x", "y", weight=True), "the weight of a message must be 0 or 1; got True"),
        (chat("x", "y", weight="0"), "the weight of a message must be 0 or 1; got '0'"),
        (chat("x", "y", role="human"), 'must be "user" or "assistant"; got \'human\''),
        ({"messages": [{"role": "developer", "content": "z"}]}, "its text belongs in the template"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "y"}]}, "a message without content"),
        ({"messages": {"role": "user"}}, "messages must be a list"),
        ({"messages": ["x", "y"]}, "a message must be an object"),
        ({"messages": []}, "messages must end with a user and an assistant turn"),
        (chat("x", "y", "z"), "messages must end with a user and an assistant turn"),
    ],
)
def test_what_a_chat_cannot_carry_is_refused_with_its_line(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    text = fault(write(tmp_path / "train.jsonl", GOOD, record))
    assert text.startswith(f"{tmp_path}/train.jsonl:2: ")
    assert said in text


def test_parts_of_text_are_joined_and_harmless_fields_are_taken(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what is"}, {"type": "text", "text": " red?"}]
    harmless = {"name": "bot", "refusal": None, "audio": None, "tool_calls": None, "function_call": None, "weight": 1}
    record = chat(parts, "green", **harmless) | {"tools": [], "parallel_tool_calls": False, "tests": ["x"]}
    second = chat("a", "b", tool_calls=[], weight=1.0)
    first, _ = load_examples(write(tmp_path / "train.jsonl", record, second))
    assert (first.query, first.answer) == ("what is red?", "green")
    assert first.extra["tests"] == ["x"]


def test_an_answer_of_weight_0_is_not_learned_and_the_file_says_how_many(folder: Path) -> None:
    wrong, earlier = chat("train", "WRONG", weight=0), chat("q", "HISTORY", "other", "right")
    earlier["messages"][1]["weight"] = 0
    write(folder / "train.jsonl", GOOD, wrong, earlier, wrong)
    write(folder / "test.jsonl", chat("t", "WRONG", weight=0.0), chat("u", "v"))
    task = load_task(folder)
    assert [example.answer for example in task.train] == ["b", "right"]
    assert task.train[1].history == (("user", "q"), ("assistant", "HISTORY"))
    assert [(example.id, example.answer) for example in task.test] == [("test-2", "v")]
    why = 'every answer has "weight": 0 and is not learned'
    assert task.warnings == (
        f"{folder}/train.jsonl: 2 records are left out, the first on line 2: {why}",
        f"{folder}/test.jsonl: a record is left out, on line 1: {why}",
    )
    write(folder / "valid.jsonl", wrong, wrong)
    assert refusal(folder).startswith(f'{folder}/valid.jsonl: every answer of every record has "weight": 0')


# One line per kind of fault


def test_one_fault_in_every_row_is_one_line_with_its_number(folder: Path) -> None:
    system = {"role": "system", "content": "You turn a colour into its complement."}
    for split in ("train", "valid", "test"):
        records = [{"messages": [system, *chat(f"{split} {i}", "a")["messages"]]} for i in range(600)]
        write(folder / f"{split}.jsonl", *records)
    lines = refusal(folder).splitlines()
    assert len(lines) == 3
    for line, split in zip(lines, ("train", "valid", "test"), strict=True):
        said = "a system message inside a record, and 599 more like it, the last on line 600"
        assert line.startswith(f"{folder}/{split}.jsonl:1: {said}; its text belongs in the template")


@pytest.mark.parametrize(
    "line",
    [
        '{"query": "a"}',
        '{"query": "a", "answer": 4}',
        '{"query": "a", "answer": "b", "id": "same"}',
        '{"query": "a", "answer": ',
        '{"query": "a", "answer": "b", "e": NaN}',
        r'{"query": "\ud83d", "answer": "b"}',
        json.dumps(chat("x", "y", weight=3)),
        json.dumps({"instruction": "x", "output": "y"}),
        "text",
        "[]",
    ],
)
def test_every_kind_of_fault_is_merged(tmp_path: Path, line: str) -> None:
    text = fault(write(tmp_path / "train.jsonl", GOOD, *[line] * 500))
    count, first = (498, 3) if "same" in line else (499, 2)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{tmp_path}/train.jsonl:{first}: ")
    assert f", and {count} more like it, the last on line 501" in text


def test_many_kinds_of_fault_stay_few_lines_and_none_is_lost(folder: Path) -> None:
    bad = [
        *('{"query": "a"}', '{"answer": "a"}', "[]", "{", '{"query": 1, "answer": "b"}'),
        *('{"id": [], "query": "", "answer": ""}', '{"messages": 3}', '{"query": "a", "answer": null}'),
    ]
    for split in ("train", "valid", "test"):
        write(folder / f"{split}.jsonl", {"query": split, "answer": "a"}, *bad * 50)
    lines = refusal(folder).splitlines()
    assert len(lines) == 18
    assert lines[5].startswith(f"{folder}/train.jsonl:7: 150 faults of other kinds, of which this is the first: ")


# Other programs' files


def made(text: str, folder: Path) -> tuple[Example, ...]:
    """Run the command that a fault recommends and read what it makes."""
    _, _, command = text.partition(": python3 -c ")
    words = shlex.split(f"python3 -c {command}")
    done = subprocess.run([sys.executable, *words[1:4]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert words[4] == ">"
    Path(words[5]).write_text(done.stdout)
    assert Path(words[5]).parent == folder
    return load_examples(Path(words[5]))


PAIRS = (("what is red?", 'say "green"\n'), ("it's blue", "orange  \U0001f600"))

RECORDS: dict[str, list[Any]] = {
    "ShareGPT": [
        {"conversations": [{"from": "human", "value": query}, {"from": "gpt", "value": answer}]}
        for query, answer in PAIRS
    ],
    "under conversations": [{"conversations": chat(*pair)["messages"]} for pair in PAIRS],
    "Alpaca": [{"instruction": query, "input": "", "output": answer} for query, answer in PAIRS],
    "Dolly": [{"instruction": query, "context": None, "response": answer} for query, answer in PAIRS],
    "of prompt and completion": [{"prompt": query, "completion": answer} for query, answer in PAIRS],
    "of question and answer": [{"question": query, "answer": answer} for query, answer in PAIRS],
    "of input and output": [{"input": query, "output": answer} for query, answer in PAIRS],
    "TRL": [{"prompt": chat(q)["messages"], "completion": [{"role": "assistant", "content": a}]} for q, a in PAIRS],
    "preference pair": [{"prompt": query, "chosen": answer, "rejected": "no"} for query, answer in PAIRS],
    "OpenAI's preference": [
        {"input": chat(q), "preferred_output": [{"role": "assistant", "content": a}], "non_preferred_output": []}
        for q, a in PAIRS
    ],
    "Gemini": [
        {"contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}]}
        for q, a in PAIRS
    ],
    "system message": [{"messages": [{"role": "system", "content": "z"}, *chat(*pair)["messages"]]} for pair in PAIRS],
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_records_of_other_programs_are_named_with_a_command_that_is_right(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path / "my train.jsonl", *RECORDS[name], "")
    path.write_text(mark + path.read_text())
    text = fault(path)
    assert text.startswith(f"{path}:1: ")
    assert name in text.partition("; ")[0]
    assert ", and 1 more like it, the last on line 2" in text
    assert tuple((example.query, example.answer) for example in made(text, tmp_path)) == PAIRS


@pytest.mark.parametrize("name", [None, *RECORDS])
@pytest.mark.parametrize(
    "form", ["array", "lines of an array", "pretty array", "pretty", "compact", "data", "pretty data"]
)
def test_files_that_are_not_one_object_per_line_are_named_with_a_command_that_is_right(
    tmp_path: Path, name: str | None, form: str
) -> None:
    records = RECORDS[name] if name else [{"query": query, "answer": answer} for query, answer in PAIRS]
    texts = {
        "array": json.dumps(records),
        "lines of an array": "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
        "pretty array": json.dumps(records, indent=2, ensure_ascii=False),
        "pretty": "\n".join(json.dumps(record, indent=4) for record in records) + "\n",
        "compact": "\n".join(json.dumps(record).replace(", ", ",\n", 1) for record in records),
        "data": json.dumps({"version": 1, "data": records}),
        "pretty data": json.dumps({"data": records}, indent=2),
    }
    path = tmp_path / "train.jsonl"
    path.write_text(texts[form], encoding="utf-8")
    text = fault(path)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: this is ") and "one object per line" in text
    if name == "system message":
        with pytest.raises(InputError, match="a system message inside a record") as caught:
            made(text, tmp_path)
        text = str(caught.value)
    assert [(example.query, example.answer) for example in made(text, tmp_path)] == list(PAIRS)


@pytest.mark.parametrize(
    ("name", "mark"),
    [("train.csv", ","), ("train.jsonl", ","), ("train.tsv", "\t"), ("train.csv", ";"), ("x.txt", ";")],
)
@pytest.mark.parametrize("header", [("question", "answer"), ("Answer", "Query"), ("Frage", "Antwort")])
def test_tables_are_named_with_a_command_that_is_right(
    tmp_path: Path, name: str, mark: str, header: tuple[str, ...]
) -> None:
    import csv

    path = tmp_path / name
    rows = [("what is red?", "green"), ("a, b; c", 'say "x"'), ("it's", "two")]
    if header[0] == "Answer":
        rows = [row[::-1] for row in rows]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=mark).writerows([header, *rows])
    text = fault(path)
    assert text.startswith(f"{path}: this is a table (CSV)")
    pairs = [(example.query, example.answer) for example in made(text, tmp_path)]
    assert pairs == [row[::-1] if header[0] == "Answer" else row for row in rows]


def test_a_table_of_one_column_and_texts_without_answers_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question\nred\n")
    assert "this is a table (CSV) of one column" in fault(tmp_path / "train.csv")
    assert "a record of one text" in fault(write(tmp_path / "train.jsonl", {"text": "x"}))
    batch = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat("x")}
    assert "a request of OpenAI's batch files" in fault(write(tmp_path / "train.jsonl", batch))


def test_a_broken_array_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f"\n[\n{GOOD},\n{GOOD},\n]\n")
    assert fault(tmp_path / "train.jsonl").startswith(f"{tmp_path}/train.jsonl:5: a broken JSON array: ")


def test_a_first_line_that_is_broken_is_no_other_form(tmp_path: Path) -> None:
    text = fault(write(tmp_path / "train.jsonl", '{"query": "a"', GOOD, GOOD))
    assert text.startswith(f"{tmp_path}/train.jsonl:1: broken JSON: ")


# Contradictions between splits


def test_a_leak_says_how_many_answers_differ() -> None:
    def examples(*pairs: tuple[str, str]) -> list[Example]:
        return [Example(id=str(i), query=query, answer=answer, line=i) for i, (query, answer) in enumerate(pairs, 1)]

    faults: list[PilocalError] = []
    splits = {
        "train": examples(("a", "1"), ("b", "2"), ("b", "3")),
        "valid": examples(("c", "4")),
        "test": examples(("a ", "1 "), ("b", "3"), ("c", "5"), ("d", "6")),
    }
    find_leaks(splits, {split: Path(split) for split in splits}, faults)
    (said,) = map(str, faults)
    assert said.startswith(
        "test:3: queries that also appear in an earlier split: 3, the last being valid's query 'c'; 1 of"
    )
    find_leaks(splits | {"test": examples(("a", "1"))}, {split: Path(split) for split in splits}, faults)
    assert "another answer" not in str(faults[1])
