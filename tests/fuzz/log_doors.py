"""Doors of `pilocal init --from-logs`: logs in every form that is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from pilocal.logs import from_logs, survey
from pilocal.logs.exchange import LeftOut
from pilocal.logs.folder import Setup
from pilocal.logs.reading import read, read_columns
from pilocal.logs.sorting import Sieve
from pilocal.packages import is_installed
from pilocal.progress import silent
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

SYSTEM = "You turn requests into codes.\nAnswer with the code alone.\n- red is ZOR\n- blue is MIP\nToday: "
COLOURS = ("red", "blue", "green")
ROWS = 14


def chats(random: Random) -> list[tuple[list[dict[str, Any]], str]]:
    """Return conversations behind one prompt, each with its answer."""
    found = []
    for number in range(ROWS):
        colour = random.choice(COLOURS)
        system = f"{SYSTEM}2026-11-{number + 1:02}"
        asked = f"please tell me number {number} of {colour}"
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
        if random.random() < 0.2:
            messages += [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "hi"}]
        content = [{"type": "text", "text": asked}] if random.random() < 0.2 else asked
        found.append(([*messages, {"role": "user", "content": content}], f"code {number} {colour}"))
    return found


def said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def completion(answer: str) -> dict[str, Any]:
    """Return an answer as OpenAI's API has it."""
    choice = {"index": 0, "message": said(answer), "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 9}}


def chunks(answer: str) -> str:
    """Return an answer as a stream has it."""
    parts = [{"object": "chat.completion.chunk", "choices": [{"delta": {"content": part}}]} for part in answer.split()]
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


FORMS: tuple[Callable[[list[dict[str, Any]], str], dict[str, Any]], ...] = (
    lambda chat, answer: {"messages": [*chat, said(answer)]},
    lambda chat, answer: {"request": {"model": "m", "messages": chat}, "response": completion(answer)},
    lambda chat, answer: {"request": {"messages": chat, "stream": True}, "response": chunks(answer)},
    lambda chat, answer: {"messages": chat, "response": completion(answer), "call_type": "acompletion", "spend": 0.1},
    lambda chat, answer: {"input": chat, "output": said(answer), "type": "GENERATION", "level": "DEFAULT"},
    lambda chat, answer: {"input": json.dumps({"messages": chat}), "output": json.dumps(said(answer))},
    lambda chat, answer: {
        "id": "t1",
        "observations": [{"type": "GENERATION", "input": {"messages": chat}, "output": said(answer)}],
    },
    lambda chat, answer: {"custom_id": "r", "body": {"messages": chat}, "response": {"body": completion(answer)}},
    lambda chat, answer: {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]),
                           "value": turn["content"]} for turn in [*chat, said(answer)]]
    },
    lambda chat, answer: {"instruction": chat[0]["content"], "input": str(chat[-1]["content"]), "output": answer},
    lambda chat, answer: {"prompt": f"{chat[0]['content']}\n{chat[-1]['content']}", "completion": answer},
    lambda chat, answer: {"time": "2026-01-01T00:00:00.000+00:00", "path": "/v1/chat/completions", "status": 200,
                          "arm": "base", "prompt": chat, "answer": answer},
)  # fmt: skip
"""A row of a log in each of its forms."""


def log_files(random: Random) -> Files:
    """Return a log in one of the forms: lines, an array, an object around them, or a table."""
    form = random.choice(FORMS)
    rows = [form(chat, answer) for chat, answer in chats(random)]
    kind = random.randrange(7)
    if kind == 0:
        return {"log.json": json.dumps(rows).encode()}
    if kind == 1:
        return {"log.json": json.dumps({random.choice(("data", "traces", "rows")): rows}, indent=1).encode()}
    if kind == 2:
        return {"log.csv": table(rows)}
    if kind == 3 and is_installed("pyarrow"):
        return {"log.parquet": parquet(rows)}
    return {"log.jsonl": "".join(json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n" for row in rows).encode()}


def table(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as CSV, with what is no text as JSON."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows([[one if isinstance(one, str) else json.dumps(one) for one in row.values()] for row in rows])
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    """Return rows as a Parquet file, with what is no text as JSON."""
    import pyarrow
    import pyarrow.parquet

    texts = [{key: one if isinstance(one, str) else json.dumps(one) for key, one in row.items()} for row in rows]
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), made)
    return made.getvalue()


def mutate_log(files: Files, random: Random) -> Files:
    """Change a log as what it is."""
    ((name, data),) = files.items()
    changes = {
        "log.jsonl": mutate.JSON_LINES,
        "log.json": mutate.JSON,
        "log.csv": mutate.TEXT,
        "log.parquet": mutate.any_bytes,
    }
    return {name: changes[name](data, random)}


def knock_read(folder: Path, files: Files) -> None:
    """Read every row of a log, as its own form and with columns that are named."""
    (path,) = [folder / name for name in files]
    for _, row in read([path], {}, silent, "logs"):
        row.first.encode() if not isinstance(row, LeftOut) else str(row).encode()
    if path.suffix == ".csv":
        for _ in read([path], read_columns("query=prompt,answer=completion"), silent, "logs"):
            pass


def knock_import(folder: Path, files: Files) -> None:
    """Make a task folder of a log."""
    (path,) = [folder / name for name in files]
    found = survey([path], {}, silent)
    sieve = Sieve(template=0, redact=len(files[path.name]) % 2 == 0)
    from_logs(folder / "task", found, sieve, Setup(name="task", model="starter", base=None))


door(Door(name="logs", make=log_files, mutate=mutate_log, knock=knock_read, whole=False, short=150))
door(Door(name="logs to a task", make=log_files, mutate=mutate_log, knock=knock_import, whole=False, short=20))
