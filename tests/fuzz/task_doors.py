"""Doors of the task folder: task.toml with every table, schedules, examples of every split, the template."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from random import Random
from typing import Any

from pilocal.errors import PilocalError
from pilocal.task import TABLES, load_examples, load_task
from pilocal.task.examples import load_own_queries, load_queries, load_unrelated, read_split
from pilocal.task.load import _Top
from pilocal.task.schedule import DECAYS, load_decay, load_schedule
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

GIVEN: dict[str, Any] = {
    "name": "colours", "schedule": "schedule.toml", "layers": 2, "linears": ["self_attn.q_proj"], "compile": False,
    "precision": "float32", "mix_queries": "queries.jsonl", "on_policy_steps": 2, "patience": 3, "retention": 0.5,
    "direct_drop_steps": 4, "unrelated": "unrelated.jsonl", "json_schema": "schema.json", "database": "db.sqlite",
    "command": ["python3", "score.py"], "timeout": 3.5, "labelled": "train.jsonl", "generator": "base", "max_rows": 5,
    "keep": ["ZOR"], "budget_tokens": 5000, "stay": ["- red is ZOR"], "drop_first": ["Say"], "ladder": "ladder",
}  # fmt: skip
"""Values of keys that have no default, or one that says little."""

NEEDING = {"objective": "distill", "mix": 0.25, "mix_prompt": True, "on_policy": True}
"""What other keys of [training] need."""

TEMPLATE = (
    b"Answer with the code of a colour on {{today}}.\n\n# Codes\n- red is ZOR\n- blue is MIP\nSay nothing else.\n"
)


def toml(value: Any) -> str:
    """Return a value as TOML writes it; JSON's form is the same for all that stands here."""
    return json.dumps(value)


def table(cls: type[Any], random: Random) -> str:
    """Return some keys of a table with good values, most of them the default."""
    lines = []
    for field in fields(cls):
        value = GIVEN.get(field.name, list(field.default) if isinstance(field.default, tuple) else field.default)
        value = NEEDING.get(field.name, value) if cls is TABLES["training"] else value
        if value is not MISSING and value is not None and (field.name in ("name", *NEEDING) or random.random() < 0.5):
            lines.append(f"{field.name} = {toml(value)}")
    return "\n".join(lines) + "\n"


def task_files(random: Random) -> Files:
    """Return a task folder of every table."""
    text = table(_Top, random).replace('metric = "exact_match"', 'metric = "python_tests"')
    text += "".join(f"\n[{name}]\n{table(cls, random)}" for name, cls in TABLES.items() if name != "scoring")
    files = {"task.toml": text.encode(), "template.md": TEMPLATE.replace(b" on {{today}}", b"")}
    files |= {"schema.json": b'{"type": "string"}', "schedule.toml": b'decay = "linear"\n'}
    for at, split in enumerate(("train", "valid", "test")):
        files[f"{split}.jsonl"] = b'{"query": "what is red, %d?", "answer": "ZOR"}\n' % at
    files["unrelated.jsonl"] = files["queries.jsonl"] = b'{"query": "what is the capital of France?"}\n'
    return files


def only(*names: str, change: mutate.Change) -> Any:
    """Return the mutation that changes the named files alone."""

    def mutation(files: Files, random: Random) -> Files:
        name = random.choice(names)
        return files | {name: change(files.get(name, b""), random)}

    return mutation


def knock_task(folder: Path, files: Files) -> None:
    """Read the task, as every command does, and its schedule where it names one."""
    task = load_task(folder)
    if "schedule" in task.files:
        load_schedule(task.files["schedule"]).steps(task.training.steps)


door(
    Door(
        name="task.toml",
        make=task_files,
        mutate=only("task.toml", change=mutate.TOML),
        knock=knock_task,
        short=400,
    )
)


def schedule_files(random: Random) -> Files:
    """Return a schedule: a decay with the keys that it reads, or stages."""
    if random.random() < 0.3:
        until = random.choice(("", "until_tau = 0.1\n", "until_shots = 1\n"))
        tau, shots = ("0.1" if "tau" in until else "0.0"), (1 if "shots" in until else 0)
        stages = [("1.0", 5, "0.5", "1.0"), ("0.5", 2, "0.25", "0.5"), (tau, shots, "0.25", "0.0")]
        rows = [f"[[stage]]\ntau = {t}\nshots = {n}\nshare = {s}\nworking = {w}\n" for t, n, s, w in stages]
        return {"schedule.toml": (until + "\n".join(rows)).encode()}
    decay = random.choice(list(DECAYS))
    given = {"stages": 4, "rate": 3.0, "final": 0.5, "margin": 0.05, "least": 0.25, "until_tau": 0.1, "until_shots": 1}
    lines = [f'decay = "{decay}"', "shots = 5"]
    for key in sorted(DECAYS[decay][1]):
        value = random.choice(('"both"', '"working"', '"prompt"')) if key == "fade" else str(given[key])
        lines.append(f"{key} = {value}")
    return {"schedule.toml": "\n".join(lines).encode() + b"\n"}


def knock_schedule(folder: Path, files: Files) -> None:
    """Read a schedule and divide steps by it; where it names a decay, read that alone, too."""
    schedule = load_schedule(folder / "schedule.toml")
    for total in (1, 7, 1000):
        steps = schedule.steps(total)
        assert sum(steps) >= total and len(steps) == len(schedule.stages)
    assert schedule.workings and schedule.trained
    assert all(0 <= stage.tau <= 1 for stage in schedule.stages)
    if b"stage]" not in files["schedule.toml"]:
        load_decay(folder / "schedule.toml")


door(
    Door(
        name="schedule",
        make=schedule_files,
        mutate=only("schedule.toml", change=mutate.TOML),
        knock=knock_schedule,
        short=400,
    )
)


def record(random: Random, number: int) -> dict[str, Any]:
    """Return a good record of one of its forms."""
    plain = {"query": f"what is red, {number}?", "answer": "ZOR", "slots": {"today": "2026-11-30"}}
    turns = [("user", f"and blue, {number}?"), ("assistant", "MIP"), ("user", "sure?"), ("assistant", "MIP")]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    messages[1]["weight"] = random.choice((0, 1))
    messages[2]["content"] = [{"type": "text", "text": "sure"}, {"type": "input_text", "text": "?"}]
    talk = {"id": f"talk-{number}", "messages": messages, "slots": {"today": "Monday"}}
    more: dict[str, Any] = {
        "tests": ["assert f(1) == 2"],
        "working": "It is red. ZOR.",
        "price": 1.5,
        "tags": [1, {}],
    }
    return random.choice((plain, talk, plain | {"id": str(number)} | more))


def record_files(random: Random) -> Files:
    """Return a file of records."""
    rows = [json.dumps(record(random, number), ensure_ascii=random.random() < 0.5) for number in range(6)]
    return {"train.jsonl": "\n".join(rows).encode() + b"\n"}


def knock_records(folder: Path, files: Files) -> None:
    """Read records with the template's slots known and unknown, and take from each what a run takes."""
    path = folder / "train.jsonl"
    for slots in (("today",), None, ()):
        read = read_split(path, "train", slots)
        for example in read.examples:
            json.dumps([example.facts, example.asked, example.learned_queries]).encode()
            example.asked.encode()
        assert read.examples or read.faults
        "\n".join(map(str, [*read.faults, read.warning])).encode()
    load_examples(path)


door(
    Door(
        name="records",
        make=record_files,
        mutate=only("train.jsonl", change=mutate.JSON_LINES),
        knock=knock_records,
        short=400,
    )
)


def query_files(random: Random) -> Files:
    """Return a file of queries, alone, with entries, or with answers."""
    rows: list[dict[str, Any]] = [{"query": f"who was {n}?", "answer": "Ann", "accepts": ["Anna"]} for n in range(3)]
    rows += [{"query": f"what is {n}?", "entry": "- red is ZOR"} for n in range(3)]
    return {"queries.jsonl": "\n".join(json.dumps(row) for row in rows).encode()}


def knock_queries(folder: Path, files: Files) -> None:
    """Read a file of queries in every way in which it may be meant."""
    path, errors = folder / "queries.jsonl", list[PilocalError]()
    for read in (load_queries, load_own_queries, load_unrelated):
        try:
            for each in read(path):
                str(each).encode()
        except PilocalError as error:
            errors.append(error)
    if errors:
        raise errors[0]


door(
    Door(
        name="queries",
        make=query_files,
        mutate=only("queries.jsonl", change=mutate.JSON_LINES),
        knock=knock_queries,
        short=200,
    )
)


def template_files(random: Random) -> Files:
    """Return a task folder whose template has slots, and records that fill them in."""
    files = task_files(Random(0)) | {"task.toml": b'name = "colours"\n', "template.md": TEMPLATE}
    for at, split in enumerate(("train", "valid", "test")):
        row = {"query": f"what is red, {at}?", "answer": "ZOR", "slots": {"today": "Monday"}}
        files[f"{split}.jsonl"] = json.dumps(row).encode()
    return files


door(
    Door(
        name="template",
        make=template_files,
        mutate=only("template.md", "template.md", "train.jsonl", change=mutate.TEXT),
        knock=knock_task,
        short=200,
    )
)
