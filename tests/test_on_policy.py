"""A second round on the student's own answers, judged by the frozen teacher: what it trains on, and that it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.base.reference import MlxReference
from pilocal.errors import InputError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.steps import ON_POLICY, TRAIN, adapter_step
from pilocal.flow.steps.on_policy import _plan, _said
from pilocal.prompt.soft import soften
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.log import read_log
from pilocal.run_folder.rows import read_records, read_rows
from pilocal.task import load_task
from pilocal.training.backend import Backend
from tests.test_distill import log_softmax, stop
from tests.test_flow import flow, make_task

DISTILL = 'objective = "distill"\ndistill_answers = 0.2'


def on_policy(folder: Path, base: Base, *lines: str) -> Path:
    make_task(folder, base.folder, steps=9)
    edit(folder, "[training]", "\n".join(["[training]", DISTILL, "on_policy = true", *lines]))
    return folder


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "task.toml").read_text()
    assert old in text
    (folder / "task.toml").write_text(text.replace(old, new))


def adapter(folder: Path, part: str = "adapter") -> bytes:
    return (folder / "run" / part / "adapters.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = on_policy(tmp_path_factory.mktemp("on-policy") / "task", tiny_base)
    assert flow(folder)["on_policy"]
    return folder


def test_the_training_goes_on_for_a_quarter_of_the_steps_and_ships_what_comes_out(finished: Path) -> None:
    assert not any(flow(finished).values())
    assert [line.step for line in read_log(finished / "run" / "on_policy" / "metrics.jsonl")] == [1, 2]
    assert adapter(finished) == adapter(finished, "on_policy") != adapter(finished, "stages/2")
    assert (finished / "run" / "metrics.json").exists()


def test_it_learns_what_the_teacher_says_about_the_student_s_own_answers(finished: Path, tiny_base: Base) -> None:
    run = finished / "run"
    said = read_rows(run / "on_policy", "train", tiny_base.tokenizer)
    asked = read_rows(run / "stages" / "2", "train", tiny_base.tokenizer)
    assert [row.tokens[: row.offset] for row in said] == [row.tokens[: row.offset] for row in asked]
    student = MlxReference(tiny_base, run / "stages" / "2")
    how = {"ends": end_tokens(tiny_base.tokenizer), "max_tokens": 4, "batch_size": 16, "name": ""}
    prompts = [row.tokens[: row.offset] for row in asked]
    spoken = student.answer(prompts, progress=lambda *_, **__: None, **how)
    texts = [record["messages"][-1]["content"] for record in read_records(run / "on_policy", "train")]
    assert texts == [tiny_base.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in spoken]
    with open_task(finished, finished / "schedule.toml", run) as context:
        answered = load_task(finished).train
        pairs = zip(answered, texts, strict=True)
        rows, _ = _said(context, ON_POLICY.key(context), [replace(one, answer=text) for one, text in pairs])
        plan = _plan(context, rows)
        assert (len(plan.train), sum(row.is_said for row in plan.train)) == (18, 9)
        full = context.rows(0, "train")[0]
    teacher = MlxReference(tiny_base, None)
    row = rows[0]
    prompted = full._replace(tokens=(*full.tokens[: full.offset], *row.completion))
    own = soften(log_softmax(teacher.logits(prompted).astype("float64")).astype("float32"), 20)
    assert row.soft is not None
    assert row.soft.log_probs_CK == pytest.approx(own.log_probs_CK, abs=1e-4)


def test_in_a_conversation_the_student_s_own_answer_alone_is_judged(tiny_base: Base, tmp_path: Path) -> None:
    folder = on_policy(tmp_path / "task", tiny_base)
    turns = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    with (folder / "train.jsonl").open("w") as file:
        for first, second in zip(turns, [*turns[1:], turns[0]], strict=True):
            texts = (first["query"], first["answer"], second["query"] + "!", second["answer"])
            roles = ("user", "assistant") * 2
            chat = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            file.write(json.dumps({"messages": chat}) + "\n")
    flow(folder, "on_policy")
    records = read_records(folder / "run" / "on_policy", "train")
    assert not any("learned" in record for record in records)
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        pairs = zip(load_task(folder).train, records, strict=True)
        answered = [replace(one, answer=said["messages"][-1]["content"], unlearned=one.spoken) for one, said in pairs]
        rows, _ = _said(context, ON_POLICY.key(context), answered)
        plan = _plan(context, rows)
    assert [bool(row.gaps) for row in plan.train] == [True] * 9 + [False] * 9
    assert all(row.soft is not None and len(row.soft.tail_C) == len(row.completion) for row in plan.train)


@pytest.mark.parametrize("place", [("on_policy: answers", 9), ("on_policy: teacher", 9), ("on_policy", 1)])
def test_a_second_round_that_is_interrupted_ends_with_the_same_adapter(
    place: tuple[str, int], finished: Path, tiny_base: Base, tmp_path: Path
) -> None:
    folder = on_policy(tmp_path / "task", tiny_base, "checkpoint_every = 1")
    edit(folder, "checkpoint_every = 2\n", "")
    whole = on_policy(tmp_path / "whole", tiny_base, "checkpoint_every = 1")
    edit(whole, "checkpoint_every = 2\n", "")
    flow(whole, "on_policy")
    with pytest.raises(KeyboardInterrupt):
        flow(folder, "on_policy", partial(stop, place))
    assert adapter(folder) == adapter(folder, "stages/2")
    flow(folder, "on_policy")
    assert adapter(folder) == adapter(whole) == adapter(finished)


def test_a_lost_adapter_is_made_again_and_a_task_that_wants_it_no_more_gets_the_one_before(
    tiny_base: Base, tmp_path: Path
) -> None:
    folder = on_policy(tmp_path / "task", tiny_base)
    flow(folder, "export")
    after = adapter(folder)
    (folder / "run" / "adapter" / "adapters.safetensors").unlink()
    done = flow(folder, "export")
    assert done["train"]
    assert done["on_policy"]
    assert adapter(folder) == after
    edit(folder, "on_policy = true\n", "")
    done = flow(folder, "export")
    assert (done["train"], done["on_policy"], done["export"]) == (False, True, True)
    assert adapter(folder) == adapter(folder, "stages/2")
    assert not any(flow(folder, "export").values())
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        plain = step_named("export").key(context)
        assert adapter_step(context) is ON_POLICY
    with open_task(folder, folder / "schedule.toml", None) as context:
        assert step_named("export").key(context) == plain
        assert adapter_step(context) is TRAIN


def test_pytorch_does_it_too_with_unrelated_requests(tiny_base: Base, tmp_path: Path) -> None:
    folder = on_policy(tmp_path / "task", tiny_base, "mix = 0.25", "on_policy_steps = 3")
    backend = Backend(name="torch", device="cpu")
    for place in (("on_policy", 2), ("", 0)):
        listeners = Listeners(progress=partial(stop, place))
        with open_task(folder, folder / "schedule.toml", folder / "run", listeners, backend) as context:
            if place[0]:
                with pytest.raises(KeyboardInterrupt):
                    run_steps(context, ON_POLICY)
            else:
                run_steps(context, ON_POLICY)
    lines = [json.loads(line) for line in (folder / "run/on_policy/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert adapter(folder) == adapter(folder, "on_policy") != adapter(folder, "stages/2")


def test_answers_that_do_not_fit_behind_the_whole_prompt_are_left_out(finished: Path, tiny_base: Base) -> None:
    said: list[str] = []
    with open_task(finished, finished / "schedule.toml", finished / "run", Listeners(warn=said.append)) as context:
        answered = list(load_task(finished).train)
        answered[4] = replace(answered[4], answer="word " * 1000)
        file = finished / "run" / "on_policy" / "00000.npz"
        whole = file.read_bytes()
        rows, _ = _said(context, "another key", answered)
        file.write_bytes(whole)
    assert len(rows) == 8
    what = "1 of 9 answers of the student exceed the context of 1024 behind the whole prompt and are left out"
    assert said == [f"on_policy: {what}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("on_policy = true", 'on_policy needs objective = "distill"'),
        (f"{DISTILL}\non_policy_steps = 3", "on_policy_steps needs on_policy = true"),
        (f"{DISTILL}\non_policy = true\non_policy_steps = 0", "on_policy_steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings: str, message: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    edit(folder, "[training]", f"[training]\n{settings}")
    with pytest.raises(InputError, match=message):
        load_task(folder)
