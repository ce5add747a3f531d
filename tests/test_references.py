"""Rows by reference: the same records as ever, each text once on the disk, damage in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilocal.errors import InputError, RunError
from pilocal.flow import stage_files
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.rendering import render_stages
from pilocal.flow.runner import run_steps, step_named
from pilocal.report.record import Record as Kept
from pilocal.run_folder.references import forget_examples, header_of, write_examples, write_references
from pilocal.run_folder.rows import read_records
from pilocal.task import Example
from tests.bench.made_data import write_task

TURNS = (("user", "hello"), ("assistant", "hi"))
EXAMPLES = [
    Example(id="a", query="one\u2028line", answer="1", extra={"working": "A. B.", "other": 3}),
    Example(id="b", query="{{x}}?", answer="2", history=TURNS, unlearned=(1,), slots={"x": "b", "a": "c"}),
    Example(id="c", query="and now?", answer="3", history=TURNS),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A stage of three rows."""
    texts = write_examples(tmp_path, "train", EXAMPLES)
    header = header_of("Today is {{x}}.", 0.5, texts, texts)
    return write_references(tmp_path / "0" / "train.jsonl", header, [(1,), (0, 2), ()])


def test_what_is_written_by_reference_is_what_is_rendered(written: Path) -> None:
    first, second, third = read_records(written.parent, "train")
    assert [each["content"] for each in first["messages"]][-2:] == ["one\u2028line", "B.\n1"]
    assert first["messages"][1]["content"] == "x: b\na: c\n\nhello"
    assert second["messages"][0] == {"role": "system", "content": "Today is b."}
    assert [each["content"] for each in second["messages"][1:3]] == ["one\u2028line", "1"]
    assert "learned" not in second and third["learned"] == [2]
    assert '"other"' not in next(written.parent.parent.glob("train-*")).read_text()


def test_examples_that_no_row_names_any_more_go(written: Path) -> None:
    folder = written.parent.parent
    (old,) = folder.glob("train-*.jsonl")
    new = write_examples(folder, "train", EXAMPLES[:2])
    assert new != old and write_examples(folder, "train", EXAMPLES[:2]) == new
    forget_examples([new])
    assert sorted(path.name for path in folder.iterdir()) == ["0", new.name]
    with pytest.raises(RunError, match=rf"^{old}: the examples of the rendered rows are gone; run the same command"):
        read_records(written.parent, "train")


def line(number: int, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")
        path.write_text("\n".join([*lines[: number - 1], text, *lines[number:]]), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, '{"template": 3, "working": 0, "examples": "x", "shots": "x"}'),
        (1, '{"template": ""}'),
        (1, '{"template": "", "working": NaN, "examples": "x", "shots": "x"}'),
        (1, "{"),
        (2, "{"),
        (2, "[]"),
        (2, '{"example": 0}'),
        (2, '{"example": 3, "shots": []}'),
        (2, '{"example": 0, "shots": [7]}'),
        (2, '{"example": 0, "shots": [-1]}'),
        (2, '{"example": true, "shots": []}'),
        (2, '{"example": 0, "shots": 1}'),
        (3, ""),
    ],
)
def test_a_damaged_line_is_named_by_file_and_number(number: int, text: str, written: Path) -> None:
    line(number, text)(written)
    with pytest.raises(RunError) as caught:
        read_records(written.parent, "train")
    assert str(caught.value).startswith(f"{written}:{number}: damaged: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"query": "a"}', '{"query": "a", "answer": "b", "history": 3}'])
def test_damaged_examples_are_named_by_file_and_number(text: str, written: Path) -> None:
    (texts,) = written.parent.parent.glob("train-*")
    line(2, text)(texts)
    with pytest.raises(RunError, match=rf"^{texts}:2: damaged: not an example"):
        read_records(written.parent, "train")


def test_a_file_of_examples_cannot_be_elsewhere(written: Path) -> None:
    found = json.loads(written.read_text().split("\n")[0])
    line(1, json.dumps({**found, "examples": "../../etc/passwd"}))(written)
    with pytest.raises(RunError, match=rf"^{written.parent.parent / 'passwd'}: the examples"):
        read_records(written.parent, "train")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("made") / "task", 40, 5, words=60)


def staged(task: Path, run: Path, warn: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Run the steps up to stages and return every stage's records as they are rendered in memory."""
    with open_task(task, None, run, Listeners(warn=warn)) as context:
        run_steps(context, step_named("stages"))
        return [dict(stage.records) for stage in render_stages(context)]


def test_the_files_are_what_is_rendered_and_hold_each_text_once(task: Path, tmp_path: Path) -> None:
    for number, records in enumerate(staged(task, tmp_path / "run")):
        for split in ("train", "valid", "test"):
            assert read_records(tmp_path / "run" / "stages" / str(number), split) == records[split]
    own = sum((task / f"{split}.jsonl").stat().st_size for split in ("train", "valid", "test"))
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "stages").rglob("*.jsonl"))
    template = (task / "template.md").stat().st_size
    assert kept < 2 * own + 4 * 3 * (template + 200)
    assert Kept(tmp_path / "run").count_rows("train") == 40


def test_of_many_rows_the_longest_are_cut_and_one_too_long_is_found(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MANY", 10), ("LONGEST", 3)):
        monkeypatch.setattr(stage_files, name, value)
    staged(task, tmp_path / "run")
    copy = write_task(tmp_path / "task", 40, 5, words=60)
    lines = (copy / "train.jsonl").read_text().splitlines()
    lines[17] = json.dumps({"query": "word " * 20_000, "answer": "ls"})
    (copy / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="tokens over the model's context"):
        staged(copy, tmp_path / "long")


def test_of_many_answers_the_same_is_said_as_of_few(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = write_task(tmp_path / "task", 40, 5, words=60)
    with (copy / "task.toml").open("a", encoding="utf-8") as file:
        file.write("[generation]\nmax_tokens = 30\n")
    said: list[list[str]] = [[], []]
    staged(copy, tmp_path / "few", said[0].append)
    monkeypatch.setattr(stage_files, "ROUGH", 0)
    staged(copy, tmp_path / "many", said[1].append)
    assert said[0] == said[1]
    assert any("reference answers are longer than [generation] max_tokens = 30" in line for line in said[0])
