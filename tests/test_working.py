"""The working before an answer: which steps go, which stages have it, and that nothing but training sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_run, open_task
from pilocal.flow.plan import check
from pilocal.flow.rendering import render_stages
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import DIRECT_DROP, STAGES, TRAIN
from pilocal.flow.steps.train import _plan
from pilocal.run_folder.rows import read_records
from pilocal.task import Example
from pilocal.task.working import faded, shortened
from tests.forked import pilocal
from tests.test_flow import make_task

LAW = 'decay = "linear"\nstages = 3\nshots = 1\nfade = "{}"\n'


def make_worked(folder: Path, base: Base, fade: str = "both", *, settings: str = "", without: int = 0) -> Path:
    """A task whose training and validation records carry a working of two steps, but for the first `without`."""
    make_task(folder, base.folder)
    for split in ("train", "valid"):
        records = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for record in records[without:]:
            record["working"] = f"It names a colour.\nThe code is {record['answer']}."
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "schedule.toml").write_text(LAW.format(fade))
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("[training]", f"[training]\n{settings}"))
    return folder


def answers(folder: Path, stage: int, split: str) -> list[str]:
    return [record["messages"][-1]["content"] for record in read_records(folder / "run" / "stages" / str(stage), split)]


def prompts(folder: Path, stage: int) -> list[Any]:
    """The chats of every split before the answers."""
    read = [read_records(folder / "run" / "stages" / str(stage), split) for split in ("train", "valid", "test")]
    return [record["messages"][:-1] for records in read for record in records]


def render(folder: Path) -> None:
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, STAGES)


@pytest.mark.parametrize(
    ("working", "steps"),
    [
        ("a\nb\n\n c \nd", ["a", "b", " c", "d"]),
        ('One is 1. Two is 2.5! Is it "3?" Yes.', ["One is 1.", "Two is 2.5!", 'Is it "3?"', "Yes."]),
        ("\u4e00\u3002\u4e8c\u3002", ["\u4e00\u3002", "\u4e8c\u3002"]),
        ("no end", ["no end"]),
        ("  \n ", []),
    ],
)
def test_whole_steps_go_from_the_front(working: str, steps: list[str]) -> None:
    between = "\n" if "\n" in working else " "
    for left in range(len(steps) + 1):
        assert shortened(working.strip(), left / max(len(steps), 1)) == between.join(steps[len(steps) - left :])


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_working_never_grows_as_its_rate_falls(working: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert shortened(working, high).endswith(shortened(working, low))
    assert shortened(working, 0) == ""


def test_the_answer_follows_on_a_line_of_its_own_and_stands_alone_at_the_end() -> None:
    example = Example(id="1", query="q", answer="4", extra={"working": "a.\nb."})
    assert [faded(example, rate).answer for rate in (1, 0.5, 0)] == ["a.\nb.\n4", "b.\n4", "4"]
    assert faded(example, 0) is example
    plain = Example(id="1", query="q", answer="4")
    assert faded(plain, 1) is plain


@pytest.mark.parametrize("fade", ["both", "working"])
def test_training_and_validation_fade_and_the_test_and_the_shots_do_not(
    fade: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = make_worked(tmp_path / "task", tiny_base, fade)
    render(folder)
    first = int(fade == "working")  # behind what the base is asked with
    whole, half, alone = (answers(folder, first + number, "train")[0] for number in range(3))
    assert (whole, half, alone) == ("It names a colour.\nThe code is ZOR.\nZOR", "The code is ZOR.\nZOR", "ZOR")
    assert answers(folder, first, "valid")[0].count("\n") == 2
    last = first + 2
    assert {text for split in ("train", "valid") for text in answers(folder, last, split)} == {"ZOR", "MIP", "KEL"}
    for stage in range(last + 1):
        assert answers(folder, stage, "test") == ["ZOR", "MIP", "KEL"]
        assert "The code is" not in str(prompts(folder, stage))
    assert [len(prompts(folder, stage)[0]) for stage in range(last + 1)] == ([4, 2, 1] if first == 0 else [4, 1, 1, 1])
    state = json.loads((folder / "run" / "run.json").read_text())
    assert [stage.get("working") for stage in state["schedule"]][first:] == [1.0, 0.5, None]
    with open_run(folder / "run") as context:
        assert context.schedule.stages[first].working == 1.0
        assert STAGES.is_done(context)


def test_the_prompt_alone_fades_by_default_and_the_working_changes_nothing(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_worked(tmp_path / "task", tiny_base, "prompt")
    render(folder)
    assert {text for stage in range(3) for text in answers(folder, stage, "train")} == {"ZOR", "MIP", "KEL"}
    assert "working" not in (folder / "run" / "run.json").read_text()


def test_an_adapter_trains_through_every_stage_and_the_ablation_on_answers(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_worked(tmp_path / "task", tiny_base)
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, DIRECT_DROP)
        run_steps(context, TRAIN)
        rows = [context.rows(stage, "train") for stage in range(3)]
    lines = [
        [json.loads(line) for line in (folder / f"run/{where}/metrics.jsonl").read_text().splitlines()]
        for where in ("stages/0", "stages/2", "direct_drop")
    ]
    trained = [line["trained_tokens"] / line["prompt_tokens"] for line in (log[0] for log in lines)]
    assert len(rows[0][0].completion) > len(rows[1][0].completion) > len(rows[2][0].completion)
    # Two lines of working stand before a stage 0 answer; the ablation has stage 0's prompt and the answer alone.
    assert lines[0][0]["trained_tokens"] > 3 * lines[2][0]["trained_tokens"]
    assert trained[2] < trained[0]


def test_a_teacher_says_something_about_the_working_of_each_stage(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_worked(tmp_path / "task", tiny_base, settings='objective = "distill"\ndirect_drop = false')
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, TRAIN)
        for stage in range(3):
            for row in _plan(context, stage, 1).train:
                assert row.soft is not None
                assert len(row.soft.ids_CK) == len(row.completion)


def test_the_gap_compares_answers_alone(tiny_base: Base, tmp_path: Path) -> None:
    with_working = make_worked(tmp_path / "a", tiny_base)
    plan = check(with_working, schedule=with_working / "schedule.toml", probe=False, gap=True)
    (with_working / "schedule.toml").write_text(LAW.format("prompt"))
    same = check(with_working, schedule=with_working / "schedule.toml", probe=False, gap=True)
    assert plan.gap and same.gap
    assert plan.gap.full == pytest.approx(same.gap.full, rel=1e-5)
    assert [stage.working for stage in plan.stages] == [1.0, 0.5, 0.0]


def test_check_shows_how_much_of_the_working_each_stage_has(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_worked(tmp_path / "task", tiny_base)
    done = pilocal("check", folder, "--schedule", folder / "schedule.toml", "--no-probe", "--no-gap")
    assert "the working before the answers, stage by stage: 1.00, 0.50, 0.00" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_records_without_a_working_are_told_of(tiny_base: Base, tmp_path: Path) -> None:
    folder, said = make_worked(tmp_path / "task", tiny_base, without=2), list[str]()
    with open_task(folder, folder / "schedule.toml", None, Listeners(warn=said.append)) as context:
        (stage, *_) = render_stages(context)
    assert [text for text in said if "2 of 9 records carry no working, the first being train-1" in text]
    assert [record["messages"][-1]["content"].count("\n") for record in stage.records["train"]] == [0, 0, *[2] * 7]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, 'train.jsonl: no record carries the working that the schedule fades; add "working"'),
        ({"working": 3}, "train.jsonl: the working of 9 records is not text, the first being train-1; got 3"),
        ({"working": ["a"]}, "train.jsonl: the working of 9 records is not text, the first being train-1; got ['a']"),
        ({"working": "  "}, "train.jsonl: no record carries the working"),
    ],
)
def test_a_working_that_cannot_be_faded_is_one_line(
    change: dict[str, Any], said: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    records = [json.loads(line) | change for line in (folder / "train.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "schedule.toml").write_text(LAW.format("both"))
    with pytest.raises(InputError) as caught, open_task(folder, folder / "schedule.toml", None):
        pass
    assert said in str(caught.value)
    (folder / "schedule.toml").write_text(LAW.format("prompt"))  # where nothing fades it, it is the metric's
    with open_task(folder, folder / "schedule.toml", None):
        pass
