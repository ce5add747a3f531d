"""The example of the agents' prompts: what its script makes of GenPI's prompts and AgentBench's questions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.compress.entries import read_entries
from pilocal.synth import synthesize
from pilocal.synth.teacher import Teacher
from pilocal.task import load_task
from pilocal.task.schedule import load_schedule

EXAMPLE = Path(__file__).parent.parent / "examples" / "agentbench-os"
PROMPTS = ("os", "webshop", "m2w", "kg")
LETTERS = str.maketrans("0123456789", "ghij klmno")
TASKS = ("task.toml", "task.smollm2.toml")


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def entry(text: str, example: object, explanation: str = "") -> dict[str, Any]:
    return {"description": text, "explanation": explanation, "evaluation": {"check": [None], "example": example}}


def write(folder: Path) -> tuple[Path, Path]:
    """Prompts and questions in the form of the public files."""
    prompts, questions = folder / "prompts", folder / "questions"
    prompts.mkdir()
    questions.mkdir()
    for name in PROMPTS:
        text = f"<USER>:\nYou are the agent of {name}. Take one action.\n\n<AGENT>:\nOk.\n\n<USER>:\nMy problem is:\n"
        (prompts / f"{name}.txt").write_text(text)
    things = [hashlib.sha256(str(i).encode()).hexdigest().translate(LETTERS) for i in range(120)]
    whole = [entry(f"{one[:40]}?", f"ls {one[:5]} | wc -l", f"Count {one[:5]}. Then stop.") for one in things]
    whole += [entry(f"Count the files of '/home/user{i}' that hold \"x{i}\".", f"grep -c x{i}") for i in range(9)]
    (questions / "train.json").write_text(json.dumps(whole))
    dev = [entry(whole[0]["description"], {"code": "ls"}), entry("Which shell is this?", {"file": "example/0.sh"})]
    dev.append({"description": "Find the log.", "evaluation": {"match": "1"}})
    (questions / "dev.json").write_text(json.dumps(dev))
    return prompts, questions


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("agents")
    done = prepare(*write(folder), folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stderr


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prompt_becomes_a_task_that_loads(prepared: tuple[Path, str]) -> None:
    out, said = prepared
    assert said.count("\n") == 4 and {path.name for path in out.iterdir()} == set(PROMPTS)
    for prompt in PROMPTS:
        assert load_schedule(out / prompt / "schedule.toml").stages[-1].tau == 0
        for name in TASKS:
            task = load_task(out / prompt / name, data=False)
            assert task.name == f"agentbench-{prompt}"
            assert f"the agent of {prompt}" in task.template
            assert (task.synth.generator is None) == (prompt == "os")
            assert (task.lora.rank, task.lora.scale, task.lora.linears, task.lora.layers) == (16, 2.0, (), None)
            assert (task.training.objective, task.training.lr_schedule) == ("distill", "cosine")
    whole = load_task(out / "os" / "task.toml", data=False)
    assert (whole.training.learning_rate, whole.training.batch_size) == (1e-4, 8)
    assert whole.training.steps == -(-10 * len(read(out / "os" / "queries.jsonl")) // 8)
    assert "genpi_lambda = 0.3" in (out / "m2w" / "task.toml").read_text()
    assert "genpi_lambda = 0.7" in (out / "webshop" / "task.toml").read_text()
    assert load_task(out / "os" / "task.smollm2.toml", data=False).model == "smollm2"


def test_questions_that_are_nearly_the_same_stay_in_one_split(prepared: tuple[Path, str]) -> None:
    parts = {name: read(prepared[0] / "os" / f"{name}.jsonl") for name in ("queries", "valid", "test")}
    texts = [row["query"] for rows in parts.values() for row in rows]
    assert len(texts) == len(set(texts)) == 120 + 9 + 2
    assert min(len(parts["valid"]), len(parts["test"])) >= 2
    homes = [name for name, rows in parts.items() if any("'/home/user" in row["query"] for row in rows)]
    assert len(homes) == 1
    for row in (*parts["valid"], *parts["test"]):
        assert re.fullmatch(r"Think: .+\n\nAct: bash\n\n```bash\n.+\n```", row["answer"])
    unsolved = {"Which shell is this?", "Find the log."}
    assert unsolved <= {row["query"] for row in parts["queries"]}


def test_the_prompted_self_answers_the_questions_of_a_prepared_task(
    prepared: tuple[Path, str], tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(prepared[0] / "os", tmp_path / "os")
    text = (folder / "task.toml").read_text()
    text = re.sub(r"^model = .*$", f'model = "{tiny_base.folder}"', text, flags=re.MULTILINE)
    (folder / "task.toml").write_text(text.replace("max_tokens = 256", "max_tokens = 4"))
    monkeypatch.setattr(Teacher, "objection", lambda self, answer: None)
    report = synthesize(folder)
    count = len(read(folder / "queries.jsonl"))
    assert report["made"]["train"] == {"own": count}
    task = load_task(folder)
    assert len(task.train) == count and len(task.test) == len(read(folder / "test.jsonl"))


def test_a_prepared_folder_is_made_again_byte_for_byte_and_never_overwritten(tmp_path: Path) -> None:
    given = write(tmp_path)
    for name in ("one", "two"):
        assert prepare(*given, tmp_path / name).returncode == 0
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    assert files == {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    again = prepare(*given, tmp_path / "one")
    assert again.returncode == 1 and again.stderr.endswith("already exists and is not empty; choose a new folder\n")


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda prompts, questions: shutil.rmtree(prompts), "none of the four prompts"),
        (lambda prompts, questions: shutil.rmtree(questions), "no file of questions"),
        (lambda prompts, questions: (questions / "dev.json").write_text("[{]"), "not a list of AgentBench's questions"),
        (lambda prompts, questions: (questions / "dev.json").write_text('{"a": 1}'), "not a list of AgentBench's"),
        (lambda prompts, questions: (questions / "train.json").write_text("[]"), "too few questions: nothing is left"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(break_it: Any, line: str, tmp_path: Path) -> None:
    given = write(tmp_path)
    break_it(*given)
    done = prepare(*given, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and line in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("PILOCAL_DATA" not in os.environ, reason="PILOCAL_DATA names no folder of public data")
def test_the_public_files_give_what_the_readme_says(tmp_path: Path) -> None:
    data = Path(os.environ["PILOCAL_DATA"])
    assert prepare(data / "prompts", data / "agentbench_os", tmp_path / "out").returncode == 0
    sizes = [len(read(tmp_path / "out" / "os" / f"{name}.jsonl")) for name in ("queries", "valid", "test")]
    text = (EXAMPLE / "README.md").read_text()
    assert f"| {', '.join(map(str, sizes))} |" in text
    for prompt in PROMPTS:
        template = (tmp_path / "out" / prompt / "template.md").read_text()
        assert f"| `{prompt}` | {len(template):,} |" in text
        assert len(read_entries(template)) > 5
