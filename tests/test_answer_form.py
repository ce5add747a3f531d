"""The form of a task's answers: read with the task, told where training answers do not fit, and shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.errors import PilocalError
from pilocal.flow.answer_form import answer_grammar
from pilocal.flow.listeners import Listeners
from pilocal.llamacpp.grammar import Form
from pilocal.run_folder.shipped import read_shipped
from pilocal.task import load_task
from tests.test_flow import flow, make_task

CODES = 'root ::= "ZOR" | "MIP"'


def with_form(folder: Path, base: Base, name: str, content: str) -> Path:
    make_task(folder, base.folder)
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(f'{text}\n[serving]\n{name} = "form.txt"\n')
    (folder / "form.txt").write_text(content)
    return folder


def check(folder: Path) -> list[str]:
    said: list[str] = []
    pilocal.check(folder, probe=False, gap=False, listeners=Listeners(warn=said.append))
    return [line for line in said if "[serving]" in line]


def test_training_answers_that_no_served_answer_could_be_are_told(tiny_base: Base, tmp_path: Path) -> None:
    (line,) = check(with_form(tmp_path / "some", tiny_base, "grammar", CODES))
    assert "train.jsonl: 3 of 9 answers do not fit [serving] grammar, such as that of train-3; " in line
    assert check(with_form(tmp_path / "none", tiny_base, "grammar", "root ::= [A-Z]{3}")) == []
    schema = json.dumps({"type": "string", "pattern": "^[A-Z]{3}$"})
    (line,) = check(with_form(tmp_path / "all", tiny_base, "json_schema", schema))
    assert "9 of 9 answers do not fit [serving] json_schema" in line  # they have no quotes
    form = Form(str(answer_grammar(load_task(tmp_path / "all"))))
    assert form.fits('"ZOR"')
    assert not form.fits('"zor"')
    assert not form.fits('"ZOR')


@pytest.mark.filterwarnings("ignore:.*answers do not fit:UserWarning")
def test_the_form_is_shipped_and_a_new_one_is_shipped_anew(tiny_base: Base, tmp_path: Path) -> None:
    folder = with_form(tmp_path / "task", tiny_base, "grammar", CODES)
    assert flow(folder, "export")["export"]
    assert read_shipped(folder / "run").grammar == CODES
    assert not flow(folder, "export")["export"]
    (folder / "form.txt").write_text(CODES + ' | "KEL"')
    done = flow(folder, "export")
    assert (done["train"], done["export"]) == (False, True)
    assert read_shipped(folder / "run").grammar == CODES + ' | "KEL"'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("grammar", "root ::= root", "form.txt: "),
        ("grammar", "", "form.txt: "),
        ("json_schema", "{", "form.txt: not JSON: "),
        ("json_schema", '{"multipleOf": 3}', "multipleOf"),
        ("json_schema", "[]", "form.txt: "),
    ],
)
def test_a_form_that_cannot_be_is_one_line(name: str, content: str, said: str, tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(PilocalError) as caught:
        check(with_form(tmp_path / "task", tiny_base, name, content))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lines", [['json_schema = "a"', 'grammar = "b"'], ['grammar = ""'], ['grammar = "gone.gbnf"']])
def test_a_form_that_is_named_wrongly_is_a_fault(lines: list[Any], tiny_base: Base, tmp_path: Path) -> None:
    folder = with_form(tmp_path / "task", tiny_base, "grammar", CODES)
    text = (folder / "task.toml").read_text().replace('grammar = "form.txt"', "\n".join(lines))
    (folder / "task.toml").write_text(text)
    with pytest.raises(PilocalError, match=r"json_schema|grammar|gone"):
        load_task(folder)
