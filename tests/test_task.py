"""Reading tasks: what is right is taken as it stands, what is wrong is named with file and line, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilocal.errors import Faults, InputError
from pilocal.task import Training, load_task


def write_task(folder: Path) -> Path:
    (folder / "task.toml").write_text('name = "t"\n')
    (folder / "template.md").write_text("Say it backwards.\n")
    for split in ("train", "valid", "test"):
        lines = [json.dumps({"query": f"{split} {i}", "answer": f"{i}"}) for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_task(folder)
    return str(caught.value)


def test_a_task_needs_no_more_than_a_name(folder: Path) -> None:
    task = load_task(folder)
    assert (task.name, task.model, task.metric, len(task.train)) == ("t", "starter", "exact_match", 3)
    assert task.training == Training()
    assert task.template == "Say it backwards."


def test_tables_change_what_they_name_and_nothing_else(folder: Path) -> None:
    (folder / "task.toml").write_text('name = "t"\n[training]\nlearning_rate = 1e-5\nsteps = 7\n[lora]\nscale = 3\n')
    task = load_task(folder)
    assert (task.training.learning_rate, task.training.steps, task.lora.scale) == (1e-5, 7, 3.0)
    assert task.training.batch_size == Training().batch_size


def test_every_fault_of_every_file_is_reported_with_its_line(folder: Path) -> None:
    (folder / "task.toml").write_text('name = "t"\nmetrik = "bleu"\n[training]\nsteps = "many"\nclip = -1.0\n')
    (folder / "train.jsonl").write_text('{"query": "a", "answer": "b"}\n{"query": "a"\n{"query": "c", "answer": ""}\n')
    (folder / "task.toml").write_text(
        'name = "t"\nmetric = "blue"\n[training]\nstep = 3\nbatch_size = "x"\n[lora]\nrank = 0\n'
    )
    with pytest.raises(Faults) as caught:
        load_task(folder)
    lines = str(caught.value).splitlines()
    assert any("task.toml:4: unknown key step in [training]; did you mean steps?" in line for line in lines)
    assert any("task.toml:5: batch_size must be a whole number" in line for line in lines)
    assert any("task.toml:7: rank must be at least 1" in line for line in lines)
    assert any("task.toml:2: metric must be one of" in line for line in lines)


def test_a_field_that_every_record_lacks_is_one_line(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"query": "a"}\n{"query": "b"}\n{"answer": "c"}\n{"query": "d"}\n')
    lines = refusal(folder).splitlines()
    assert len(lines) == 2
    assert "train.jsonl:1: the record has no answer, and 2 more like it, the last on line 4; got" in lines[0]
    assert "train.jsonl:3: the record has no query; " in lines[1]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('vectors = "ngrams"', "unknown key vectors in [retrieval]"),
        ('similarity = "cosine"', 'similarity must be "bleu" or "embedding"; got \'cosine\''),
        ('over = "query"', 'over must be "answer" with similarity = "bleu"; got \'query\''),
        ("pool = 0", "pool must be above 0 and at most 1; got 0.0"),
        ("pool = 1.5", "pool must be above 0 and at most 1; got 1.5"),
    ],
)
def test_retrieval_is_read_strictly(folder: Path, line: str, fault: str) -> None:
    with (folder / "task.toml").open("a") as file:
        file.write(f"[retrieval]\n{line}\n")
    assert fault in refusal(folder)


def test_broken_records_are_named_line_by_line(folder: Path) -> None:
    (folder / "train.jsonl").write_text(
        '{"query": "a", "answer": "b", "id": 1}\n{"query": "a"\n\n{"query": "c"}\n[]\n'
        '{"query": "d", "answer": "e", "id": 1}\n'
    )
    lines = refusal(folder).splitlines()
    assert ["train.jsonl:2: broken JSON" in lines[0], "train.jsonl:4: the record has no answer" in lines[1]] == [
        True
    ] * 2
    assert "train.jsonl:5: not a JSON object" in lines[2]
    assert "train.jsonl:6: duplicate id, first on line 1" in lines[3]


@pytest.mark.parametrize("name", ["template.md", "train.jsonl", "valid.jsonl", "test.jsonl"])
def test_missing_and_empty_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text(" \n")
    assert f"{name}: the file is empty" in refusal(folder)
    (folder / name).unlink()
    assert f"{name}: no such file" in refusal(folder)


def test_a_missing_task_says_how_to_make_one(tmp_path: Path) -> None:
    assert "pilocal init" in refusal(tmp_path)


def test_an_unknown_table_is_an_error_with_a_suggestion(folder: Path) -> None:
    (folder / "task.toml").write_text('name = "t"\n[trainning]\nsteps = 3\n')
    assert "task.toml:2: unknown table [trainning]; did you mean training?" in refusal(folder)


def test_a_setting_that_the_metric_does_not_read_is_an_error(folder: Path) -> None:
    (folder / "task.toml").write_text('name = "t"\n[scoring]\ndatabase = "a.sqlite"\n')
    said = "task.toml:3: the metric exact_match does not read [scoring] database; it reads strip; remove the key"
    assert said in refusal(folder)


def test_toml_that_does_not_parse_is_named_with_its_line(folder: Path) -> None:
    (folder / "task.toml").write_text('name = "t"\nmodel = \n')
    assert "task.toml:2: not valid TOML" in refusal(folder)


def test_a_query_may_not_stand_in_two_splits(folder: Path) -> None:
    (folder / "test.jsonl").write_text('{"query": "train 1", "answer": "x"}\n')
    assert "test.jsonl:1: queries that also appear in an earlier split: 1, the last being" in refusal(folder)


def test_a_multi_turn_record_keeps_its_history(folder: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (folder / "test.jsonl").write_text(json.dumps(record) + "\n")
    (example,) = load_task(folder).test
    assert (example.history, example.query, example.answer) == (tuple(turns[:2]), "c", "d")


def test_a_system_message_inside_a_record_is_refused(folder: Path) -> None:
    record = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
    (folder / "test.jsonl").write_text(json.dumps(record) + "\n")
    assert "its text belongs in the template" in refusal(folder)


def test_unusual_line_separators_inside_a_string_do_not_end_a_record(folder: Path) -> None:
    (folder / "test.jsonl").write_text('{"query": "a\u2028b", "answer": "c"}\n', encoding="utf-8")
    assert load_task(folder).test[0].query == "a\u2028b"
