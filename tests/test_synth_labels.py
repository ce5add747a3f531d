"""Labels by the prompted self: drawn or greedy, checked by the metric and by entries alone, and where each is from."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pilocal.synth.files as files
from pilocal.base.base import Base
from pilocal.compress.entries import read_entries
from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import make_metric
from pilocal.flow.listeners import Listeners
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.run_folder.hashes import fingerprint
from pilocal.synth import synthesize
from pilocal.synth.labels import DISAGREES
from pilocal.synth.queries import TEST, TRAIN, VALID
from pilocal.synth.teacher import Teacher
from pilocal.task import Scoring, load_examples, load_task
from pilocal.task.text import key_of
from tests.test_synth import GAP, folder_bytes, lines_of, template_only

Chats = Sequence[Sequence[Message]]

SPLITS = (TRAIN, VALID, TEST)


@pytest.fixture
def learnable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end an answer: that is no reason to drop it."""
    monkeypatch.setattr(Teacher, "objection", lambda self, answer: None)


def with_synth(folder: Path, settings: str) -> Path:
    (folder / "task.toml").write_text((folder / "task.toml").read_text() + settings + "\n")
    return folder


def answers(folder: Path) -> dict[str, str]:
    records = [json.loads(line) for line in (folder / "synth" / "records.jsonl").read_text().splitlines()[1:]]
    return {record["query"]: record["answer"] for record in records}


@pytest.mark.usefixtures("learnable")
def test_drawn_answers_are_those_of_their_seed_however_often_the_work_is_killed(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CHUNK", 4)
    settings = {"greedy": "", "hot": "temperature = 1.5", "again": "temperature = 1.5",
                "other": "temperature = 1.5\nseed = 1"}  # fmt: skip
    said = dict[str, dict[str, str]]()
    for name, setting in settings.items():
        folder = with_synth(template_only(tmp_path / name, tiny_base), setting)
        if name == "again":

            def stop(what: str, done: int, total: int, note: str = "") -> None:
                if what == "synth":
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                synthesize(folder, listeners=Listeners(progress=stop))
        synthesize(folder)
        said[name] = answers(folder)
    assert folder_bytes(tmp_path / "again" / "synth") == folder_bytes(tmp_path / "hot" / "synth")
    own = [query for query in said["greedy"] if query in said["other"]]
    assert len(own) >= 10
    for name, other in (("greedy", "hot"), ("hot", "other")):
        assert all(said[name][query] != said[other][query] for query in own)
    assert len(set(said["hot"].values())) == len(said["hot"])


@pytest.mark.usefixtures("learnable")
def test_every_record_says_what_it_came_from(tiny_base: Base, tmp_path: Path) -> None:
    folder = with_synth(template_only(tmp_path / "task", tiny_base), "temperature = 0.5\nseed = 3")
    synthesize(folder)
    template = load_task(folder).template
    entries = {entry.text for entry in read_entries(template)}
    for split in SPLITS:
        for line in lines_of(folder, split):
            record = json.loads(line)
            made_by = record["made_by"]
            assert (made_by["seed"], made_by["temperature"]) == (3, 0.5)
            assert made_by["model"] == str(tiny_base.folder)
            assert made_by["template_sha256"] == fingerprint(template)
            assert record["entries"] and set(record["entries"]) <= entries
            assert any(text.split()[0] in record["query"] for text in record["entries"])
    assert load_task(folder).train[0].extra["made_by"]["base_sha256"] == tiny_base.sha256


def test_an_answer_that_its_entries_alone_do_not_give_is_dropped_and_counted(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_synth(template_only(tmp_path / "task", tiny_base), "agreement = true")
    seen = list[tuple[str, str]]()

    def said(self: Teacher, templates: Sequence[str], queries: Sequence[str]) -> list[str]:
        pairs = list(zip(templates, queries, strict=True))
        seen.extend(pairs)
        # All that stands in the template counts for "show", and nothing but the entry for the others.
        return [str(len(template)) if "show" in query else " ZOR" for template, query in pairs]

    def whole(self: Teacher, chats: Chats, sampling: Sampling | None = None) -> list[str]:
        return said(self, [(folder / "template.md").read_text()] * len(chats), [chat[-1]["content"] for chat in chats])

    monkeypatch.setattr(Teacher, "answer_after", said)
    monkeypatch.setattr(Teacher, "reply", whole)
    report = synthesize(folder)
    queries = [json.loads(line)["query"] for line in (folder / "synth" / "records.jsonl").read_text().splitlines()[1:]]
    assert report["dropped"] == {DISAGREES: sum("show" in query for query in queries)} != {DISAGREES: 0}
    assert not any("show" in line for split in SPLITS for line in lines_of(folder, split))
    assert ("Answer with the code of the colour.\n- red ZOR\nPlease be kind. Say nothing else.", "what is red?") in seen
    assert Counter(query for _, query in seen) == Counter([*queries, *queries])


def ask(folder: Path, *records: Any) -> None:
    with (folder / "queries.jsonl").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def test_answers_come_from_the_entries_alone_where_that_is_asked_for(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_synth(template_only(tmp_path / "task", tiny_base), 'prompt = "entries"')
    ask(
        folder, {"query": "Which one do I mean?", "entry": "- blue  MIP"}, {"query": "red or not?", "entry": "blue MIP"}
    )
    seen = dict[str, str]()

    def said(
        self: Teacher, templates: Sequence[str], queries: Sequence[str], sampling: Sampling | None = None
    ) -> list[str]:
        seen.update(zip(queries, templates, strict=True))
        return [" ZOR"] * len(queries)

    monkeypatch.setattr(Teacher, "answer_after", said)
    monkeypatch.setattr(Teacher, "reply", lambda *_: pytest.fail("asked with the whole template"))
    synthesize(folder)
    alone_is = "Answer with the code of the colour.\n- {}\nPlease be kind. Say nothing else."
    wanted = {"what is red?": "red ZOR", "show blue now": "blue MIP"}
    wanted |= {"Which one do I mean?": "blue MIP", "red or not?": "blue MIP"}
    assert {query: seen[query] for query in wanted} == {query: alone_is.format(text) for query, text in wanted.items()}
    records = [json.loads(line) for split in SPLITS for line in lines_of(folder, split)]
    assert {record["made_by"]["prompt"] for record in records} == {"entries"}
    named = {record["query"]: record["entries"] for record in records}
    assert named["red or not?"] == named["Which one do I mean?"] == ["blue MIP"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("blue MOP", "queries.jsonl:11: template.md has no such entry; got 'blue MOP'"),
        ("", "entry must be the text of an entry; got ''"),
        (3, "entry must be the text of an entry; got 3"),
    ],
)
def test_an_entry_that_is_not_there_is_one_line(entry: Any, said: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    ask(folder, {"query": "which?", "entry": entry})
    with pytest.raises(InputError) as caught:
        synthesize(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_starter_agrees_with_itself_on_what_single_entries_say(tmp_path: Path) -> None:
    folder = shutil.copytree(GAP, tmp_path / "gap", ignore=shutil.ignore_patterns("run"))
    with_synth(folder, "\n[synth]\nper_entry = 1\nagreement = true")
    report = synthesize(folder)
    kept, dropped = sum(report["made"][TRAIN].values()), report["dropped"].get(DISAGREES, 0)
    assert kept > 5 * dropped


@pytest.fixture
def database(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "shop.sqlite")
    connection.execute("create table bike (name text, price integer)")
    connection.execute("insert into bike values ('city', 18), ('electric', 39)")
    connection.commit()
    connection.close()
    return tmp_path


CHECKS: dict[str, list[tuple[str, bool]]] = {
    "sqlite": [("select name from bike", True), ("select color from bike", False), ("drop table bike", False),
               ("Sure!", False), ("", False)],
    "python_tests": [("def f():\n    return 1", True), ("```python\nx = 1\n```", True), ("def f(:", False),
                     ("x = '\0'", False), ("# nothing", False), ("Here you are: f", False), ("(" * 9999, False)],
    "contains": [("18 euros", True), ("?!", False)],
    "exact_match": [("anything", True)],
    "bleu": [("anything", True)],
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_a_metric_refuses_what_cannot_be_right_without_knowing_what_is(name: str, database: Path) -> None:
    metric = make_metric(name, Scoring(database="shop.sqlite"), database)
    for answer, fine in CHECKS[name]:
        assert (metric.objection(answer) is None) == fine, answer


AGREEMENTS: dict[str, list[tuple[str, str, bool]]] = {
    "sqlite": [("select name from bike", "SELECT name FROM bike ORDER BY price DESC LIMIT 9", False),
               ("select name from bike order by 1", "SELECT name FROM bike WHERE price < 100", True),
               ("select price from bike", "select name from bike", False), ("no query", "no query", False)],
    "contains": [("It is 18 euros.", "18 euros", True), ("18 euros", "It is 18 euros.", True), ("18", "19", False)],
    "exact_match": [("NIZ ", "NIZ", True), ("NIZ", "niz", False)],
    "bleu": [("ls -l", "ls -l", True), ("ls", "ls ", True), ("find . -name '*.c' -type f", "pwd", False)],
    "python_tests": [("x = 1 ", "x = 1", True), ("x = 1", "x = 2", False)],
}  # fmt: skip


@pytest.mark.parametrize("name", AGREEMENTS)
def test_two_answers_are_compared_as_the_metric_compares(name: str, database: Path) -> None:
    metric = make_metric(name, Scoring(database="shop.sqlite"), database)
    for one, other, same in AGREEMENTS[name]:
        assert metric.agree([one], [other], ["?"]) == [same], (one, other)


def test_a_program_of_one_s_own_is_not_asked_whether_two_answers_agree(tmp_path: Path) -> None:
    metric = make_metric("command", Scoring(command=("false",)), tmp_path)
    assert metric.agree(["a ", "b"], ["a", "c"], ["?", "?"]) == [True, False]
    assert metric.objection("anything") is None


@pytest.mark.usefixtures("learnable")
def test_a_label_that_the_metric_refuses_is_dropped_and_counted(
    tiny_base: Base, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = template_only(database / "task", tiny_base)
    shutil.copy(database / "shop.sqlite", folder)
    text = (folder / "task.toml").read_text().replace('name = "tiny"', 'name = "tiny"\nmetric = "sqlite"')
    (folder / "task.toml").write_text(text.replace("[synth]", '[scoring]\ndatabase = "shop.sqlite"\n[synth]'))
    told = ["select name from bike", "select color from bike"]

    def reply(self: Teacher, chats: Chats, sampling: Sampling | None = None) -> list[str]:
        return [told["what" in chat[-1]["content"]] for chat in chats]

    monkeypatch.setattr(Teacher, "reply", reply)
    report = synthesize(folder)
    assert report["dropped"].keys() == {"the query does not run"}
    assert not any("what" in line for split in SPLITS for line in lines_of(folder, split))


def test_a_prompt_that_is_longer_than_the_context_is_one_line_that_says_by_how_much(
    tiny_base: Base, tmp_path: Path
) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    many = "".join(f"- thing{i} ZOR\n" for i in range(3000))
    (folder / "template.md").write_text("Answer with codes.\n" + many)
    with pytest.raises(InputError) as raised:
        synthesize(folder)
    line = str(raised.value)
    found = re.search(
        r"template\.md: a prompt of (\d+) tokens, with (\d+) for its answer, is (\d+) over the .* (\d+) ", line
    )
    assert found, line
    prompt, answer, over, context = map(int, found.groups())
    assert prompt + answer - over == context == tiny_base.context
    assert "\n" not in line and "shorten the template" in line
    assert not (folder / "synth" / "records.jsonl").exists()


@pytest.mark.usefixtures("learnable")
def test_nothing_that_stands_in_the_test_set_is_asked(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    text = (folder / "task.toml").read_text().replace('test = "synth/test.jsonl"', 'test = "test.jsonl"')
    (folder / "task.toml").write_text(text.replace('valid = "synth/valid.jsonl"', 'valid = "valid.jsonl"'))
    held = {"test": ["What is red", "show  green now!", "I need green"], "valid": ["tell me green."]}
    for split, queries in held.items():
        lines = [json.dumps({"query": query, "answer": "ZOR"}) + "\n" for query in queries]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    synthesize(folder)
    asked = {key_of(query) for query in answers(folder)}
    assert len(asked) > 10
    assert not asked & {key_of(query) for queries in held.values() for query in queries}
    assert [example.query for example in load_examples(folder / "synth" / "test.jsonl")] == held["test"]


@pytest.mark.usefixtures("learnable")
def test_queries_of_the_user_s_own_fill_splits_that_nothing_else_fills(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    (folder / "template.md").write_text("Answer every question in one word.")
    (folder / "queries.jsonl").write_text("".join(json.dumps({"query": f"how about {i}?"}) + "\n" for i in range(30)))
    report: dict[str, Any] = synthesize(folder)
    assert report["made"] == {TRAIN: {"own": 20}, VALID: {"own": 6}, TEST: {"own": 4}}
    task = load_task(folder)
    assert len({example.query for split in (task.train, task.valid, task.test) for example in split}) == 30


@pytest.mark.usefixtures("learnable")
def test_the_report_names_entries_of_few_wordings_and_counts_compositions(tiny_base: Base, tmp_path: Path) -> None:
    folder = template_only(tmp_path / "task", tiny_base)
    report = synthesize(folder)
    assert report["few_wordings"] == []
    assert report["composed"] == 0  # no query has room for two
    for split in (VALID, TEST):
        (folder / f"{split}.jsonl").write_text(json.dumps({"query": f"{split}?", "answer": "ZOR"}) + "\n")
        text = (folder / "task.toml").read_text().replace(f'"synth/{split}.jsonl"', f'"{split}.jsonl"')
        (folder / "task.toml").write_text(text)
    queries = [f"{ask} {word}" for ask in ("what is", "tell me") for word in ("red", "blue")]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"query": query}) + "\n" for query in queries))
    assert synthesize(folder)["few_wordings"] == ["red ZOR", "blue MIP", "green KEL"]
