"""A template that is edited after its run: what has changed, which rows touch it, and a run that goes on from there."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.compress.edits import find_changes
from pilocal.errors import InputError, RunError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.run import run_task
from pilocal.flow.start import Start, begin
from pilocal.flow.steps.train import TRAIN, _plan
from pilocal.progress import Progress, silent
from pilocal.run_folder.adapter import read_adapter
from pilocal.run_folder.log import read_log
from pilocal.task import load_task
from pilocal.training.backend import Backend
from tests.forked import pilocal as command
from tests.test_distill import stop
from tests.test_flow import flow, make_task

BEFORE = "Codes.\n- lamp NIZ\n- door VOL\n- fan VER\nBe brief. Use a comma."


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        (BEFORE, []),
        ("Codes.\n\n* door VOL\n* lamp   NIZ\n* fan VER\n\nUse a comma. Be brief.", []),
        (f"# Home\n\n{BEFORE}\n", []),
        (BEFORE.replace("VOL", "MIP"), ["changed: door VOL -> door MIP"]),
        (BEFORE.replace("- door VOL\n", ""), ["removed: door VOL"]),
        (BEFORE.replace("- fan", "- kettle SUK, GOR\n- fan"), ["added: kettle SUK, GOR"]),
        (BEFORE.replace("Be brief.", "Be very brief."), ["changed: Be brief. -> Be very brief."]),
        (BEFORE.replace("Be brief.", "Never ask twice."), ["added: Never ask twice.", "removed: Be brief."]),
        (BEFORE.replace("- fan VER", "- fan VER\n- fan VER"), ["added: fan VER"]),
        (BEFORE.replace("lamp NIZ", "lamp VOL").replace("door VOL", "door NIZ"),
         ["changed: lamp NIZ -> lamp VOL", "changed: door VOL -> door NIZ"]),
        ("", ["removed: Codes.", "removed: lamp NIZ", "removed: door VOL", "removed: fan VER", "removed: Be brief.",
              "removed: Use a comma."]),
    ],
)  # fmt: skip
def test_the_changes_of_a_template_are_its_entries_that_differ(after: str, changes: list[str]) -> None:
    assert [str(change) for change in find_changes(BEFORE, after)] == changes


@pytest.fixture(scope="module")
def first(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("edit") / "task", tiny_base.folder, steps=9)
    flow(folder, "export")
    return folder


@pytest.fixture
def task(first: Path, tmp_path: Path) -> Path:
    """A copy of the task with its run."""
    return shutil.copytree(first, tmp_path / "task")


def edit(
    task: Path, *pairs: tuple[str, str], rows: tuple[tuple[str, str], ...] = (), file: str = "template.md"
) -> None:
    text = (task / file).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (task / file).write_text(text)
    if rows:
        with (task / "train.jsonl").open("a") as opened:
            opened.writelines(json.dumps({"query": query, "answer": answer}) + "\n" for query, answer in rows)


def go_on(
    task: Path, last: str = "train", progress: Progress = silent, **how: Any
) -> tuple[Path | None, dict[str, Any]]:
    """Run an edited task from its first run; return the folder, and for each step its note, or that it was skipped."""
    heard: dict[str, Any] = {}
    said: list[str] = []
    start = Start(task / "run", **{name: how.pop(name) for name in ("steps", "replay") if name in how})
    listeners = Listeners(
        progress=progress, step=lambda step: heard.update({step.name: step.skipped or step.note}), warn=said.append
    )
    found = run_task(task, task / "schedule.toml", task / "next", until=last, start=start, listeners=listeners, **how)
    return found, heard | {"warnings": said}


def relabelled(task: Path) -> None:
    """Blue has another code, there is grey beside the others, and green is gone."""
    edit(
        task,
        ("- blue MIP", "- blue TUK"),
        ("- green KEL", "- grey SOL"),
        rows=(("what is grey?", "SOL"), ("grey", "SOL")),
    )
    edit(task, ('blue?", "answer": "MIP"', 'blue?", "answer": "TUK"'), file="train.jsonl")


def test_the_rows_that_touch_a_change_come_first_and_the_rest_is_replayed(task: Path) -> None:
    relabelled(task)
    _, edited = begin(load_task(task), Start(task / "run"))
    assert [str(change) for change in edited.changes] == [
        "changed: blue MIP -> blue TUK", "added: grey SOL", "removed: green KEL"
    ]  # fmt: skip
    train = load_task(task).train
    touched = {train[number].query for number in edited.touched}
    assert touched == {
        "what is blue?",
        "and blue?",
        "blue",
        "what is green?",
        "and green?",
        "green",
        "what is grey?",
        "grey",
    }
    assert (edited.stale, edited.missed) == (4, [])  # "blue" and the three of green have their former answers
    folder, heard = go_on(task, steps=5)
    assert folder == task / "next"
    note = "changed: blue MIP -> blue TUK; added: grey SOL; removed: green KEL; 8 training rows touch them"
    assert heard["edit"] == note
    assert heard["warnings"] == [
        f"{task}/train.jsonl: 4 rows have a changed entry and the answer that there was before; "
        f"if it is wrong now, `pilocal synth {task}` makes it anew"
    ]
    lines = read_log(folder / "stages" / "2" / "metrics.jsonl")
    assert [line.step for line in lines] == [1, 2, 3, 4, 5]
    assert not (folder / "stages" / "0" / "metrics.jsonl").exists()
    with open_task(task, task / "schedule.toml", folder) as context:
        plan = _plan(context, 2, 0)
        (stream,) = plan.beside
        assert (len(plan.train), len(stream.rows), stream.count, plan.steps) == (8, 3, 3, 5)
    state = json.loads((folder / "run.json").read_text())["start"]
    assert (state["run"], state["steps"], state["replay"]) == (str((task / "run").resolve()), 5, 0.9)
    said = json.loads((folder / "edit" / "edit.json").read_text())
    assert said["changed"] == [["blue MIP", "blue TUK"]]
    assert (said["added"], said["removed"]) == (["grey SOL"], ["green KEL"])


def test_it_begins_at_the_run_s_adapter_with_a_fresh_optimizer(task: Path) -> None:
    relabelled(task)
    edit(task, ("learning_rate = 1e-3", "learning_rate = 1e-12"), file="task.toml")
    folder, _ = go_on(task)
    assert folder
    before, after = (read_adapter(run / "adapter").tensors for run in (task / "run", folder))
    assert all(abs(after[name] - value).max() < 1e-9 for name, value in before.items())
    assert any(abs(value).max() > 1e-4 for name, value in before.items() if name.endswith("lora_b"))
    assert len(read_log(folder / "stages" / "2" / "metrics.jsonl")) == 2  # a quarter of nine


@pytest.mark.parametrize("backend", [None, Backend(name="torch", device="cpu")], ids=["mlx", "torch"])
def test_a_run_that_goes_on_and_is_interrupted_ends_with_the_same_adapter(backend: Backend | None, task: Path) -> None:
    relabelled(task)
    folder, _ = go_on(task, steps=6, backend=backend)
    assert folder
    whole = (folder / "adapter" / "adapters.safetensors").read_bytes()
    assert whole != (task / "run" / "adapter" / "adapters.safetensors").read_bytes()
    shutil.rmtree(folder)
    for at in (1, 5):
        with pytest.raises(KeyboardInterrupt):
            go_on(task, progress=partial(stop, ("train", at)), steps=6, backend=backend)
    shutil.rmtree(task / "run")  # the adapter of before is in the new run
    shutil.copytree(folder, task / "kept")
    with open_task(task, task / "schedule.toml", folder) as context:
        assert context.start
        pilocal.run(task, schedule=task / "schedule.toml", run=task / "kept", until="train")
    assert (task / "kept" / "adapter" / "adapters.safetensors").read_bytes() == whole


def test_such_a_run_is_proved_over_all_of_it_and_opened_again_without_the_former(task: Path) -> None:
    relabelled(task)
    folder, heard = go_on(task, "evaluate", steps=3)
    assert folder
    assert "direct_drop" not in heard
    assert json.loads((folder / "metrics.json").read_text())["n"] == 3
    shutil.rmtree(task / "run")
    assert pilocal.Run(folder).export("peft")["peft"]
    done: dict[str, bool] = {}
    listeners = Listeners(step=lambda step: done.update({step.name: step.skipped}))
    with open_task(task, task / "schedule.toml", folder, listeners) as context:
        assert TRAIN.is_done(context)


@pytest.mark.parametrize("how", ["nothing", "a heading", "another order"])
def test_where_no_entry_has_changed_there_is_one_line_and_nothing_to_do(how: str, task: Path) -> None:
    if how == "a heading":
        edit(task, ("Answer with", "# Codes\n\nAnswer with"))
    if how == "another order":
        edit(task, ("- red ZOR\n- blue MIP\n", "- blue MIP\n- red ZOR\n"))
    done = command("run", task, "--schedule", task / "schedule.toml", "--from", task / "run")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [f"edit: nothing to do; no entry of the template has changed since {task}/run"]
    assert not (task / "run-edited").exists()
    assert pilocal.run(task, schedule=task / "schedule.toml", start=task / "run").folder == (task / "run")


def test_the_command_says_what_has_changed_and_where_the_new_run_is(task: Path) -> None:
    relabelled(task)
    done = command("run", task, "--schedule", task / "schedule.toml", "--from", task / "run", "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "changed: blue MIP -> blue TUK; added: grey SOL; removed: green KEL" in done.stderr
    assert json.loads(done.stdout)["run"] == str(task / "run-edited")
    again = command("run", task, "--schedule", task / "schedule.toml", "--from", task / "run", "--steps", "2")
    assert "is up to date" in again.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 2", "rank = 3", r"the initial adapter's rank is not the task's 3; got 2"),
        ("rank = 2", "rank = 2\nscale = 1.0", r"the initial adapter's scale is not the task's 1.0; got 2.0"),
        ("rank = 2", "rank = 2\nlayers = 1", r"the run's layers are not the task's 1; got 2; set \[lora\] layers"),
        ("rank = 2", 'rank = 2\nlinears = ["self_attn.q_proj"]', r"the run's linears are not the task's \['self_attn"),
        ("rank = 2", 'rank = 2\nkind = "dora"', r"the initial adapter's kind is not the task's 'dora'"),
        ('model = "', 'model = "starter" #', r"the initial adapter was made for another base"),
        ("batch_size = 4", "batch_size = 1", r"\[training\] batch_size: a step has no room for a row to replay; got 1"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line_before_any_work(task: Path, old: str, new: str, message: str) -> None:
    relabelled(task)
    edit(task, (old, new), ("accept_loss = true", 'accept_loss = true\nquant = "q8_0"'), file="task.toml")
    with pytest.raises(InputError, match=message) as caught:
        go_on(task)
    assert "\n" not in str(caught.value)
    assert not (task / "next" / "templates").exists()


def test_a_run_that_cannot_be_gone_on_from_says_so(task: Path) -> None:
    relabelled(task)
    with pytest.raises(RunError, match="nothing was exported here yet"):
        run_task(task, None, task / "next", until="train", start=Start(task / "none"))
    with pytest.raises(InputError, match="a run cannot go on from itself"):
        run_task(task, None, task / "run", until="train", start=Start(task / "run"))
    backend = Backend(name="torch", device="cpu", initial_adapter=task / "run" / "adapter")
    with pytest.raises(InputError, match="two adapters to begin with"):
        run_task(task, None, task / "next", until="train", start=Start(task / "run"), backend=backend)
    state = json.loads((task / "run" / "run.json").read_text())
    state["steps"]["train"]["finished"] = "2999-01-01T00:00:00+00:00"
    (task / "run" / "run.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match="trained again since its last export"):
        go_on(task)
    for options in (("--steps", "5"), ("--replay", "0.2")):
        done = command("run", task, *options)
        assert done.returncode == 2
        assert f"{options[0]} belongs to --from" in done.stderr
    for options, what in (
        (("--steps", "0"), "must be at least 1"),
        (("--replay", "1"), "must be at least 0 and below"),
    ):
        done = command("run", task, "--from", task / "run", *options)
        assert done.returncode == 1
        assert what in done.stderr


def test_rows_are_needed_that_touch_the_change(task: Path) -> None:
    edit(task, ("- blue MIP", "- blue MIP\n- mauve TUK"))
    with pytest.raises(
        InputError, match=r"no training row touches what has changed; got '1 entries, such as added: mauve"
    ):
        go_on(task)
    edit(task, rows=(("mauve", "TUK"),))
    _, edited = begin(load_task(task), Start(task / "run"))
    assert (len(edited.touched), edited.missed) == (1, [])
    edit(task, ("- mauve", "- black SUK\n- mauve"))
    assert go_on(task)[1]["warnings"] == [
        f"{task}/train.jsonl: no query names a changed entry, 'black SUK'; `pilocal synth {task}` makes some"
    ]


def test_of_a_rule_the_rows_with_other_answers_and_the_new_ones_count(task: Path) -> None:
    edit(task, ("Please be kind.", "Please be very loud."), rows=(("colour of the sky?", "MIP!"),))
    edit(task, ('"and red?", "answer": "ZOR"', '"and red?", "answer": "ZOR!"'), file="train.jsonl")
    _, edited = begin(load_task(task), Start(task / "run"))
    train = load_task(task).train
    assert {train[number].query for number in edited.touched} == {"and red?", "colour of the sky?"}


def test_an_edit_with_unrelated_requests_has_rows_of_all_three_kinds(task: Path) -> None:
    relabelled(task)
    edit(task, ("batch_size = 4", "batch_size = 8\nmix = 0.25"), file="task.toml")
    folder, _ = go_on(task, steps=2, replay=0.5)
    assert folder
    with open_task(task, task / "schedule.toml", folder) as context:
        plan = _plan(context, 2, 0)
    assert [stream.count for stream in plan.beside] == [3, 2]
    assert [all(row.is_said for row in stream.rows) for stream in plan.beside] == [False, True]


def test_an_edit_writes_the_new_template_and_replays_what_has_not_changed(task: Path) -> None:
    relabelled(task)
    more = 'batch_size = 8\nmix = 0.25\nobjective = "genpi"\nrestate = 1'
    edit(task, ("batch_size = 4", more), file="task.toml")
    folder, _ = go_on(task, steps=2, replay=0.5)
    assert folder
    with open_task(task, task / "schedule.toml", folder) as context:
        plan, tokenizer = _plan(context, 2, 0), context.base.tokenizer
        restated = context.rows(2, "restated")
        order = plan.order(context.task.training)
    assert [stream.count for stream in plan.beside] == [3, 2]
    assert list(plan.train[8:]) == restated != []
    assert all("grey SOL" in tokenizer.decode(row.completion) for row in plan.generation)
    batch = order.rows_at(0)
    assert {row.tokens for row in batch} & {row.tokens for row in plan.generation}
    assert sum(row.is_said for row in batch) == 2


def test_the_rows_of_a_conversation_follow_the_example_that_they_are_of(task: Path) -> None:
    relabelled(task)
    turns = (("user", "what is blue?"), ("assistant", "TUK"), ("user", "and red?"), ("assistant", "ZOR"))
    messages = [{"role": role, "content": text} for role, text in turns]
    with (task / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "talk", "messages": messages}) + "\n")
    train = load_task(task).train
    _, edited = begin(load_task(task), Start(task / "run"))
    assert "talk" in {train[number].id for number in edited.touched}  # by the first of its queries
    folder, _ = go_on(task, steps=1)
    assert folder
    with open_task(task, task / "schedule.toml", folder) as context:
        plan, each = _plan(context, 2, 0), context.rows_of_each(2, "train")
    owned = {row.tokens for number in edited.touched for row in each[number]}
    assert {row.tokens for row in plan.train} == owned
    assert {row.tokens for stream in plan.beside for row in stream.rows} == {
        row.tokens for number, rows in enumerate(each) if number not in edited.touched for row in rows
    }
