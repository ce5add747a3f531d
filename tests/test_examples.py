"""The examples: one form for all, what their scripts make, and nothing that a test query could copy from training."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import find_base
from pilocal.compress.entries import read_entries
from pilocal.evaluate.retention import GENERAL as MEASURED
from pilocal.evaluate.scoring import python_tests
from pilocal.evaluate.scoring.metrics import make_metric
from pilocal.flow.mixing import GENERAL as MIXED
from pilocal.task import load_examples, load_task
from pilocal.task.examples import load_queries, load_unrelated
from pilocal.task.schedule import load_decay, load_schedule
from pilocal.task.text import key_of

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "smart-home": ("smart-home/make.py",),
    "smart-home-gap": ("smart-home/make.py", "--leave-out"),
    "text-to-query": ("text-to-query/make.py",),
}
REAL = ("geography", "mbpp", "nl2bash")
TWO_HOP = "two-hop"
FADES = ("both", "working", "prompt", "direct")
"""The arms of TWO_HOP."""
SPLITS = {"train": 800, "valid": 120, "test": 240}


def records(name: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name / f"{split}.jsonl").read_text().splitlines()]


def test_every_example_with_data_has_a_script() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/train.jsonl")} == {*SCRIPTS, TWO_HOP}


def test_no_prompt_that_measures_forgetting_is_trained_on() -> None:
    trained = {*load_queries(MIXED), *load_queries(EXAMPLES / "handbook" / "everyday.jsonl")}
    task = load_task(EXAMPLES / "handbook", data=False)
    measured = [*load_unrelated(MEASURED), *load_unrelated(task.files["unrelated"])]
    assert (len(trained), len(measured)) == (619, 140)
    assert {key_of(query) for query in trained}.isdisjoint(key_of(example.query) for example in measured)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_what_its_script_makes(name: str, tmp_path: Path) -> None:
    script, *options = SCRIPTS[name]
    subprocess.run([sys.executable, EXAMPLES / script, *options, "--out", tmp_path], check=True)
    for file in ("template.md", *(f"{split}.jsonl" for split in SPLITS)):
        assert (tmp_path / file).read_bytes() == (EXAMPLES / name / file).read_bytes()
    assert {split: len(records(name, split)) for split in SPLITS} == SPLITS


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_query_and_no_answer_of_an_example_stands_twice(name: str) -> None:
    rows = [row for split in SPLITS for row in records(name, split)]
    assert len(rows) == len({row["query"] for row in rows}) == len({row["answer"] for row in rows})


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_prompts_of_an_example_fit_the_starter(name: str) -> None:
    task = load_task(EXAMPLES / name)
    tokenizer = find_base(task.model, task.folder).tokenizer
    assert task.model == "starter"
    most = max(stage.shots for stage in load_schedule(EXAMPLES / name / "schedule.toml").stages)
    parts = [(len(tokenizer.encode(example.query)), len(tokenizer.encode(example.answer))) for example in task.train]
    shot = max(sum(part) for part in parts) + 16
    assert len(tokenizer.encode(task.template)) + (most + 1) * shot + task.generation.max_tokens < 2048
    assert max(answer for _, answer in parts) < task.generation.max_tokens


def test_two_hop_is_what_its_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / TWO_HOP / "make.py", "--out", tmp_path], check=True)
    for file in ("template.md", *(f"{split}.jsonl" for split in SPLITS)):
        assert (tmp_path / file).read_bytes() == (EXAMPLES / TWO_HOP / file).read_bytes()
    assert not load_task(EXAMPLES / TWO_HOP).warnings


def codes_of_things(template: str) -> dict[str, str]:
    """The first table of TWO_HOP."""
    return dict([line[2:].split() for line in template.split("\n") if line.startswith("- ")][:24])


def test_every_answer_of_two_hop_takes_both_look_ups() -> None:
    task = load_task(EXAMPLES / TWO_HOP)
    code_of = codes_of_things(task.template)
    solved = {split: [two_hop(example) for example in getattr(task, split)] for split in SPLITS}
    trained = {(thing, room) for thing, room, _ in solved["train"]}
    known = {(code_of[thing], room): label for thing, room, label in solved["train"]}
    asked = solved["valid"] + solved["test"]
    assert not trained & {(thing, room) for thing, room, _ in asked}
    # The label of a code in a room is the same for all things of that code, and each is trained with some other.
    assert all(known[code_of[thing], room] == label for thing, room, label in asked)
    assert not {label for _, _, label in solved["train"]} & set(code_of.values())


def test_the_working_of_two_hop_is_a_line_for_each_look_up() -> None:
    task = load_task(EXAMPLES / TWO_HOP)
    for example in (*task.train, *task.valid):
        first, second = example.extra["working"].split("\n")
        code = first.split()[-1]
        assert first.split()[1] in example.query and second.startswith(f"{code} in the ")
        assert second.endswith(f" is {example.answer}") and f"- {code} {example.answer}" in task.template
    assert not [example for example in task.test if "working" in example.extra]


def two_hop(example: Any) -> tuple[str, str, str]:
    """The thing, the room and the label of a solved request."""
    thing = re.search(r"label the (\w+)", example.query)
    room = re.search(r"^in the (\w+),", example.query) or re.search(r" the (\w+)[?]?$", example.query)
    assert thing and room
    return thing[1], room[1], example.answer


def test_the_arms_of_two_hop_differ_in_what_fades_alone() -> None:
    laws = {fade: load_decay(EXAMPLES / TWO_HOP / f"schedule.{fade}.toml") for fade in FADES}
    assert {fade: law.fade for fade, law in laws.items()} == {fade: fade for fade in FADES[:3]} | {"direct": "prompt"}
    assert len({(law.stages, law.shots, law.final, law.decay) for law in (laws[fade] for fade in FADES[:3])}) == 1
    assert laws["direct"].decay == "direct"
    steps = {sum(law.schedule().steps(load_task(EXAMPLES / TWO_HOP).training.steps)) for law in laws.values()}
    assert steps == {1200}


def test_the_gap_is_in_every_split_but_the_test() -> None:
    template = (EXAMPLES / "smart-home-gap" / "template.md").read_text()
    codes = dict(line.split()[1:] for line in template.splitlines() if line.startswith("- ") and line.count(" ") == 2)
    left_out = {word for row in records("smart-home-gap", "test") for word in row["left_out"]}
    assert len(left_out) == 16
    for split in ("train", "valid"):
        for row in records("smart-home-gap", split):
            assert not left_out & set(row["query"].split())
            assert not {codes[word] for word in left_out} & set(row["answer"].split())
    assert sum(bool(row["left_out"]) for row in records("smart-home-gap", "test")) == 120


PICTURES = (".svg", ".png")


def files_of(name: str) -> set[str]:
    """The files that an example is to have."""
    if name == "agentbench-os":  # its templates are the user's
        return {"README.md", "prepare.py", "schedule.toml", "task.toml", "task.smollm2.toml"}
    always = {"README.md", "task.toml", "template.md"}
    if name == "handbook":
        return always | {"schedule.toml", "queries.jsonl", "everyday.jsonl", "test.jsonl", "general.jsonl"}
    if name == TWO_HOP:
        splits = {f"{split}.jsonl" for split in SPLITS}
        return always | splits | {"make.py", *(f"schedule.{fade}.toml" for fade in FADES)}
    if name in REAL:
        smollm2 = {"nl2bash": {"task.smollm2.toml", "schedule.smollm2.toml"}, "geography": {"task.smollm2.toml"}}
        starter = {"task.starter.toml", "template.starter.md", "schedule.starter.toml"}
        return always | smollm2.get(name, set()) | starter | {"prepare.py"}
    own = {SCRIPTS[name][0].split("/")[1]} if SCRIPTS[name][0].startswith(f"{name}/") else set()
    return always | own | {"schedule.toml", *(f"{split}.jsonl" for split in SPLITS)}


def test_every_example_has_the_files_of_its_kind() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()} - {"guides"}
    assert folders == {*SCRIPTS, *REAL, "handbook", "agentbench-os", TWO_HOP} and len(folders) == 9
    for name in folders:
        files = [path for path in (EXAMPLES / name).iterdir() if path.is_file()]
        assert {path.name for path in files if path.suffix not in PICTURES} == files_of(name)


@pytest.mark.parametrize("name", [*SCRIPTS, *REAL])
def test_the_readme_of_an_example_gives_its_command_its_budget_and_room_for_scores(name: str) -> None:
    text = (EXAMPLES / name / "README.md").read_text()
    script = SCRIPTS[name][0] if name in SCRIPTS else f"{name}/prepare.py"
    assert f"python examples/{script}" in text
    assert text.count("<!-- scores -->") == text.count("<!-- /scores -->") == 1
    law = load_decay(schedule_of(name))
    stages = re.findall(r"^\| (\d) \| ([\d.]+) \| (\d) \|", text, re.MULTILINE)
    wanted = [(str(i), f"{stage.tau:.2f}", str(stage.shots)) for i, stage in enumerate(law.schedule().stages)]
    assert stages[: law.stages] == wanted


def test_no_question_of_the_handbook_s_test_is_among_those_that_are_learned() -> None:
    asked = [example.query for example in load_examples(EXAMPLES / "handbook" / "test.jsonl")]
    learned = load_queries(EXAMPLES / "handbook" / "queries.jsonl")
    assert len(set(map(key_of, learned))) == len(learned) == 765
    assert {key_of(query) for query in asked} & set(map(key_of, learned)) == set()


def test_the_handbook_s_questions_can_be_scored_and_its_facts_are_entries() -> None:
    task, questions = load_task(EXAMPLES / "handbook", data=False), load_examples(EXAMPLES / "handbook" / "test.jsonl")
    metric = make_metric(task.metric, task.scoring, task.folder)
    metric.check(questions)
    assert len(questions) == 57
    facts = [entry.text for entry in read_entries(task.template) if entry.group is not None]
    assert len(facts) == 45
    # Every question has its answer in some fact; a "no" or a sum is not to be found word by word.
    told = [max(metric.marks([fact], [question])[0, 0] for fact in facts) for question in questions]
    assert np.mean(told) > 0.9


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_schedule_of_an_example_is_the_linear_decay(name: str) -> None:
    law = load_decay(schedule_of(name))
    assert (law.decay, law.stages, law.shots, law.final) == ("linear", 4, 2, 0.86)


def schedule_of(name: str) -> Path:
    return EXAMPLES / name / ("schedule.starter.toml" if name in REAL else "schedule.toml")


def prepare(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def write_geography(folder: Path) -> None:
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


def write_mbpp(folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in (2, 11, 12, 511, 600, 601, 974):
        code = f"def f{number}(x):\r\n\treturn x + {number} \r\n"
        tests = [f"assert f{number}({x}) == {number + x}" for x in range(3)]
        setup = "import math \r\nroot = math.pi" if number == 12 else ""
        rows.append({"text": f"Add {number}.", "code": code, "task_id": number, "test_list": tests,
                     "test_setup_code": setup, "challenge_test_list": []})  # fmt: skip
    rows[1]["test_list"].append(f"assert f11({'1 + ' * 400}1) == 412")
    rows[-1]["text"] = "add  11."
    (folder / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), newline="")


def write_nl2bash(folder: Path) -> None:
    (folder / "all.nl").write_text("".join(f"question {n // 2}\n" for n in range(200)) + "question 0\n")
    (folder / "all.cm").write_text("".join(f"command {n}\n" for n in range(200)) + "command  0\n")


WRITE = {"geography": write_geography, "mbpp": write_mbpp, "nl2bash": write_nl2bash}


@pytest.fixture(scope="module", params=REAL)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """(name, task folder, what prepare.py said), of hand-made files in the public format."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "data").mkdir()
    WRITE[request.param](folder / "data")
    done = prepare(request.param, folder / "data", folder / "out")
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return request.param, folder / "out", done.stderr


def test_a_prepared_task_loads_and_is_made_again_byte_for_byte(prepared: tuple[str, Path, str], tmp_path: Path) -> None:
    name, out, said = prepared
    assert said.count("\n") == 1
    again = prepare(name, out.with_name("data"), tmp_path / "again")
    assert again.stderr == said.replace(str(out), str(tmp_path / "again"))
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    for toml in ("task.toml", "task.starter.toml"):
        task = load_task(tmp_path / "again" / toml)
        assert task.name == name and (task.model == "starter") == (toml == "task.starter.toml")


def test_a_prepared_folder_is_not_overwritten_and_a_missing_one_is_one_line(
    prepared: tuple[str, Path, str], tmp_path: Path
) -> None:
    name, out, _ = prepared
    again = prepare(name, out.with_name("data"), out)
    assert again.returncode == 1
    assert again.stderr.endswith("already exists and is not empty; choose a new folder\n")
    missing = prepare(name, tmp_path / "nothing", tmp_path / "new")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1
    assert missing.stderr.startswith(f"{tmp_path}/nothing")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("prepared", ["nl2bash"], indirect=True)
def test_nl2bash_can_be_drawn_smaller(prepared: tuple[str, Path, str], tmp_path: Path) -> None:
    _, out, _ = prepared
    done = prepare("nl2bash", out.with_name("data"), tmp_path / "less", "--train", 3, "--test", 1)
    assert done.returncode == 0
    whole, less = ({split: read(folder, split) for split in SPLITS} for folder in (out, tmp_path / "less"))
    assert [len(less[split]) for split in ("train", "test")] == [3, 1] and less["valid"] == whole["valid"]
    assert [row for row in whole["train"] if row in less["train"]] == less["train"]
    refused = prepare("nl2bash", out.with_name("data"), tmp_path / "none", "--train", 0)
    assert refused.returncode == 2 and "argument --train: invalid count value: '0'" in refused.stderr
    task = load_task(tmp_path / "less" / "task.smollm2.toml")
    assert (task.model, task.serving.default_system) == ("smollm2", False)


def read(out: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("prepared", ["geography"], indirect=True)
def test_geography_fills_its_variables_in_and_drops_what_does_not_run(prepared: tuple[str, Path, str]) -> None:
    _, out, said = prepared
    assert "1 test, 1 valid, 1 train, 1 dropped (SQL that does not run), 1 dropped (asked before)" in said
    (row,) = read(out, "test")
    assert row["query"] == "cities of new york"
    assert row["answer"] == 'SELECT CITY_NAME FROM CITY WHERE STATE_NAME = "new york" ;'
    assert (out / "geography.sqlite").read_bytes() == (out.with_name("data") / "geography-db.sqlite").read_bytes()


@pytest.mark.parametrize("prepared", ["mbpp"], indirect=True)
def test_mbpp_keeps_its_splits_and_writes_plain_code_with_tests_that_it_passes(prepared: tuple[str, Path, str]) -> None:
    _, out, said = prepared
    assert "2 test, 2 valid, 2 train, 1 test for the starter, 1 dropped (in an earlier split)" in said
    assert [row["id"] for row in read(out, "train")] == ["mbpp-2", "mbpp-601"]
    assert [row["id"] for row in read(out, "test.starter")] == ["mbpp-12"]
    for row in (row for split in SPLITS for row in read(out, split)):
        number = int(row["id"].split("-")[1])
        assert row["answer"] == f"def f{number}(x):\n    return x + {number}"
        assert row["query"].startswith(f"Add {number}.\nThe tests:\nassert f{number}(0) == {number}\n")
        assert row.get("setup") == ("import math\nroot = math.pi" if number == 12 else None)
    for name in ("task.toml", "task.starter.toml"):
        task = load_task(out / name)
        for example in (*task.train, *task.valid, *task.test):
            exec(f"{example.answer}\n{python_tests.tests_of(example)}", {})


@pytest.mark.parametrize("prepared", ["nl2bash"], indirect=True)
def test_nl2bash_keeps_what_shares_a_question_or_a_command_together(prepared: tuple[str, Path, str]) -> None:
    _, out, said = prepared
    assert "1 dropped (the same pair again)" in said
    questions = [{row["query"] for row in read(out, split)} for split in SPLITS]
    assert sum(map(len, questions)) == len(set().union(*questions)) == 100


SIZES = {
    "geography": {"train": 547, "valid": 48, "test": 277},
    "mbpp": {"train": 379, "valid": 90, "test": 500},
    "nl2bash": {"train": 10710, "valid": 664, "test": 1222},
}


@pytest.mark.skipif("PILOCAL_DATA" not in os.environ, reason="PILOCAL_DATA names no folder of public data")
@pytest.mark.parametrize("name", REAL)
def test_the_public_files_make_a_task_that_fits_the_starter(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = prepare(name, Path(os.environ["PILOCAL_DATA"]) / name, out)
    assert done.returncode == 0, done.stderr
    assert {split: len(read(out, split)) for split in SPLITS} == SIZES[name]
    starter, whole = load_task(out / "task.starter.toml"), load_task(out / "task.toml")
    assert len(whole.test) == SIZES[name]["test"]
    tokenizer = find_base("starter", out).tokenizer
    template = len(tokenizer.encode(starter.template))
    most = load_decay(schedule_of(name)).shots
    longest = sorted(len(tokenizer.encode(e.query)) + len(tokenizer.encode(e.answer)) for e in starter.train)[-most:]
    longest = longest if most else []
    asked = max(len(tokenizer.encode(e.query)) for e in (*starter.test, *starter.valid, *starter.train))
    # The longest row with the longest shots that there are; NL2Bash's longest examples never come together.
    margin = 16 * (most + 2)
    if name != "nl2bash":
        assert template + sum(longest) + asked + starter.generation.max_tokens + margin < 2048
    assert template + asked + starter.generation.max_tokens + margin < 2048
