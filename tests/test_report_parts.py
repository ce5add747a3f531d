"""The report of runs that are not done, damaged or compared, and the commands on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

import pilocal
from pilocal.cli import cli
from pilocal.errors import InputError, RunError
from pilocal.flow.listeners import Listeners
from pilocal.flow.run import run_task
from pilocal.report.record import Record
from pilocal.report.schedule import schedule_text
from pilocal.report.write import make_page
from pilocal.task.schedule import DECAYS, FADES, DecaySchedule, Schedule, load_schedule
from tests.reports import change, commands_of, compare_json, copy_of, missing_of, page_of
from tests.test_cli import pilocal as command
from tests.test_old_runs import RUNS


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    return copy_of(reported, tmp_path)


@pytest.mark.parametrize(
    ("gone", "said", "verb"),
    [
        ("metrics.json", "Nothing has been evaluated here yet.", "run"),
        ("stages", "Nothing has been trained here yet.", "train"),
        ("export", "Nothing has been exported here yet.", "export"),
        ("answers.jsonl", "No arm has answered yet.", "run"),
        ("census.json", "There is no census", "check"),
        ("bench.json", "Nobody has timed it with several clients yet.", "bench"),
        ("compare", "There is no comparison of this task yet.", "compare"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(run: Path, gone: str, said: str, verb: str) -> None:
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (found,) = [each for each in missing_of(page_of(run)) if said in each]
    assert f"pilocal {verb} " in found


def test_the_commands_on_a_page_are_commands(run: Path) -> None:
    """Each is parsed as the command line would, for a run whose folder has a space in its name."""
    moved = run.rename(run.parent / "a run")
    page = page_of(moved)
    lines = commands_of(page)
    assert {line[1] for line in lines} >= {"run", "report", "check", "compare", "bench"}
    context = click.Context(cli, info_name="pilocal", **cli.context_settings)
    for line in lines:
        made = cli.get_command(context, line[1])
        assert made is not None
        parsed = made.make_context(line[1], line[2:], parent=context)
        named = [value for key in ("run", "run_folder") if (value := parsed.params.get(key))]
        assert named in ([moved.resolve()], []), line
    again = [line for line in lines if line[1] == "run"][-1]
    assert again[again.index("--schedule") + 1] == "schedule.toml"


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_run_that_was_stopped_in_its_training_has_a_report(tmp_path: Path, backend: str) -> None:
    shutil.copytree(RUNS / "task", tmp_path / "task")
    run = shutil.copytree(RUNS / backend, tmp_path / "task" / "run")
    page = page_of(run)
    assert "This run has not been evaluated yet" in page.text
    assert {"stage 0", "stage 1"} <= set(page.texts["th"])
    assert len(page.all("svg")) == 1
    assert len(missing_of(page)) >= 6
    again = [line for line in commands_of(page) if line[1] == "run"][-1]
    assert ("--backend" in again) == (backend == "torch")


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    done = command("report", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{tmp_path}: no run has begun here")
    assert not list(tmp_path.iterdir())


def schedules() -> Iterator[DecaySchedule]:
    for decay in DECAYS:
        yield DecaySchedule(decay=decay)
        yield DecaySchedule(decay=decay, stages=3, shots=2, final=0.86, rate=2.0, margin=0.1, least=0.3)
        yield DecaySchedule(decay=decay, shots=4, until_tau=0.1, until_shots=1)
    for fade in FADES:
        yield DecaySchedule(decay="linear", fade=fade, shots=3)
        yield DecaySchedule(decay="adaptive", fade=fade, shots=3, stages=5)


@pytest.mark.parametrize("made", list(schedules()), ids=str)
def test_the_schedule_on_a_page_makes_the_run_again(made: DecaySchedule, tmp_path: Path) -> None:
    schedule = made.schedule()
    stages = [stage.facts() for stage in schedule.stages]
    state = {"schedule": stages, "adaptive": asdict(schedule.adaptive) if schedule.adaptive else None}
    text = schedule_text(json.loads(json.dumps(state)))
    assert bool(text) == (schedule != DecaySchedule(decay="linear").schedule())
    (tmp_path / "schedule.toml").write_text(text or 'decay = "linear"\n')
    found: Schedule = load_schedule(tmp_path / "schedule.toml")
    assert [stage.facts() for stage in found.stages] == stages
    assert found.adaptive == schedule.adaptive


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"arms": 3, "prompts": 1, "entries": 7}', "\x00", ""])
@pytest.mark.parametrize(
    "name", ["metrics.json", "export/artefacts.json", "census.json", "bench.json", "answers.jsonl"]
)
def test_a_damaged_file_is_one_line_and_the_old_page_stays(run: Path, name: str, text: str) -> None:
    before = (run / "report.html").read_bytes()
    (run / name).write_text(text)
    if (name, text) == ("answers.jsonl", ""):  # no answer is no damage
        assert "No arm has answered yet." in page_of(run).text
        return
    with pytest.raises(RunError, match="damaged") as raised:
        pilocal.Run(run).report()
    assert len(str(raised.value).splitlines()) == 1
    assert name in str(raised.value)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize("state", [{"task": 3}, {"task": {}}, {"task": None, "schedule": 1}, {"schedule": [3]}])
def test_a_damaged_run_json_is_one_line(run: Path, state: dict[str, Any]) -> None:
    change(run / "run.json", lambda values: values.update(state))
    done = command("report", run)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{run / 'run.json'}: damaged")
    assert len(done.stderr.splitlines()) == 1


def test_a_comparison_beside_the_task_is_on_the_page(run: Path) -> None:
    from pilocal.comparison.picture import write_strengths

    before, folder = len(page_of(run).all("svg")), run.parent / "compare"
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(table := compare_json(run)))
    write_strengths(table, folder / "strength.svg")
    page = page_of(run)
    assert "direct: the query alone" in page.all("svg")[0]["aria-label"]
    assert "Strength" in page.texts["h2"]
    assert len(page.all("svg")) == before + 1
    assert {"12", "never", "0.250 to 0.750"} <= set(page.texts["td"])
    other = folder.rename(run.parent / "other")
    assert "Strength" not in page_of(run).texts["h2"]
    page = page_of(run, comparison=other)
    assert "Strength" in page.texts["h2"]
    assert f"pilocal report {run} --compare {other}" in page.texts["code"]
    (other / "compare.json").write_text(json.dumps(compare_json(run, n=999, metric="bleu")))
    with pytest.raises(InputError, match=r"a comparison of something else; got .*bleu.*999"):
        pilocal.Run(run).report(comparison=other)
    with pytest.raises(InputError, match=r"there is no compare.json"):
        pilocal.Run(run).report(comparison=run.parent / "none")


def test_the_folder_of_a_comparison_has_a_report_of_its_own(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compare"
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(compare_json(run)))
    state = {"steps": {}, "task": {"name": "tiny", "folder": str(run.parent), "beside": "task"}, "versions": {}}
    (folder / "run.json").write_text(json.dumps(state))
    page = page_of(folder)
    assert page.texts["h2"][:2] == ["Score over prompt tokens", "Every way side by side"]
    assert missing_of(page) == []
    assert [line[1] for line in commands_of(page)] == ["compare", "report"]


def test_without_matplotlib_the_figures_are_there_in_words(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "entries.svg").unlink(missing_ok=True)
    monkeypatch.setattr("pilocal.chart.is_installed", lambda name: name != "matplotlib")
    page = page_of(run)
    assert page.all("svg") == []
    assert len([said for said in missing_of(page) if "pip install 'pilocal[plot]'" in said]) == 2
    assert len(page.all("table")) > 5


def test_a_page_that_cannot_be_made_does_not_spoil_the_run(run: Path) -> None:
    task, warned = run.parent, list[str]()
    (task / "compare").mkdir()
    (task / "compare" / "compare.json").write_text("{")
    (run / "report.html").unlink()
    listeners = Listeners(warn=warned.append)
    run_task(task, task / "schedule.toml", run, until="evaluate", listeners=listeners)
    assert [said for said in warned if said.startswith(f"no report: {task / 'compare' / 'compare.json'}: damaged")]
    assert not (run / "report.html").exists()


def test_the_command_prints_where_the_page_is(run: Path) -> None:
    done = command("report", run, "--price", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    path = run / "report.html"
    assert json.loads(done.stdout) == {"report": str(path), "bytes": path.stat().st_size}
    assert "Money saved" in path.read_text()
    assert command("report", run, "--price", "-1").returncode == 2


def test_the_page_is_the_same_wherever_it_is_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_page(Record(run))
    monkeypatch.chdir(run.parent)
    assert make_page(Record(Path("run"))) == first
