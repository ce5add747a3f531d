"""`pilocal init` from logs and prompts: the folder is a task, nothing leaks, and every row is used or listed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pilocal.cli import cli
from pilocal.errors import PilocalError
from pilocal.logs import choose_base, installed_bases
from pilocal.logs.bases import BaseChoice
from pilocal.logs.exchange import CONTAINED, CONTRADICTING, NO_TEMPLATE, OTHER_TEMPLATE, OVER_LIMIT, REPEATED, TOO_LONG
from pilocal.logs.metric import AnswerStatistics
from pilocal.logs.near import NearDuplicates
from pilocal.logs.sensitive import redacted, seen_in
from pilocal.task import load_task
from pilocal.task.schedule import load_schedule
from tests.made_logs import KINDS, Message, made_logs, query, rules, said, sentence, user
from tests.test_cli import pilocal

SPLITS = ("train", "valid", "test")


def rng() -> random.Random:
    return random.Random(11)


def chat(system: str, *turns: Message) -> list[Message]:
    return [{"role": "system", "content": system}, *turns]


def answered(system: str, asked: str, answer: str) -> list[Message]:
    return chat(system, user(asked), {"role": "assistant", "content": answer})


def write(path: Path, rows: list[list[Message]]) -> Path:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def init(folder: Path, *arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["init", str(folder), *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit | PilocalError):
        raise result.exception
    return result


def made(folder: Path, log: Path, *arguments: object) -> Result:
    result = init(folder, "--from-logs", log, "--model", "starter", *arguments)
    assert result.exception is None, result.exception
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def left_out(folder: Path) -> Counter[str]:
    return Counter(line["reason"] for line in lines(folder / "left_out.jsonl") if not line["kept"])


def kept(folder: Path) -> list[dict[str, Any]]:
    return [record for split in SPLITS for record in lines(folder / f"{split}.jsonl")]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_the_folder_is_a_task_and_every_row_is_used_or_listed(number: int, tmp_path: Path) -> None:
    log = made_logs(len(KINDS))[number]
    folder = tmp_path / "task"
    made(folder, write(tmp_path / "log.jsonl", log.rows))
    task = load_task(folder)
    assert [" ".join(line.split()) for line in task.template.split("\n") if line.strip()] == log.lines
    records = [record for record in kept(folder) if not str(record.get("id", "")).startswith("shot-")]
    assert len(records) + left_out(folder).total() == len(log.rows)
    sources = {record["source"] for record in records}
    listed = {f"log.jsonl:{line['line']}" for line in lines(folder / "left_out.jsonl") if not line["kept"]}
    assert sources | listed == {f"log.jsonl:{n}" for n in range(1, len(log.rows) + 1)}
    assert not sources & listed
    assert min(len(getattr(task, split)) for split in SPLITS) >= 1


def test_what_init_makes_of_logs_passes_check(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw, 12)
    log = write(tmp_path / "log.jsonl", [chat(text, user(query(draw)), said(draw)) for _ in range(40)])
    done = pilocal("init", tmp_path / "task", "--from-logs", log, "--model", "starter")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"next: `pilocal check {tmp_path / 'task'}`")
    done = pilocal("check", tmp_path / "task", "--json", "--no-probe", "--no-gap")
    assert done.returncode == 0, done.stderr


def test_nearly_the_same_queries_stay_together_and_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    rows = []
    for number in range(60):
        asked = f"my order {number} with the {sentence(draw, 14, 16)} did not arrive"
        rows += [answered(text, form, f"a{number}") for form in (asked, asked.title() + "!", asked + " today")]
    splits = []
    for name in ("one", "other"):
        made(tmp_path / name, write(tmp_path / f"{name}.jsonl", rows))
        found = {split: {record["answer"] for record in lines(tmp_path / name / f"{split}.jsonl")} for split in SPLITS}
        assert not found["train"] & found["test"] | found["train"] & found["valid"] | found["valid"] & found["test"]
        assert len(found["test"]) == len(found["valid"]) == 6
        splits.append(found)
        draw.shuffle(rows)
    assert splits[0] == splits[1]


def test_near_duplicates_are_alike_and_others_are_not() -> None:
    draw = rng()
    near = NearDuplicates()
    base = sentence(draw, 40, 40)
    texts = [
        base,
        base + " please",
        base.upper() + "?",
        sentence(draw, 40, 40),
        "turn on the lamp",
        "turn off the lamp",
    ]
    for text in texts:
        near.add(text)
    groups = near.groups()
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups[2:])) == 4


def test_contradicting_and_repeated_answers(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    rows = [answered(text, f"query {number} {sentence(draw)}", "x") for number in range(30)]
    asked = "what is the colour of the lamp?"
    rows += [answered(text, asked, answer) for answer in ("red", "blue", "blue")]
    tied = "what is the size of the lamp?"
    rows += [answered(text, tied, answer) for answer in ("small", "large")]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    answers = {record["query"]: record["answer"] for record in kept(tmp_path / "task")}
    assert (answers[asked], answers[tied]) == ("blue", "large")
    assert left_out(tmp_path / "task") == {CONTRADICTING: 2, REPEATED: 1}
    listed = {line["line"]: line for line in lines(tmp_path / "task" / "left_out.jsonl")}
    assert listed[31]["detail"] == f"{tmp_path / 'log.jsonl'}:33 has another"
    assert listed[31]["file"] == str(tmp_path / "log.jsonl")


def test_a_conversation_is_learned_once(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    rows = []
    for _ in range(12):
        turns = [turn for _ in range(3) for turn in (user(query(draw)), said(draw))]
        rows += [chat(text, *turns[:end]) for end in (2, 4, 6)]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    assert [len(record["messages"]) for record in kept(tmp_path / "task")] == [6] * 12
    assert left_out(tmp_path / "task") == {CONTAINED: 24}


def test_shots_become_training_records_once(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    shots = [user("solved already?"), {"role": "assistant", "content": "yes"}]
    rows = [chat(text, *shots, user(query(draw)), said(draw)) for _ in range(30)]
    rows.append(chat(text, *shots, user("solved already?"), {"role": "assistant", "content": "yes"}))
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    found = {split: [r["query"] for r in lines(tmp_path / "task" / f"{split}.jsonl")] for split in SPLITS}
    assert [found[split].count("solved already?") for split in SPLITS] == [1, 0, 0]


def two_prompts(tmp_path: Path) -> tuple[Path, str, str]:
    draw = rng()
    first, second = rules(draw), rules(draw)
    rows = [chat((first, second)[n % 3 == 0], user(query(draw)), said(draw)) for n in range(90)]
    return write(tmp_path / "log.jsonl", rows), first, second


def test_another_template_can_be_chosen(tmp_path: Path) -> None:
    log, first, second = two_prompts(tmp_path)
    result = made(tmp_path / "one", log)
    assert "template 1: 67% of the rows" in result.output
    assert "template 2: 33% of the rows" in result.output
    made(tmp_path / "two", log, "--template", 2)
    assert [load_task(tmp_path / name).template for name in ("one", "two")] == [first, second]
    assert (left_out(tmp_path / "one"), left_out(tmp_path / "two")) == ({OTHER_TEMPLATE: 30}, {OTHER_TEMPLATE: 60})
    result = init(tmp_path / "three", "--from-logs", log, "--template", 3)
    assert "the logs have 2 templates" in str(result.exception)
    assert not (tmp_path / "three").exists()


def test_variants_are_taken_on_demand(tmp_path: Path) -> None:
    log = next(log for log in made_logs(len(KINDS)) if log.kind == "variants")
    path = write(tmp_path / "log.jsonl", log.rows)
    assert "--variants takes them, too" in made(tmp_path / "one", path).output
    assert left_out(tmp_path / "one")[OTHER_TEMPLATE] == sum(not each for each in log.queries)
    assert "so send the bare query" in made(tmp_path / "all", path, "--variants").output
    assert left_out(tmp_path / "all")[OTHER_TEMPLATE] == 0
    assert load_task(tmp_path / "one").template == load_task(tmp_path / "all").template


def test_secrets_are_seen_and_taken_out_on_demand(tmp_path: Path) -> None:
    draw = rng()
    text = f"{rules(draw)}\nWrite to boss@example.com."
    rows = [answered(text, f"{query(draw)} of mail{n}@example.org", f"sk-{'a' * 20}{n}") for n in range(30)]
    log = write(tmp_path / "log.jsonl", rows)
    result = made(tmp_path / "kept", log)
    assert "kept, an e-mail address: 30 (first: " in result.output
    assert "kept, a token: 30" in result.output
    assert "the template holds an e-mail address" in result.output
    assert "mail7@example.org" in str(kept(tmp_path / "kept"))
    made(tmp_path / "clean", log, "--redact")
    everything = "".join((tmp_path / "clean" / f"{name}").read_text() for name in ("train.jsonl", "template.md"))
    assert "@example" not in everything
    assert "sk-a" not in everything
    assert "[e-mail address]" in everything


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ann.b+c@mail.example.co.uk", "an e-mail address"),
        ("key sk-proj-abcdefghijklmnop1234", "a token"),
        ("AKIAIOSFODNN7EXAMPLE", "a token"),
        ("ghp_" + "a1" * 18, "a token"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "a private key"),
        ("password: correct-horse", "a password"),
        ('"api_key": "0123456789abcdef"', "a password"),
        ("4111 1111 1111 1111", "a card number"),
    ],
)
def test_what_is_secret(text: str, name: str) -> None:
    assert seen_in(f"see {text} there") == [name]
    assert seen_in(redacted(f"see {text} there")) == []


@pytest.mark.parametrize(
    "text", ["the password is wrong", "a@b", "order 4111 1111 1111 1112", "2026-05-01 12:00:00", "sk-learn", "x" * 40]
)
def test_what_is_no_secret(text: str) -> None:
    assert seen_in(text) == []
    assert redacted(text) == text


def test_rows_that_no_context_holds_are_left_out_and_shots_are_fewer_where_they_must(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw, 6)
    rows = [chat(text, user(f"{n} {sentence(draw, 200, 200)}"), said(draw)) for n in range(40)]
    rows.append(chat(text, user(sentence(draw, 3000, 3000)), said(draw)))
    result = made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    assert left_out(tmp_path / "task") == {TOO_LONG: 1}
    schedule = load_schedule(tmp_path / "task" / "schedule.toml")
    assert schedule.stages[0].shots == 1
    assert "1 shot at first" in result.output
    assert "the base's context is too short for more" in (tmp_path / "task" / "schedule.toml").read_text()
    done = pilocal("check", tmp_path / "task", "--no-probe", "--no-gap")
    assert done.returncode == 0, done.stderr


def test_more_rows_than_wanted_are_drawn_evenly(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    log = write(tmp_path / "log.jsonl", [chat(text, user(query(draw)), said(draw)) for _ in range(300)])
    made(tmp_path / "task", log, "--rows", 100)
    count = len(kept(tmp_path / "task"))
    assert 70 < count < 130
    assert left_out(tmp_path / "task") == {OVER_LIMIT: 300 - count}
    late = [record for record in kept(tmp_path / "task") if int(record["source"].rpartition(":")[2]) > 150]
    assert 0.3 * count < len(late) < 0.7 * count


def test_several_files_may_follow(tmp_path: Path) -> None:
    log, first, _ = two_prompts(tmp_path)
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    text = log.read_text().splitlines(keepends=True)
    for path, some in zip(parts, (text[:40], text[40:]), strict=True):
        path.write_text("".join(some))
    for folder, arguments in (
        ("one", ["init", tmp_path / "one", "--from-logs", *parts]),
        ("two", ["init", "--from-logs", *parts, tmp_path / "two"]),
        ("three", ["init", tmp_path / "three", "--from-logs", parts[0], "--from-logs", parts[1]]),
    ):
        result = CliRunner().invoke(cli, [*map(str, arguments), "--model", "starter"])
        assert result.exception is None, result.exception
        assert load_task(tmp_path / folder).template == first
    assert len({(tmp_path / name / "train.jsonl").read_text() for name in ("one", "two", "three")}) == 1


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["yes", "no"] * 20, "exact_match"),
        (['{"a": 1}', '{"b": "some longer text that differs"}'] * 9, "exact_match"),
        ([f"word {n}" for n in range(40)], "exact_match"),
        ([f"a long free text about the matter number {n}, with details" for n in range(40)], "bleu"),
    ],
)
def test_the_metric_is_that_of_the_answers(answers: list[str], metric: str) -> None:
    statistics = AnswerStatistics()
    for answer in answers:
        statistics.add(answer)
    found, why = statistics.metric()
    assert (found, bool(why)) == (metric, True)


def test_the_base_is_the_largest_that_fits_and_is_installed() -> None:
    found = installed_bases()
    assert "starter" in {each.model for each in found}
    assert all(each.memory > each.parameters for each in found)

    def base(model: str, parameters: int, unfit: str = "") -> BaseChoice:
        return BaseChoice(model=model, source="x", parameters=parameters, memory=2 * parameters, unfit=unfit)

    best, why = choose_base([base("a-Instruct", 9), base("starter", 2), base("huge", 99, "too large")])
    assert best.model == "a-Instruct"
    assert "not huge" in why
    assert "trying pilocal" in choose_base([base("starter", 2)])[1]


def test_without_the_template_is_said_with_what_is_missing(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    rows = [chat(text, user(query(draw)), said(draw)) for _ in range(60)]
    rows.append(chat(text.replace("Answer with", "Shout"), user(query(draw)), said(draw)))
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    (line,) = lines(tmp_path / "task" / "left_out.jsonl")
    assert (line["line"], line["reason"]) == (61, NO_TEMPLATE)
    assert "Answer with" in line["detail"]
