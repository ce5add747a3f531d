"""The bundled examples: what their scripts make, and nothing that a test query could copy from training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pilocal.base import find_base, load_tokenizer
from pilocal.schedule import load_schedule
from pilocal.task import load_task

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "smart-home": ("smart-home/make.py",),
    "smart-home-gap": ("smart-home/make.py", "--leave-out"),
    "text-to-query": ("text-to-query/make.py",),
}
SPLITS = {"train": 800, "valid": 120, "test": 240}


def records(name: str, split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (EXAMPLES / name / f"{split}.jsonl").read_text().splitlines()]


def test_every_example_with_data_has_a_script():
    assert {path.parent.name for path in EXAMPLES.glob("*/train.jsonl")} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_what_its_script_makes(name, tmp_path):
    script, *options = SCRIPTS[name]
    subprocess.run([sys.executable, EXAMPLES / script, *options, "--out", tmp_path], check=True)
    for file in ("template.md", *(f"{split}.jsonl" for split in SPLITS)):
        assert (tmp_path / file).read_bytes() == (EXAMPLES / name / file).read_bytes()
    assert {split: len(records(name, split)) for split in SPLITS} == SPLITS


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_query_and_no_answer_of_an_example_stands_twice(name):
    rows = [row for split in SPLITS for row in records(name, split)]
    assert len(rows) == len({row["query"] for row in rows}) == len({row["answer"] for row in rows})


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_prompts_of_an_example_fit_the_starter(name):
    task = load_task(EXAMPLES / name)
    tokenizer = load_tokenizer(find_base(task.model, task.folder))
    assert task.model == "starter"
    most = max(stage.shots for stage in load_schedule(EXAMPLES / name / "schedule.toml").stages)
    parts = [(len(tokenizer.encode(example.query)), len(tokenizer.encode(example.answer))) for example in task.train]
    shot = max(sum(part) for part in parts) + 16
    assert len(tokenizer.encode(task.template)) + (most + 1) * shot + task.generation.max_tokens < 2048
    assert max(answer for _, answer in parts) < task.generation.max_tokens


def test_the_gap_is_in_every_split_but_the_test():
    template = (EXAMPLES / "smart-home-gap" / "template.md").read_text()
    codes = dict(line.split()[1:] for line in template.splitlines() if line.startswith("- ") and line.count(" ") == 2)
    left_out = {word for row in records("smart-home-gap", "test") for word in row["left_out"]}
    assert len(left_out) == 16
    for split in ("train", "valid"):
        for row in records("smart-home-gap", split):
            assert not left_out & set(row["query"].split())
            assert not {codes[word] for word in left_out} & set(row["answer"].split())
    assert sum(bool(row["left_out"]) for row in records("smart-home-gap", "test")) == 120


def test_geography_is_prepared_from_the_public_files(tmp_path):
    import sqlite3

    folder = tmp_path / "data"
    folder.mkdir()
    connection = sqlite3.connect(folder / "geography-db.sqlite")
    connection.execute("create table CITY (CITY_NAME text, STATE_NAME text)")
    connection.commit()
    connection.close()
    variables = [{"name": "state_name0", "example": "ohio", "type": "state_name", "location": "both"}]
    split = ("train", "dev", "test", "train")
    entry = {
        "sql": ['SELECT CITY_NAME FROM CITY  WHERE STATE_NAME = "state_name0" ;', "SELECT 1"],
        "variables": variables,
        "sentences": [
            {"question-split": name, "text": "cities of state_name0", "variables": {"state_name0": state}}
            for name, state in zip(split, ("iowa", "utah", "new york", "utah"), strict=True)
        ],
    }
    lake = {"question-split": "train", "text": "lakes", "variables": {}}
    entries = [entry, {"sql": ["SELECT * FROM LAKE"], "variables": [], "sentences": [lake]}]
    (folder / "geography.json").write_text(json.dumps(entries))

    def prepare(*folders):
        command = [sys.executable, EXAMPLES / "geography" / "prepare.py", *folders]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    done = prepare(folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 test, 1 valid, 1 train, 1 dropped (SQL that does not run), 1 dropped (asked before)" in done.stderr
    for name in ("task.toml", "task.starter.toml"):
        task = load_task(tmp_path / "out" / name)
        assert task.metric == "sqlite"
        assert task.test[0].query == "cities of new york"
        assert task.test[0].answer == 'SELECT CITY_NAME FROM CITY WHERE STATE_NAME = "new york" ;'
    again = prepare(folder, tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.endswith("already there and not empty; choose a new folder\n")
    missing = prepare(tmp_path, tmp_path / "new")
    assert missing.returncode == 1
    assert missing.stderr == f"{tmp_path}: no geography*.sqlite; give the folder with the database\n"
