"""What is told of a run from its folder alone, whatever becomes of the folder meanwhile."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import RunError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.run_folder.live import INTERRUPTED, Live, LiveFile, read_live
from pilocal.run_folder.log import Decision, StepLine
from pilocal.watch.state import State
from pilocal.watch.tail import Tail
from pilocal.watch.time_left import SAME_COST, PlannedStage, steps_left, time_left
from pilocal.watch.watcher import Watcher
from pilocal.watch.words import ASCII_LEVELS, duration, sparkline
from tests.test_flow import make_task
from tests.watched import ALL, STEPS, make_watched, step_line, write_lines, write_live


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_watched(tmp_path / "run")


def look(run: Path) -> State:
    state = Watcher(run).look()
    json.dumps(asdict(state), allow_nan=False)  # what /state sends
    return state


def test_a_training_is_told_by_stage_and_step(run: Path) -> None:
    state = look(run)
    assert (state.task, state.model, state.status, state.faults) == ("colours", "starter", "running", ())
    assert (state.position, state.step, state.total, state.training) == ("stage 2 of 3", 12, 30, "train")
    assert [(stage.taken, stage.planned, stage.tau, stage.shots) for stage in state.stages] == [
        (10, 10, 1.0, 4),
        (2, 10, 0.5, 2),
        (0, 10, 0.0, 0),
    ]
    assert state.loss == 2 - 12 / 100
    assert state.tokens_per_second == 500  # 1,000 tokens in 2 s
    assert state.peak_memory == 3 << 30
    assert [step.state for step in state.steps] == ["done", "done", "now", "to come", "to come"]
    assert state.then == ("export", "evaluate")
    assert [line.step for line in state.lines] == list(range(5, 13))
    assert [line.stage for line in state.lines] == [0] * 6 + [1] * 2
    assert state.sparkline.count("│") == 1


def test_what_is_left_is_measured_in_this_stage_and_reckoned_by_tokens_in_the_next(run: Path) -> None:
    state = look(run)
    assert state.stage_seconds_left == pytest.approx(8 * 2)
    assert state.seconds_left == pytest.approx(8 * 2 + 10 * 2 * 100 / 500)
    assert state.guess == ""


def test_validations_count_and_a_stage_s_first_step_does_not_once_there_are_others() -> None:
    lines = [step_line(1, seconds=50.0), step_line(2, seconds=1.0), step_line(3, seconds=3.0)]
    lines += [step_line(4, seconds=2.0, valid_loss=1.0, valid_seconds=8.0)]
    left = time_left([PlannedStage(10, 100.0, lines)])
    assert left.stage == left.training == pytest.approx(6 * (2 + 8 / 4))
    compiled = time_left([PlannedStage(10, 100.0, lines[:1])])
    assert compiled.training == pytest.approx(9 * 50)


def test_where_a_stage_s_tokens_are_not_known_the_time_is_called_a_guess() -> None:
    left = time_left([PlannedStage(10, None, [step_line(5)]), PlannedStage(10, None, [])])
    assert (left.stage, left.training, left.guess) == (10, 30, SAME_COST)


@pytest.mark.parametrize("stages", [[], [(10, [])], [(None, [3])], [(10, [10])], [(10, [25])], [(5, [5]), (5, [10])]])
def test_no_time_is_told_where_nothing_is_measured_or_nothing_is_left(stages: list[Any]) -> None:
    left = time_left([PlannedStage(steps, 100.0, [step_line(step) for step in taken]) for steps, taken in stages])
    assert (left.stage, left.training) == (None, None)


def test_what_a_stage_that_ended_early_leaves_goes_to_the_next() -> None:
    moved = Decision(next_valid_loss=1.0, margin=0.1, steps_left=6, moves_on=True)
    first = PlannedStage(10, 100.0, [step_line(4, decision=moved)])
    assert steps_left([first, PlannedStage(10, 50.0, [])]) == [0, 16]
    assert steps_left([first, PlannedStage(10, 50.0, [step_line(5)])]) == [0, 15]
    stays = PlannedStage(10, 100.0, [step_line(4, decision=replace(moved, moves_on=False))])
    assert steps_left([stays, PlannedStage(10, 50.0, [])]) == [6, 10]
    assert time_left([first, PlannedStage(10, 50.0, [])]).stage == pytest.approx(16 * 2 / 2)


def test_between_two_stages_the_next_one_is_shown(tmp_path: Path) -> None:
    state = look(make_watched(tmp_path / "run", steps=STEPS, early=True))
    assert state.position == "stage 2 of 3"
    assert state.guess == "a stage may end early"


def test_a_run_of_a_former_version_has_no_plan_and_no_time(tmp_path: Path) -> None:
    state = look(make_watched(tmp_path / "run", plan=False))
    assert (state.position, state.step, state.total, state.seconds_left) == ("stage 2 of 3", 12, None, None)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "1 s"), (0.01, "1 s"), (90, "90 s"), (91, "2 min"), (150, "3 min"), (86_400, "24 h 0 min")],
)
def test_a_time_is_never_said_to_be_nothing(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("values", [[], [[]], [[math.nan]], [[1.0, math.inf, 1.0]], [[1e308, -1e308]], [[3.0]] * 9])
@pytest.mark.parametrize("width", [1, 8])
def test_a_sparkline_is_drawn_of_any_values(values: list[list[float]], width: int) -> None:
    drawn = sparkline(values, width, ASCII_LEVELS, "|")
    assert set(drawn) <= {*ASCII_LEVELS, "|"}
    assert len(drawn) <= max(width, 2 * len(values) - 1)


def test_half_a_last_line_waits_for_its_rest(run: Path) -> None:
    path = run / "stages" / "1" / "metrics.jsonl"
    watcher, text = Watcher(run), step_line(13).as_json() + "\n"
    for end in (1, len(text) // 2, len(text) - 1):
        path.write_bytes(path.read_bytes().rpartition(b"}\n")[0] + b"}\n" + text[:end].encode())
        state = watcher.look()
        assert (state.step, state.faults) == (12, ())
    with path.open("a") as file:
        file.write("\n")
    assert watcher.look().step == 13


DAMAGE = ["{", "7", "null", "[]", '{"step": 1}', "\x00\x01", step_line(13).as_json().replace("2.0", "NaN")]
DAMAGE += [step_line(13, loss="x").as_json(), step_line(13, seconds=-1.0).as_json(), step_line(13, loss=None).as_json()]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_left_out_and_told(damage: str, run: Path) -> None:
    path = run / "stages" / "1" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(f"{damage}\n{step_line(14).as_json()}\n")
    state = look(run)
    assert state.step == 14
    assert state.faults == (f"{path}: a damaged line is left out",)


def test_bytes_that_are_no_text_are_a_damaged_line(run: Path) -> None:
    path = run / "stages" / "1" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    assert look(run).faults == (f"{path}: a damaged line is left out",)


@pytest.mark.parametrize("steps", [[1], [1, 2, 3, 4, 5], [1, 2, 9]])
def test_a_file_that_was_written_again_is_read_again(steps: list[int], run: Path) -> None:
    """A resumed training drops the lines after its checkpoint; the file may then be shorter or longer than before."""
    path = write_lines(run, 1, [step_line(11), step_line(12), step_line(13)])
    tail = Tail(path)
    tail.look()
    write_lines(run, 1, [step_line(step, loss=7.0) for step in steps])
    tail.look()
    assert [line.step for line in tail.lines] == steps
    path.unlink()
    tail.look()
    assert tail.lines == []


def test_a_folder_that_vanishes_keeps_what_was_seen_and_is_seen_again(run: Path) -> None:
    watcher = Watcher(run)
    before = watcher.look()
    run.rename(run.parent / "away")
    gone = watcher.look()
    assert gone.status == "gone"
    assert str(run) in gone.said
    assert (gone.step, gone.stages, gone.lines) == (before.step, before.stages, before.lines)
    (run.parent / "away").rename(run)
    assert watcher.look().status == "running"


def test_half_a_run_json_or_live_json_is_told_and_passes(run: Path) -> None:
    watcher = Watcher(run)
    for name in ("run.json", "live.json"):
        whole = (run / name).read_text()
        (run / name).write_text(whole[: len(whole) // 2])
        state = watcher.look()
        assert (state.step, state.task, len(state.faults)) == (12, "colours", 1)
        assert str(run / name) in state.faults[0]
        (run / name).write_text(whole)
        assert watcher.look().faults == ()


WRONG: list[Callable[[dict[str, Any]], object]] = [
    lambda state: state.update(plan=7),
    lambda state: state.update(plan={"train": {}}),
    lambda state: state["plan"]["train"]["stages"][0].update(steps=-3),
    lambda state: state["plan"]["train"]["stages"][0].update(tokens=math.nan),
    lambda state: state["plan"]["train"]["stages"][0].update(folder="../../elsewhere"),
    lambda state: state["plan"]["train"]["stages"][0].update(folder="/etc"),
    lambda state: state.update(schedule=[{}]),
    lambda state: state.update(task="x"),
    lambda state: state.update(steps={"train": {}}),
    lambda state: state.update(steps=[]),
]


@pytest.mark.parametrize("spoil", WRONG)
def test_a_run_json_of_another_shape_is_one_line(spoil: Callable[[dict[str, Any]], object], run: Path) -> None:
    state = json.loads((run / "run.json").read_text())
    spoil(state)
    (run / "run.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match=r"damaged run\.json") as caught:
        Watcher(run)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_is_no_run_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none", tmp_path / "file", run / "stages"):
        with pytest.raises(RunError, match="no run has begun here; point at the folder of --run"):
            Watcher(path)
    with pytest.raises(RunError, match=f"no run has begun here; `pilocal watch {run}`"):
        Watcher(tmp_path)


def test_how_a_run_ended_is_told(run: Path) -> None:
    write_live(run, ended=INTERRUPTED)
    assert look(run).said.startswith("stopped: interrupted; ")
    write_live(run, ended="stage 1, step 3: the loss is not a number any more")
    assert look(run).status == "stopped"
    (run / "live.json").unlink()
    assert look(run).status == "stopped"
    state = json.loads((run / "run.json").read_text())
    state["steps"] |= {name: {"key": "k", "seconds": 1.0, "files": {}} for name in ALL}
    (run / "run.json").write_text(json.dumps(state))
    done = look(run)
    assert (done.status, done.trains, done.seconds_left, done.then) == ("done", False, None, ())


def test_a_run_without_a_sign_for_long_may_be_gone(run: Path) -> None:
    old = time.time() - 3600
    os.utime(run / "live.json", (old, old))
    watcher = Watcher(run)
    assert watcher.look().status == "silent"
    write_live(run, seconds=50.0)  # on a machine with another clock
    os.utime(run / "live.json", (old, old))
    assert watcher.look().status == "running"


def test_a_run_of_a_former_version_goes_on_while_its_lines_grow(run: Path) -> None:
    (run / "live.json").unlink()
    watcher = Watcher(run)
    assert watcher.look().status == "stopped"
    write_lines(run, 1, [step_line(step) for step in (11, 12, 13)])
    assert watcher.look().status == "running"


def test_work_that_is_no_training_has_its_own_time(run: Path) -> None:
    write_live(run, step="evaluate", what="base: full prompt", done=5, total=20, what_seconds=10.0)
    state = look(run)
    assert state.work is not None
    assert (state.work.what, state.trains) == ("base: full prompt", False)
    assert state.work.seconds_left is not None
    assert 29 < state.work.seconds_left < 60
    write_live(run, step="evaluate", what="base: full prompt", done=0, total=20)
    unmeasured = look(run).work
    assert unmeasured is not None
    assert unmeasured.seconds_left is None


def test_watching_writes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    folders = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*")) if path.is_dir()}
    watcher = Watcher(run)
    watcher.look()
    watcher.look()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*")) if path.is_dir()} == folders


def test_live_json_says_what_goes_on_and_why_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    with pytest.raises(RuntimeError), LiveFile(path, ["train"]) as file:
        assert read_live(path) == Live(steps=("train",))
        file.begin("train")
        file.report("train", 3, 10, "loss 1")
        raise RuntimeError("two\nlines")
    said = read_live(path)
    assert said is not None
    assert (said.step, said.what, said.done, said.total, said.note) == ("train", "train", 3, 10, "loss 1")
    assert said.ended == "two lines"
    with pytest.raises(KeyboardInterrupt), LiveFile(path, ["train"]) as file:
        file.report("x", 10, 10)
        raise KeyboardInterrupt
    said = read_live(path)
    assert said == Live(steps=("train",), ended=INTERRUPTED)
    with LiveFile(path, ["train"]):
        pass
    assert not path.exists()


def test_a_folder_that_takes_no_live_json_ends_no_run(tmp_path: Path) -> None:
    with LiveFile(tmp_path / "none" / "live.json", ["train"]) as file:
        file.begin("train")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "{", "7", "{}", '{"steps": ["train"], "done": "x"}', '{"steps": 3}', "\xff"])
def test_a_damaged_live_json_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "live.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"live.json: damaged.*; delete it"):
        read_live(tmp_path / "live.json")


def test_a_real_training_can_be_watched_while_it_goes_on(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    watcher: list[Watcher] = []
    seen: list[State] = []

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done < total:
            watcher[:] = watcher or [Watcher(folder / "run")]
            seen.append(watcher[0].look())

    begun: list[str] = []
    listeners = Listeners(progress=progress, begin=begun.append)
    with open_task(folder, folder / "schedule.toml", folder / "run", listeners) as context:
        run_steps(context, step_named("train"))
    assert begun == ["compress", "index", "stages", "train"]
    assert [state.step for state in seen] == [1, 2, 3, 4, 5, 6]
    assert [state.stage for state in seen] == [0, 0, 1, 1, 2, 2]  # of 3, 2 and 2 steps
    assert all(state.total == 7 and state.seconds_left and state.status == "running" for state in seen)
    assert seen[2].stages[0].valid_loss is not None
    after = watcher[0].look()
    assert (after.step, after.status, after.trains, after.faults) == (7, "stopped", False, ())
    assert not (folder / "run" / "live.json").exists()
    plan = json.loads((folder / "run" / "run.json").read_text())["plan"]["train"]["stages"]
    assert [stage["steps"] for stage in plan] == [3, 2, 2]
    assert plan[0]["tokens"] > plan[1]["tokens"] > plan[2]["tokens"]
    computed = [StepLine.from_json(line) for line in (folder / "run/stages/0/metrics.jsonl").read_text().splitlines()]
    assert plan[0]["tokens"] == pytest.approx(computed[0].computed_tokens, rel=1)


def test_a_training_that_begins_anew_drops_the_lines_of_the_one_before(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    left: list[set[str]] = []

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == 1:
            left.append({path.parent.name for path in (folder / "run").rglob("metrics.jsonl")})

    file = folder / "task.toml"
    for rate in ("1e-3", "2e-3"):
        file.write_text(file.read_text().replace("learning_rate = 1e-3", f"learning_rate = {rate}"))
        with open_task(folder, folder / "schedule.toml", folder / "run", Listeners(progress=progress)) as context:
            run_steps(context, step_named("train"))
    assert left == [{"0"}, {"0"}]
