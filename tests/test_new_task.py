"""The settings that `pilocal init` chooses, and the schedule that a task names itself."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pilocal.base.base import Base
from pilocal.base.recipe import FINAL, RECIPES, SHOTS, recipe_for
from pilocal.cli import cli
from pilocal.errors import InputError
from pilocal.flow.opening import open_task
from pilocal.flow.plan import check
from pilocal.logs.settings import Settings
from pilocal.report.schedule import schedule_text
from pilocal.task import Lora, Training, load_task
from pilocal.task.schedule import DEFAULT, load_schedule
from tests.made_logs import rules, said, user
from tests.test_flow import make_task
from tests.test_logs_folder import answered, init, made, rng, write

README = Path(__file__).parent.parent / "pilocal" / "base" / "README.md"


def settings(model: str, base: Base | None = None, rows: int = 800, **more: Any) -> Settings:
    return Settings(name="x", model=model, base=base, metric="bleu", rows=rows, shots=2, **more)


def table_of(text: str, name: str) -> dict[str, Any]:
    return dict(tomllib.loads(text)[name])


def test_the_readme_shows_the_table() -> None:
    shown = re.findall(r"^\| (\w+) \| (\S+) \| (\d+) \| (\d+) to (\d+) \| (.*) \|$", README.read_text(), re.MULTILINE)
    sizes = {"20M": 2e7, "300M": 3e8, "2B": 2e9, "more": float("inf")}
    read = [
        (sizes[size], float(rate), float(passes), int(low), int(high), known)
        for size, rate, passes, low, high, known in shown
    ]
    assert read == [
        (each.up_to, each.learning_rate, each.passes, each.fewest, each.most, each.known) for each in RECIPES
    ]
    assert Lora().rank == 16
    assert RECIPES[-1].learning_rate == Training().learning_rate


@pytest.mark.parametrize(
    ("model", "rate", "said"),
    [
        ("mlx-community/Meta-Llama-3.1-8B-Instruct-4bit", 1e-4, "a base of 8B parameters and 800 training rows"),
        ("Qwen/Qwen2.5-0.5B-Instruct", 2e-4, "a base of 500M parameters and 800 training rows"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 4e-4, "a base of 135M parameters and 800 training rows"),
        ("owner/name-v0.3", 1e-4, "a base of unknown size and 800 training rows"),
    ],
)
def test_a_base_that_is_not_here_is_known_by_its_name(model: str, rate: float, said: str) -> None:
    text = settings(model).task_toml
    training = table_of(text, "training")
    assert (training["learning_rate"], training["batch_size"], training["direct_drop"]) == (rate, 8, False)
    assert training["steps"] == recipe_for(settings(model).size).steps(800)
    (line,) = [line for line in text.splitlines() if line.startswith("# Made for")]
    assert said in line
    assert f"{training['steps'] * 8 / 800:.1f} times" in line


def test_a_base_that_is_here_is_measured(starter: Base) -> None:
    here = settings("starter", starter, longest=100)
    training = table_of(here.task_toml, "training")
    assert training["learning_rate"] == 2e-3
    assert "2M parameters" in here.task_toml
    assert table_of(here.task_toml, "generation") == {"max_tokens": 128}
    assert "generation" not in tomllib.loads(settings("starter", starter).task_toml)


def test_more_rows_take_more_steps_within_bounds() -> None:
    for recipe in RECIPES:
        steps = [recipe.steps(rows) for rows in (0, 10, 1000, 10_000, 10**6)]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (recipe.fewest, recipe.most)
        assert not recipe.is_far(recipe.learning_rate)
        assert recipe.is_far(recipe.learning_rate * 5)
        assert recipe.is_far(recipe.learning_rate / 5)


def test_the_longest_answer_of_the_logs_fits(tmp_path: Path, starter: Base) -> None:
    draw = rng()
    text = rules(draw)
    long = " ".join(f"word{number}" for number in range(150))
    rows = [answered(text, f"query {number} of {said(draw)['content']}", f"answer {number}") for number in range(40)]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", [*rows, answered(text, "a long one", long)]))
    tokens = len(starter.tokenizer.encode(long, add_special_tokens=False))
    assert tokens > 256
    assert tokens < load_task(tmp_path / "task").generation.max_tokens < 1.5 * tokens


def test_what_init_writes_names_its_schedule(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    (tmp_path / "prompt.md").write_text(text)
    rows = [[{"role": "system", "content": text}, user(f"{n} {draw.random()}"), said(draw)] for n in range(30)]
    made(tmp_path / "logs", write(tmp_path / "log.jsonl", rows))
    assert init(tmp_path / "plain").exception is None
    assert init(tmp_path / "prompt", "--from-prompt", tmp_path / "prompt.md", "--model", "starter").exception is None
    for name in ("logs", "plain", "prompt"):
        task = load_task(tmp_path / name, data=name != "prompt")
        assert task.files["schedule"] == tmp_path / name / "schedule.toml"
        stages = load_schedule(task.files["schedule"]).stages
        assert (len(stages), stages[0].shots, stages[-1].share) == (4, SHOTS, FINAL)
        assert not task.training.direct_drop
        assert task.training.learning_rate == 2e-3


def test_few_rows_have_fewer_shots(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw)
    rows = [answered(text, f"{number} {draw.random()}", "yes") for number in range(4)]
    result = made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    task = load_task(tmp_path / "task")
    assert load_schedule(task.files["schedule"]).stages[0].shots == len(task.train) - 1 == 1
    assert "1 shot at first" in result.output
    assert "2 training rows are too few for more" in task.files["schedule"].read_text()
    assert check(task.folder, probe=False).stages[0].shots == 1


def named(folder: Path, base: Base, schedule: str) -> Path:
    """Return a task that names a schedule file, which is not there yet."""
    task = make_task(folder, base.folder)
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(f'schedule = "{schedule}"\n{text}')
    return task


def test_the_task_s_own_schedule_is_taken_unless_another_is_named(tmp_path: Path, tiny_base: Base) -> None:
    task = named(tmp_path / "task", tiny_base, "own.toml")
    with pytest.raises(InputError, match=r"own\.toml: no such file"), open_task(task, None, None):
        pass
    (task / "own.toml").write_text('decay = "linear"\nstages = 2\nshots = 1\n')
    (task / "other.toml").write_text('decay = "direct"\nshots = 0\n')
    for path, expected in ((None, "own.toml"), (task / "other.toml", "other.toml")):
        with open_task(task, path, None) as context:
            assert context.schedule == load_schedule(task / expected)
    (task / "task.toml").write_text((task / "task.toml").read_text().replace('"own.toml"', '" "'))
    with pytest.raises(InputError, match=r"task\.toml:1: schedule must not be empty"):
        load_task(task)


def test_a_comparison_has_the_shape_of_the_task_s_own_schedule(tmp_path: Path, tiny_base: Base) -> None:
    task = named(tmp_path / "task", tiny_base, "own.toml")
    (task / "own.toml").write_text("[[stage]]\ntau = 0.0\nshots = 0\nshare = 1.0\n")
    result = CliRunner().invoke(cli, ["compare", str(task)])
    assert "own.toml:1: this must name a decay" in str(result.exception)


def test_the_report_writes_out_the_default_where_the_task_has_another() -> None:
    state: dict[str, Any] = {"schedule": [stage.facts() for stage in DEFAULT.stages], "adaptive": None}
    assert schedule_text(state) == ""
    assert schedule_text(state | {"inputs": {"schedule": "0" * 64}}).count("[[stage]]") == 4


def test_check_says_where_the_learning_rate_is_far(tmp_path: Path, tiny_base: Base) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    text = (task / "task.toml").read_text()
    found = {}
    for rate in (1e-4, 2e-3, 1e-2):
        (task / "task.toml").write_text(text.replace("learning_rate = 1e-3", f"learning_rate = {rate}"))
        plan = check(task, schedule=task / "schedule.toml", probe=False)
        found[rate] = [hint for hint in plan.hints if "learning_rate" in hint]
    assert found[2e-3] == []
    assert found[1e-4] == [
        "[training] learning_rate = 0.0001 is low: bases of this size take 0.002 (measured with the starter)"
    ]
    assert "is high" in json.dumps(found[1e-2])
